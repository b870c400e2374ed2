//! `ubcache unmake`: the data of a disk with a superblock, without any cache.

use std::path::{Path, PathBuf};

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::backing::is_uri;
use ubcache_daemon::open::superblock::{ExpectedKind, look, read};
use ubcache_daemon::shell::shell_word;
use ubcache_format::{BackingState, SECTOR_BYTES, Sector, Superblock};

use super::move_data::{MoveArgs, Span, begin, head_of_data, prepare, refuse_content};
use super::print;

const AFTER_HELP: &str = "\
The data of a backing device begins after its superblock, at sector 16 or where --data-offset put
it. Without --in-place nothing is changed: a mapping that leaves these sectors out is a disk as any
other, and the printed lines make one. A disk in state dirty is refused, and one in state clean
gets the command that detaches it first.

--in-place moves the data to the begin of the disk, over the superblock, and leaves nothing of
ubcache on it. It can be interrupted at any moment, by a power cut as well, and run again: it goes
on. Until it has finished, the work file is as important as the disk, and the disk can be neither
mounted nor served. Each byte is written twice, once to the work file. Of the end of the disk, as
many bytes as there were before the data stay unused, with what was there.

Of content that is known, only ext2, ext3, ext4 and XFS are moved in place: others (btrfs, bcachefs,
LUKS, LVM, MD, a partition table and so on) are found by more than their first 4 KiB, so that a disk
in the middle of the move could be mounted.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache unmake /dev/sdb
  ubcache unmake --in-place /dev/sdb";

/// Take a disk out of ubcache: print how to use its data, or move it to the begin of the disk
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The backing device
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// Move the data to the begin of the disk, which must be detached and not in use
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    moving: MoveArgs,
}

/// The command that gives the data of a disk that has a superblock, and no cache.
pub(super) fn without_superblock(disk: &Path, offset: Sector) -> String {
    let at = offset.bytes();
    match disk.to_str().filter(|_| is_uri(disk)) {
        Some(uri) => format!("nbdkit --filter=offset nbd {} offset={at}", shell_word(uri)),
        None => format!("losetup --find --show --offset {at} {}", disk.display()),
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    match args.in_place {
        true => move_in_place(args),
        false => print_mapping(args),
    }
}

fn move_in_place(args: &Args) -> Result<(), Failure> {
    let Some((target, looked_at)) = prepare(&args.disk, true, &args.moving)? else {
        return Ok(());
    };
    let superblock = read(&target, ExpectedKind::Backing)?;
    let path = args.disk.display();
    match superblock.state() {
        BackingState::Dirty => return Err(dirty(args, &superblock)),
        BackingState::Clean => {
            return Err(Failure::refused(&args.disk, "it is attached to a cache")
                .found(format_args!("state clean, in set {}", superblock.set_uuid))
                .expected("a disk in state detached")
                .advice(format_args!(
                    "detach it: ubcache recover -C CACHE -B {path} --detach; without the cache: \
                     ubcache forget-cache {path}"
                )));
        }
        BackingState::None | BackingState::Stale => {}
    }
    let from = superblock.data_offset();
    let instead = format!("use it where it is (ubcache unmake {path} prints how), or copy it");
    refuse_content(&args.disk, &head_of_data(&target, from)?, &instead)?;
    let span = Span { from, to: Sector(0), sectors: target.sectors().saturating_sub(from.0) };
    drop(target);
    begin(&args.disk, &span, None, &looked_at, &args.moving)
}

fn dirty(args: &Args, superblock: &Superblock) -> Failure {
    Failure::refused(&args.disk, "the cache has data that the disk does not have")
        .found(format_args!(
            "state dirty: the newest data is in the cache of set {}",
            superblock.set_uuid
        ))
        .expected("a disk that has everything")
        .advice(format_args!(
            "bring it to the disk: ubcache recover -C CACHE -B {} --detach; then run this again",
            args.disk.display()
        ))
}

fn print_mapping(args: &Args) -> Result<(), Failure> {
    let path = args.disk.display();
    let (target, superblock) = look(&args.disk, ExpectedKind::Backing)?;
    let state = superblock.state();
    if state == BackingState::Dirty {
        return Err(dirty(args, &superblock));
    }
    let offset = superblock.data_offset();
    let sectors = target.sectors() - offset.0;
    if args.moving.json {
        return print(&mapping_as_json(args, offset, sectors));
    }
    let mut text = String::new();
    if state == BackingState::Clean {
        text += &format!(
            "first, so that its cache is void: ubcache recover -C CACHE -B {path} --detach (or, \
             without the cache, ubcache forget-cache {path})\n"
        );
    }
    if is_uri(&args.disk) {
        text += &format!(
            "data: {sectors} sectors from sector {offset} (byte {}) on\n  {}\n",
            offset.bytes(),
            without_superblock(&args.disk, offset)
        );
        return print(&text);
    }
    text += &format!(
        "data: {sectors} sectors from sector {offset} (byte {}) on\n  \
         losetup --find --show --offset {} {path}\n  \
         dmsetup create data --table '0 {sectors} linear {path} {offset}'\n",
        offset.bytes(),
        offset.bytes()
    );
    if (sectors * SECTOR_BYTES).is_multiple_of(4096) {
        text += &format!(
            "or a copy at the begin of another disk: ubcache cat, or\n  dd if={path} \
            of=OTHER bs=4096 skip={} iflag=direct oflag=direct\n",
            offset.bytes() / 4096
        );
    }
    text += &format!(
        "or without a mapping, the data moved to the begin of the disk:\n  ubcache unmake \
         --in-place {path}\n"
    );
    print(&text)
}

fn mapping_as_json(args: &Args, offset: Sector, sectors: u64) -> String {
    let path = args.disk.display();
    let is_local = !is_uri(&args.disk);
    let object = json!({
        "path": path.to_string(),
        "bytes": sectors * SECTOR_BYTES,
        "from_byte": offset.bytes(),
        "command": without_superblock(&args.disk, offset),
        "table": is_local.then(|| format!("0 {sectors} linear {path} {offset}")),
    });
    format!("{object:#}\n")
}
