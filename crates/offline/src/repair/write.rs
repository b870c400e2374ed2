//! Writing what is kept.

use std::collections::BTreeSet;

use ubcache_env::Device;
use ubcache_format::{BucketNr, INITIAL_PRIORITY, Key, METADATA_PRIORITY, Pointer, PrioEntry};

use super::plan::Plan;
use crate::error::OfflineError;
use crate::io::progress::Watcher;
use crate::set::{Owner, View};
use crate::write::{NewSet, free_buckets, ring_index, write_set};

/// Writes the set; nothing that is in use is touched before the last step, the journal entry. On a
/// copy, clean data and the journal count as free.
pub(super) async fn write<D: Device>(
    view: &View,
    plan: &Plan,
    target: &D,
    with_superblock: bool,
    is_copy: bool,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let spared = spared(view, plan);
    let may = |owner, bucket| {
        (owner == Owner::Free || is_copy && owner == Owner::Clean) && !spared.contains(&bucket)
    };
    let seq = view.journal.next_seq();
    let set = NewSet {
        superblock: &view.superblock,
        with_superblock,
        uuids: &view.uuids,
        seq,
        ring_index: ring_index(view, seq, is_copy)?,
        holes: &view.journal.holes,
        hidden: view.journal.hidden,
        last_run: view.journal.last_run,
        doing: "writing the repaired set",
    };
    let places = free_buckets(view, may);
    let keys = plan.keep.iter().cloned();
    write_set(target, &set, keys, places, |used| entries(view, plan, used), || Ok(()), watcher)
        .await
}

/// Buckets of data that is kept, of data that is uncertain, and of nodes that say something of it.
fn spared(view: &View, plan: &Plan) -> BTreeSet<BucketNr> {
    let bucket = |pointer: Pointer| pointer.bucket(view.geometry.bucket_sectors);
    let kept = plan.keep.iter().filter_map(|key| Some(bucket(key.pointer()?)));
    let uncertain =
        plan.uncertain.iter().flat_map(|part| part.places.iter().map(|place| bucket(*place)));
    let nodes = view
        .uncertainty
        .claims
        .iter()
        .map(|(_, node)| *node)
        .chain(view.uncertainty.nodes.iter().copied());
    kept.chain(uncertain).chain(nodes).collect()
}

/// The prio chain's entries: for each bucket its generation, and whether there is anything in it.
fn entries(view: &View, plan: &Plan, used: &[Pointer]) -> Vec<PrioEntry> {
    let mut entries: Vec<PrioEntry> = plan
        .generations
        .iter()
        .map(|generation| PrioEntry { priority: 0, generation: *generation })
        .collect();
    let bucket = |pointer: Pointer| pointer.bucket(view.geometry.bucket_sectors).0 as usize;
    for pointer in plan.keep.iter().filter_map(Key::pointer) {
        if let Some(entry) = entries.get_mut(bucket(pointer)) {
            *entry = PrioEntry { priority: INITIAL_PRIORITY, generation: pointer.generation };
        }
    }
    for pointer in used {
        if let Some(entry) = entries.get_mut(bucket(*pointer)) {
            *entry = PrioEntry { priority: METADATA_PRIORITY, generation: pointer.generation };
        }
    }
    entries
}
