//! `ubcache unmake`: the data of a disk with a superblock, without any cache.

use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::backing::is_uri;
use ubcache_daemon::open::superblock::{ExpectedKind, look};
use ubcache_daemon::shell::shell_word;
use ubcache_format::{BackingState, SECTOR_BYTES, Sector};

use super::print;

const AFTER_HELP: &str = "\
Changes nothing. The data of a backing device begins after its superblock, at sector 16 or where
--data-offset put it. A mapping that leaves these sectors out is a disk as any other; the printed
lines make one. A disk in state dirty is refused, and one in state clean gets the command that
detaches it first.

Exit codes: 0 printed, 1 refused, 2 could not run.

Example:
  ubcache unmake /dev/sdb";

/// Print how to use the data of a backing device without a cache
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The backing device
    #[arg(value_name = "DISK")]
    disk: PathBuf,
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
    let path = args.disk.display();
    let (target, superblock) = look(&args.disk, ExpectedKind::Backing)?;
    let state = superblock.state();
    if state == BackingState::Dirty {
        return Err(Failure::refused(&args.disk, "the cache has data that the disk does not have")
            .found(format_args!(
                "state dirty: the newest data is in the cache of set {}",
                superblock.set_uuid
            ))
            .expected("a disk that has everything")
            .advice(format_args!(
                "bring it to the disk: ubcache recover -C CACHE -B {path} --detach; then run this \
                 again"
            )));
    }
    let offset = superblock.data_offset();
    let sectors = target.sectors() - offset.0;
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
    print(&text)
}
