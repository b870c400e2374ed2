//! Contents of the devices so far: nothing is destroyed unasked.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::open::probe::probe;
use ubcache_daemon::open::superblock::{ExpectedKind, parse};
use ubcache_daemon::open::target::{Access, SUPERBLOCK_AT, Target};
use ubcache_daemon::size::show_size;
use ubcache_format::{BackingState, Inode, SECTOR_BYTES, Superblock, Uuid};
use ubcache_offline::{View, open_set};

use super::Args;
use crate::commands::offline::{Bar, host, open_as_it_is};

/// Refuses to destroy anything unasked; gives the magic numbers to be wiped.
pub(super) fn check_content(args: &Args, target: &Target) -> Result<Vec<Range<u64>>, Failure> {
    let found = probe(target)?;
    if args.force {
        let is_bcache = found.iter().any(|signature| signature.is_bcache);
        // User data begins behind a bcache superblock: nothing in there is touched.
        let own = |at: u64| !is_bcache || at < SUPERBLOCK_AT;
        return Ok(found
            .iter()
            .filter(|it| own(it.at))
            .map(|it| it.at..it.at + it.bytes)
            .collect());
    }
    let Some(first) = found.first() else { return Ok(Vec::new()) };
    let path = &target.path;
    let place = format!("{} (byte {})", first.name, first.at);
    if !first.is_bcache {
        return Err(Failure::refused(path, "the device is in use by something else's data")
            .found(place)
            .expected("an empty device")
            .advice("to destroy it: wipefs -a, or use --force"));
    }
    let superblock = parse(target, &target.read_superblock_bytes()?, ExpectedKind::Any).ok();
    // An adoption that was interrupted left it, or nobody has used it yet.
    let is_new = |it: &Superblock| it.is_cache() && !it.sync() && it.journal_buckets == 0;
    if !args.adopt.is_empty() && superblock.as_ref().is_some_and(is_new) {
        return Ok(Vec::new());
    }
    let dirty = superblock.is_some_and(|it| !it.is_cache() && it.state() == BackingState::Dirty);
    match (args.wipe_bcache, dirty) {
        (true, false) => Ok(Vec::new()),
        (true, true) => {
            Err(Failure::refused(path, "the newest data of this device is only in its cache")
                .found("a backing device in state dirty")
                .expected("a device without data in a cache")
                .advice(
                    "serve it with its cache and let it write back (writeback_percent=0); --force \
                gives the data up",
                ))
        }
        (false, _) => Err(Failure::refused(path, "already a bcache device")
            .found(place)
            .expected("a device without one")
            .advice("overwrite it with --wipe-bcache")),
    }
}

/// A backing device among those that are to be overwritten, by its UUID so far.
pub(super) fn known_disk(target: &Target) -> Option<(PathBuf, Uuid)> {
    let superblock =
        parse(target, &target.read_superblock_bytes().ok()?, ExpectedKind::Any).ok()?;
    (!superblock.is_cache()).then(|| (target.path.clone(), superblock.uuid))
}

/// The set on a cache device, if there is one that was started. It is read by the tools that read
/// sets, which open the device themselves.
pub(super) fn read_set(target: Target) -> Result<(Target, Option<View>), Failure> {
    let superblock =
        target.read_superblock_bytes().and_then(|bytes| parse(&target, &bytes, ExpectedKind::Any));
    if !superblock.is_ok_and(|superblock| superblock.is_cache() && superblock.sync()) {
        return Ok((target, None));
    }
    let path = target.path.clone();
    drop(target);
    let host = host()?;
    let cache = open_as_it_is(&host, &path, false)?;
    let bar = Bar::new();
    let read = host.block_on(async { open_set(&cache, false, &bar).await });
    bar.clear();
    drop((cache, host));
    let (set, _) = read.map_err(|error| {
        Failure::refused(&path, "it may have the only copy of dirty data: its set can't be read")
            .found(error)
            .expected("a cache without dirty data")
            .advice(format_args!(
                "examine it with `ubcache check {}`; --force gives up its content",
                path.display()
            ))
    })?;
    Ok((Target::open(&path, Access::Change)?, Some(set)))
}

/// Refuses to destroy the only copy of dirty data, whose ever it is.
pub(super) fn refuse_dirty_cache(
    path: &Path,
    set: &View,
    disks: &[(PathBuf, Uuid)],
) -> Result<(), Failure> {
    let mut whose = Vec::new();
    for (index, entry) in (0..).zip(&set.uuids).filter(|(_, entry)| entry.uuid != Uuid::INVALIDATED)
    {
        let extents = set.volume(Inode(index)).filter(|(extent, _)| extent.is_dirty());
        let sectors: u64 = extents.map(|(extent, _)| extent.range().sectors()).sum();
        if sectors == 0 {
            continue;
        }
        let label = String::from_utf8_lossy(&entry.label).trim_end_matches('\0').to_owned();
        let name = match disks.iter().find(|(_, uuid)| *uuid == entry.uuid) {
            Some((path, _)) => path.display().to_string(),
            None if label.is_empty() => format!("the backing device {}", entry.uuid),
            None => format!("the backing device {} (label {label:?})", entry.uuid),
        };
        whose.push(format!("{} of {name}", show_size(sectors * SECTOR_BYTES)));
    }
    if whose.is_empty() {
        return Ok(());
    }
    let whose = whose.join(", ");
    Err(Failure::refused(path, "the cache has the only copy of dirty data")
        .found(whose)
        .expected("a cache without dirty data")
        .advice(format_args!(
            "write it back first: ubcache recover -C {} -B DISK; --force gives the data up",
            path.display()
        )))
}
