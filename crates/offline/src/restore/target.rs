//! The target of a restore, and the restore.

use std::cell::RefCell;

use ubcache_env::Device;
use ubcache_format::{BucketNr, LastRun, METADATA_PRIORITY, Pointer, PrioEntry, Uuid};

use super::lines::Lines;
use super::read::{Dumped, keys};
use crate::check::{CheckOptions, check};
use crate::error::OfflineError;
use crate::io::progress::Watcher;
use crate::set::{Owner, STALE_FATAL, Severity, Site, View};
use crate::walk::{WalkOptions, read_superblock, walk_from};
use crate::write::{NewSet, free_buckets, ring_index, write_set};

/// Relation of a device to the set of a dump.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The device has the set's superblock, or entries of its journal.
    SameSet {
        /// The newest journal entry that can be read; 0 if there is none.
        newest_seq: u64,
    },
    /// No readable structure belongs to this set or to another one.
    Unknown,
    /// The device has the superblock of another one.
    Other {
        /// The UUID of that device.
        uuid: Uuid,
        /// True for a cache device.
        is_cache: bool,
    },
    /// The device has the superblock of the set, with other sizes.
    OtherShape,
}

/// State of the device that a dump is to be restored to.
#[derive(Clone, Debug)]
pub struct TargetState {
    /// Its relation to the set.
    pub standing: Standing,
    /// The set as it is read with the dump's superblock; `None` on a new file.
    view: Option<View>,
}

impl TargetState {
    /// Standing of a new file, which is all zeroes.
    pub fn new_file() -> TargetState {
        TargetState { standing: Standing::Unknown, view: None }
    }
}

/// Result of a restore.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Extents of the tree, holes and stale ones among them.
    pub extents: u64,
    /// Sectors that the cache has by what was restored.
    pub cached_sectors: u64,
    /// Sectors of which it has the only copy.
    pub dirty_sectors: u64,
    /// The journal entry that puts the set in force.
    pub journal_seq: u64,
}

/// Classifies an existing device. Only reads.
pub async fn look_at_target<D: Device>(
    dumped: &Dumped,
    target: &D,
    watcher: &dyn Watcher,
) -> Result<TargetState, OfflineError> {
    let needed =
        u64::from(dumped.view.geometry.buckets) * u64::from(dumped.view.geometry.bucket_sectors);
    let found = target.limits().sectors;
    if found < needed {
        return Err(OfflineError::TooSmall { found, needed });
    }
    let superblock = read_superblock(target, Site::Cache).await.ok();
    let ours = |uuid| uuid == dumped.view.superblock.uuid;
    if let Some(other) = superblock.as_ref().filter(|other| !other.is_cache() || !ours(other.uuid))
    {
        let standing = Standing::Other { uuid: other.uuid, is_cache: other.is_cache() };
        return Ok(TargetState { standing, view: None });
    }
    if superblock.as_ref().is_some_and(|same| same.geometry() != dumped.view.geometry) {
        return Ok(TargetState { standing: Standing::OtherShape, view: None });
    }
    let view =
        walk_from(target, dumped.view.superblock.clone(), WalkOptions::SALVAGE, &mut (), watcher)
            .await;
    let newest_seq = view.journal.newest_seq();
    let standing = match superblock {
        None if newest_seq == 0 => Standing::Unknown,
        _ => Standing::SameSet { newest_seq },
    };
    Ok(TargetState { standing, view: Some(view) })
}

/// Writes the metadata of a dump to a device, and checks it. It goes into buckets that no extent of
/// the dump uses, and as long as there are enough of them into such as have nothing of the set that
/// is there: that one counts until the last step.
pub async fn restore<D: Device, L: Lines + ?Sized>(
    dumped: &Dumped,
    source: &L,
    target: &D,
    state: &TargetState,
    watcher: &dyn Watcher,
) -> Result<Restored, OfflineError> {
    let there = |bucket: BucketNr| {
        let known = state.view.as_ref().and_then(|view| view.buckets.get(bucket.0 as usize));
        known.is_some_and(|known| matches!(known.owner, Owner::Node | Owner::Prio | Owner::Uuids))
    };
    // A bucket that gets metadata is one generation on, and so much more stale are pointers to what
    // it had.
    let free = |owner, bucket: BucketNr| {
        let stale = dumped.stale.get(bucket.0 as usize).copied().unwrap_or(0);
        owner == Owner::Free && stale < STALE_FATAL
    };
    let unused = |owner, bucket| free(owner, bucket) && !there(bucket);
    let superseded = |owner, bucket| free(owner, bucket) && there(bucket);
    let view = &dumped.view;
    let places = free_buckets(view, unused).chain(free_buckets(view, superseded));
    let seq =
        state.view.as_ref().map_or(0, |there| there.journal.next_seq()).max(dumped.journal_seq);
    let set = NewSet {
        superblock: &view.superblock,
        with_superblock: true,
        uuids: &view.uuids,
        seq,
        ring_index: state.view.as_ref().map_or(Ok(0), |there| ring_index(there, seq, true))?,
        holes: state.view.as_ref().map_or(&[], |there| there.journal.holes.as_slice()),
        hidden: true,
        last_run: state.view.as_ref().map_or(LastRun::Other, |there| there.journal.last_run),
        doing: "writing the restored set",
    };
    let failed = RefCell::new(None);
    let keys = keys(source, &failed)?;
    let whole = || failed.take().map_or(Ok(()), Err);
    write_set(target, &set, keys, places, |used| entries(view, used), whole, watcher).await?;
    let after =
        check(target, &[], None, CheckOptions { watcher, ..CheckOptions::default() }).await.report;
    if let Some(finding) =
        after.findings.iter().find(|finding| finding.severity() == Severity::Error)
    {
        return Err(OfflineError::Damaged(Box::new(finding.clone())));
    }
    let Dumped { extents, cached_sectors, dirty_sectors, .. } = *dumped;
    Ok(Restored { extents, cached_sectors, dirty_sectors, journal_seq: seq })
}

/// The prio chain's entries: as in the dump, but for the buckets that get metadata now.
fn entries(view: &View, used: &[Pointer]) -> Vec<PrioEntry> {
    let mut entries: Vec<PrioEntry> = view
        .buckets
        .iter()
        .map(|bucket| PrioEntry { priority: bucket.priority, generation: bucket.generation })
        .collect();
    for pointer in used {
        let bucket = pointer.bucket(view.geometry.bucket_sectors).0 as usize;
        if let Some(entry) = entries.get_mut(bucket) {
            *entry = PrioEntry { priority: METADATA_PRIORITY, generation: pointer.generation };
        }
    }
    entries
}
