//! `ubcache convert`: a disk with data gets a superblock of its own.

use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::open::header::header_of;
use ubcache_daemon::open::probe::recognize;
use ubcache_daemon::open::superblock::has_superblock;
use ubcache_daemon::open::target::{Access, SUPERBLOCK_AT, Target};
use ubcache_daemon::size::{parse_size, show_size};
use ubcache_format::{CacheMode, DEFAULT_DATA_OFFSET, SECTOR_BYTES, Sector, Superblock, Uuid};

use super::move_data::{MoveArgs, Span, begin, head_of_data, prepare, refuse_content};
use super::print;

const AFTER_HELP: &str = "\
Moves the data of a disk up by 8 KiB, in place, and writes a superblock before it: a backing device
as `ubcache make -B` makes them, with the data that was there. The last 8 KiB of the disk must be
free: of ext2, ext3, ext4 and XFS the size is read; of data that is not known --data-size gives it.
Make room by shrinking the file system (resize2fs), or by making the partition or logical volume
larger. Where the room is before the data, because the partition was made to begin 8 KiB earlier,
--room-before only writes the superblock.

Other content that is known (btrfs, bcachefs, LUKS, LVM, MD, a partition table and so on) is
refused, also beside one of these: it is found by more than its first 4 KiB, so that a disk in the
middle of the move could be mounted. The same is true of --data-size: give it only for data that
nothing looks for behind its first 4 KiB.

Can be interrupted at any moment, by a power cut as well, and run again: it goes on. Until it has
finished, the work file is as important as the disk, and the disk can be neither mounted nor
served. Each byte is written twice, once to the work file.

`ubcache make --adopt` needs no room, and changes nothing on the disk.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache convert /dev/sdb1 --label data";

/// Give a disk with data a superblock of its own, by moving its data in place
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The disk, which must not be in use
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// The first 8 KiB are free, and the data begins behind them: only write the superblock
    #[arg(long)]
    room_before: bool,
    /// Bytes of data, from the begin of the disk on
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "room_before")]
    data_size: Option<u64>,
    /// Label: the name of the export
    #[arg(short, long, value_name = "LABEL")]
    label: Option<String>,
    /// Start it in writeback mode
    #[arg(long)]
    writeback: bool,
    #[command(flatten)]
    moving: MoveArgs,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let Some((target, looked_at)) = prepare(&args.disk, false, &args.moving)? else {
        return Ok(());
    };
    refuse_members(&target)?;
    let head = head_of_data(&target, Sector(0))?;
    let superblock = new_superblock(args, &target)?;
    if args.room_before {
        return write_before(args, &target, &head, &superblock);
    }
    let instead = format!("take the disk as it is: ubcache make --adopt {}", args.disk.display());
    refuse_content(&args.disk, &head, &instead)?;
    let sectors = data_sectors(args, &target, &head)?;
    drop(target);
    let span = Span { from: Sector(0), to: DEFAULT_DATA_OFFSET, sectors };
    begin(&args.disk, &span, Some(&superblock.encode()), &looked_at, &args.moving)
}

fn refuse_members(disk: &Target) -> Result<(), Failure> {
    let path = disk.path.display();
    if has_superblock(disk) {
        return Err(Failure::refused(&disk.path, "the disk has a bcache superblock already")
            .found(format_args!("a bcache superblock (byte {})", SUPERBLOCK_AT + 24))
            .expected("a disk without one")
            .advice(format_args!("serve it: ubcache serve -C CACHE -B {path}")));
    }
    match header_of(disk)? {
        Some(header) => Err(Failure::refused(&disk.path, "the disk is adopted")
            .found(format_args!("its header {}", header.display()))
            .expected("a disk without a header: nothing in a cache is newer")
            .advice(format_args!("release it first: ubcache release {path} -C CACHE"))),
        None => Ok(()),
    }
}

fn new_superblock(args: &Args, disk: &Target) -> Result<Superblock, Failure> {
    let mode = if args.writeback { CacheMode::Writeback } else { CacheMode::Writethrough };
    let logical = u64::from(disk.logical_block_bytes);
    let block = if disk.bytes.is_multiple_of(4096) { 4096 } else { logical.max(SECTOR_BYTES) };
    let new_uuid = || Uuid(*uuid::Uuid::new_v4().as_bytes());
    let label = args.label.as_deref().unwrap_or("");
    let block = (block / SECTOR_BYTES) as u32;
    let new =
        Superblock::new_backing(new_uuid(), new_uuid(), block, DEFAULT_DATA_OFFSET, mode, label);
    Superblock::read(&new.encode(), disk.sectors(), disk.logical_block_bytes).map_err(|error| {
        Failure::refused(&disk.path, "a superblock does not fit the disk").found(error)
    })
}

/// Sectors of the data, which have to leave room for the superblock.
fn data_sectors(args: &Args, disk: &Target, head: &[u8]) -> Result<u64, Failure> {
    let path = disk.path.display();
    let (what, bytes) = match args.data_size {
        Some(bytes) => ("--data-size".to_owned(), bytes),
        None => known_size(head).ok_or_else(|| {
            Failure::refused(&disk.path, "the size of its data is not known")
                .found("nothing that is known")
                .expected("an ext2, ext3, ext4 or XFS file system")
                .advice("say how many bytes from the begin of the disk are data: --data-size SIZE")
        })?,
    };
    let room = disk.bytes.saturating_sub(DEFAULT_DATA_OFFSET.bytes());
    if bytes <= room {
        let sectors = bytes.div_ceil(4096) * 4096 / SECTOR_BYTES;
        return Ok(sectors.min(disk.sectors() - DEFAULT_DATA_OFFSET.0));
    }
    Err(Failure::refused(&disk.path, "no room for a superblock")
        .found(format_args!("{what}: {bytes} bytes, on a disk of {}", disk.bytes))
        .expected(format_args!("at most {room} bytes: 8192 must be free at the end"))
        .advice(format_args!(
            "shrink an ext4 (e2fsck -f {path} && resize2fs {path} {}K), or make the partition or \
             logical volume larger. Or take the disk as it is: ubcache make --adopt {path}",
            room / 4096 * 4
        )))
}

/// Name and size of a file system, from the first bytes of its disk.
fn known_size(head: &[u8]) -> Option<(String, u64)> {
    let bytes = |at: usize, count: usize| head.get(at..at + count);
    let le = |at: usize, count: usize| {
        Some(bytes(at, count)?.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte)))
    };
    let be = |at: usize, count: usize| {
        Some(bytes(at, count)?.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte)))
    };
    if bytes(0, 4)? == b"XFSB" {
        let size = be(4, 4)?.checked_mul(be(8, 8)?)?;
        return Some(("an XFS file system".to_owned(), size));
    }
    if bytes(1080, 2)? == [0x53, 0xef] {
        // The upper half of the number counts with the feature 64bit only.
        let wide = le(1024 + 0x60, 4)? & 0x80 != 0;
        let blocks = le(1024 + 4, 4)? | if wide { le(1024 + 0x150, 4)? << 32 } else { 0 };
        let block = 1024_u64.checked_shl(u32::try_from(le(1024 + 0x18, 4)?).ok()?)?;
        return Some(("an ext2, ext3 or ext4 file system".to_owned(), blocks.checked_mul(block)?));
    }
    None
}

/// Writes the superblock into the free room before the data.
fn write_before(
    args: &Args,
    disk: &Target,
    head: &[u8],
    superblock: &Superblock,
) -> Result<(), Failure> {
    let offset = DEFAULT_DATA_OFFSET.bytes() as usize;
    let (before, data) = head.split_at(offset.min(head.len()));
    if before.iter().any(|byte| *byte != 0) {
        let found = recognize(head);
        return Err(Failure::refused(&disk.path, "the first 8 KiB are not free")
            .found(found.first().map_or("bytes that are not zero", |signature| signature.name))
            .expected("8192 zero bytes before the data")
            .advice(format_args!(
                "does the partition begin 16 sectors before its file system now? If there are \
                 only remains of former content: blkdiscard -z --length 8192 {}",
                disk.path.display()
            )));
    }
    let Some(signature) = recognize(data).into_iter().next() else {
        return Err(Failure::refused(&disk.path, "no data that is known begins at byte 8192")
            .found("nothing that is known")
            .expected("a file system, a partition table or the like")
            .advice("does the partition begin exactly 16 sectors earlier than before?"));
    };
    if !args.moving.dry_run {
        write_superblock(&args.disk, superblock)?;
    }
    let verb = if args.moving.dry_run { "would be written" } else { "written" };
    if args.moving.json {
        let text = serde_json::json!({
            "path": args.disk.display().to_string(),
            "bytes": disk.bytes - offset as u64,
            "from_byte": offset,
            "to_byte": offset,
            "resumed": false,
            "done": !args.moving.dry_run,
        });
        return print(&format!("{text:#}\n"));
    }
    print(&format!(
        "{}: superblock {verb} before {} of {}\n",
        args.disk.display(),
        signature.name,
        show_size(disk.bytes - offset as u64)
    ))
}

fn write_superblock(disk: &Path, superblock: &Superblock) -> Result<(), Failure> {
    let target = Target::open(disk, Access::Change)?;
    target.write(SUPERBLOCK_AT, &superblock.encode())?;
    target.sync()
}
