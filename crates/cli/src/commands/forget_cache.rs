//! `ubcache forget-cache`: a disk that is to be used without the cache that it had.

use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::open::superblock::{ExpectedKind, read};
use ubcache_daemon::open::target::{Access, SUPERBLOCK_AT, Target};
use ubcache_format::{BackingState, Uuid};

use super::print;
use super::unmake::without_superblock;

const AFTER_HELP: &str = "\
For a disk whose cache is lost, and for one that will be changed without its cache. Afterwards the
superblock of the disk names no cache: any program can use its data, and data in its former cache
is void. `ubcache serve` takes it with any cache, and serves it without that one until `ubcache
attach`. Label, UUID, data offset and data stay.

The disk must not be in use. A disk in state dirty is refused, because its newest data is in the
cache: write it back with `ubcache recover -C CACHE -B DISK --detach`. If the cache is gone, that
data is lost too; --discard-dirty goes on with the data on the disk, which is older in places.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache forget-cache /dev/sdb";

/// Make a disk forget its cache: its superblock says that it has none
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The backing devices
    #[arg(value_name = "DISK", required = true)]
    disks: Vec<PathBuf>,
    /// Give up data that only the cache has
    #[arg(long)]
    discard_dirty: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut found = Vec::new();
    // All disks are checked before anything is changed.
    for path in &args.disks {
        let target = Target::open(path, Access::Change)?;
        let superblock = read(&target, ExpectedKind::Backing)?;
        if superblock.state() == BackingState::Dirty && !args.discard_dirty {
            let disk = path.display();
            return Err(Failure::refused(path, "the cache has data that the disk does not have")
                .found(format_args!(
                    "state dirty: the newest data is in the cache of set \
                    {}",
                    superblock.set_uuid
                ))
                .expected("a disk that has everything: state clean, inconsistent or detached")
                .advice(format_args!(
                    "bring it to the disk: ubcache recover -C CACHE -B {disk} --detach. If the \
                     cache is lost, so is that \
                     data; to go on with what the disk has: ubcache forget-cache {disk} \
                     --discard-dirty"
                )));
        }
        found.push((target, superblock));
    }
    for (target, mut superblock) in found {
        let former = (superblock.state(), superblock.set_uuid);
        superblock.set_uuid = Uuid::default();
        superblock.set_state(BackingState::None);
        superblock.set_run(None);
        // All that has changed is in the first sector.
        let first = (target.logical_block_bytes as usize).max(512);
        let bytes = superblock.encode();
        target.write(SUPERBLOCK_AT, bytes.get(..first).unwrap_or(&bytes))?;
        target.sync()?;
        let offset = superblock.data_offset();
        print(&format!(
            "{}: was {} in set {}, has no cache now\n  its data begins at byte {}: `{}`\n",
            target.path.display(),
            former.0.super_show_word(),
            former.1,
            offset.bytes(),
            without_superblock(&target.path, offset)
        ))?;
    }
    Ok(())
}
