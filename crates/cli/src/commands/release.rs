//! `ubcache release`: a disk that was adopted goes on without ubcache.

use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::open::header::{FoundHeader, create_header, find_header, remove_header};
use ubcache_daemon::open::superblock::{ExpectedKind, has_superblock, look};
use ubcache_daemon::open::target::{Access, Target};
use ubcache_daemon::size::show_size;
use ubcache_env::joined::erase_copy;
use ubcache_format::{BackingState, SECTOR_BYTES};
use ubcache_offline::{RecoverOptions, recover};

use super::offline::{
    Bar, DeviceArgument, failure, host, named_once, open, open_file, open_joined,
};
use super::print;

const AFTER_HELP: &str = "\
Writes all dirty data of the disk to it, marks it as having no cache, and removes its header and
the copy of that on the cache device. From then on the disk is what it would be without ubcache:
its data begins at its first byte. The set must not be running (`ubcache stop`; or `ubcache
detach` and `ubcache remove`, if other disks go on).

Can be interrupted at any moment and run again: the header goes last.

Without -C for a disk whose cache is lost. A disk in state dirty is refused then, because its
newest data is in the cache; --discard-dirty goes on with what the disk has.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache release /dev/sdb -C /dev/nvme0n1p4";

/// Give back a disk that was adopted (`ubcache make --adopt`), with everything that was written
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The disk
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// The cache device
    #[arg(short = 'C', long = "cache", value_name = "DEVICE")]
    cache: Option<PathBuf>,
    /// Header of the disk [default: it is looked for]
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,
    /// Give up data that only the cache has, which is lost
    #[arg(long, conflicts_with = "cache")]
    discard_dirty: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let header = header_of(args)?;
    let path = args.disk.display();
    let state = header.superblock.state();
    let attached = matches!(state, BackingState::Clean | BackingState::Dirty);
    let written = match &args.cache {
        Some(cache) => {
            if let Some(content) = &header.lost {
                create_header(&header.path, content)?;
            }
            let written = if attached { drain(args, cache, &header)? } else { 0 };
            erase(cache, &header)?;
            written
        }
        None if state == BackingState::Dirty && !args.discard_dirty => {
            return Err(Failure::refused(&args.disk, "the cache has data that the disk lacks")
                .found(format_args!(
                    "state dirty: the newest data is in the cache of set {}",
                    header.superblock.set_uuid
                ))
                .expected("-C DEVICE: that cache")
                .advice(format_args!(
                    "ubcache release {path} -C CACHE. If the cache is lost, so is that data; to \
                     go on with what the disk has: ubcache release {path} --discard-dirty"
                )));
        }
        None => 0,
    };
    // In use until here: nobody serves the disk.
    drop(Target::open(&args.disk, Access::Change)?);
    remove_header(&header.path)?;
    print(&format!(
        "{path}: released; {} of dirty data written to it, {} removed\n",
        show_size(written),
        header.path.display()
    ))
}

fn header_of(args: &Args) -> Result<FoundHeader, Failure> {
    let path = args.disk.display();
    let disk = Target::open(&args.disk, Access::Look)?;
    if has_superblock(&disk) {
        return Err(Failure::refused(&args.disk, "the disk has a superblock of its own")
            .found("a bcache superblock (byte 4120)")
            .expected("a disk that was adopted: ubcache make --adopt")
            .advice(format_args!(
                "detach it from its cache: `ubcache recover -C CACHE -B {path} --detach`; `ubcache \
                 unmake {path}` says how to use its data then"
            )));
    }
    let given = Vec::from_iter(args.header.clone());
    find_header(&disk, &given, args.cache.as_deref())?.ok_or_else(|| {
        Failure::refused(&args.disk, "nothing to release: the disk has no header")
            .found("no header of it, in the usual place or on the cache device")
            .expected("a disk that was adopted: ubcache make --adopt")
            .advice("if its header is elsewhere, name it: --header PATH")
    })
}

/// Writes all dirty data to the disk, and detaches it; returns the number of bytes.
fn drain(args: &Args, cache: &Path, header: &FoundHeader) -> Result<u64, Failure> {
    named_once(cache, std::slice::from_ref(&args.disk))?;
    let host = host()?;
    let device = open(&host, cache, DeviceArgument::Cache, false)?;
    let disk = open_joined(&host, &args.disk, header, true)?;
    let bar = Bar::new();
    let options = RecoverOptions { detach: true, dry_run: false, damaged: false };
    let result = host.block_on(async { recover(&device, &disk, options, &bar).await });
    bar.clear();
    let (done, _) =
        result.map_err(|error| failure(&error, cache, std::slice::from_ref(&args.disk)))?;
    Ok(done.map.dirty_sectors() * SECTOR_BYTES)
}

fn erase(cache: &Path, header: &FoundHeader) -> Result<(), Failure> {
    let (_, superblock) = look(cache, ExpectedKind::Cache)?;
    let host = host()?;
    let device = open_file(&host, cache, true)?;
    let erased =
        host.block_on(async { erase_copy(&device, &superblock, header.superblock.uuid).await });
    erased.map(drop).map_err(|error| {
        Failure::could_not_run(cache, format_args!("can't erase the header's copy: {error}"))
            .advice("run it again when the device works")
    })
}
