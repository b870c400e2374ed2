//! Writing what is kept.

use std::collections::BTreeSet;

use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{
    BucketNr, INITIAL_PRIORITY, JournalEntry, JournalSeq, Key, METADATA_PRIORITY, Pointer, PrioEntry,
    SECTOR_BYTES, SUPERBLOCK_SECTOR, encode_prio, encode_uuids,
};

use super::plan::Plan;
use crate::disk::Watcher;
use crate::error::OfflineError;
use crate::recover::flush;
use crate::rewrite::{free_buckets, in_use, no_room, write_entry, write_tree};
use crate::view::{Owner, View};

const DOING: &str = "writing the repaired set";

/// Writes the set; nothing that is in use is touched before the last step, the journal entry. On a copy, clean data and
/// the journal count as free.
pub(super) async fn write<D: Device>(
    view: &View,
    plan: &Plan,
    target: &D,
    with_superblock: bool,
    is_copy: bool,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let geometry = &view.geometry;
    let index = ring_index(view, is_copy)?;
    let spared = spared(view, plan);
    let may = |owner, bucket| {
        (owner == Owner::Free || is_copy && owner == Owner::Clean) && !spared.contains(&bucket)
    };
    let mut used = Vec::new();
    let mut places = free_buckets(view, may).inspect(|pointer| used.push(*pointer));
    let uuids = places.next().ok_or_else(no_room)?;
    let chain: Vec<Pointer> = places.by_ref().take(geometry.prio_buckets() as usize).collect();
    if chain.len() < geometry.prio_buckets() as usize {
        return Err(no_room());
    }
    let newest = view.journal.newest().map_or(0, |newest| newest.place.seq);
    let seq = view.journal.places.iter().flatten().map(|place| place.seq).max().unwrap_or(0).max(newest) + 1;
    let name = (seq, view.superblock.uuid);
    let keys = plan.keep.iter().cloned();
    let (root, root_level) = write_tree(geometry, target, name, keys, &mut places, watcher).await?;
    drop(places);

    write_bytes(target, uuids, &encode_uuids(geometry, &view.uuids)).await?;
    let entries = entries(view, plan, &used);
    let each = geometry.prio_entries_per_bucket().max(1) as usize;
    for (index, (place, entries)) in chain.iter().zip(entries.chunks(each)).enumerate().rev() {
        let next = chain.get(index + 1).or(chain.first()).unwrap_or(place).bucket(geometry.bucket_sectors);
        write_bytes(target, *place, &encode_prio(geometry, 1, next, entries)).await?;
    }
    flush(target, DOING).await?;
    let entry = JournalEntry {
        seq: JournalSeq(seq),
        last_seq: JournalSeq(seq),
        uuid_bucket: Key {
            sectors: u16::try_from(geometry.metadata_bytes() / SECTOR_BYTES).unwrap_or(u16::MAX),
            ..Key::node(ubcache_format::Inode(0), ubcache_format::Sector(0), 0, uuids)
        },
        root,
        root_level,
        prio_bucket: chain.first().map_or(BucketNr(0), |place| place.bucket(geometry.bucket_sectors)),
        keys: Vec::new(),
        mark: [0; 16],
    };
    write_entry(geometry, target, index, &entry).await?;
    if with_superblock {
        let bytes = Buf::from_bytes(&view.superblock.encode());
        let written = target.write(SUPERBLOCK_SECTOR, bytes.into(), Durability::Fua).await;
        written.map_err(|error| OfflineError::Io { doing: DOING, error: error.to_string() })?;
        flush(target, DOING).await?;
    }
    Ok(())
}

/// Where the entry goes. The driver looks at bucket 0 first, and finds nothing newer anywhere.
fn ring_index(view: &View, is_copy: bool) -> Result<u32, OfflineError> {
    let ring = view.geometry.journal_buckets.max(1);
    let after = view.journal.newest().map_or(0, |newest| (newest.place.index + 1) % ring);
    let free = |index: &u32| view.journal.newest().is_none() || !in_use(view, *index);
    match [0, after].into_iter().find(free) {
        Some(index) => Ok(index),
        None if is_copy => Ok(0),
        None => Err(OfflineError::NoRoom("the journal is in use as a whole".to_owned())),
    }
}

/// Buckets of data that is kept, of data that is uncertain, and of nodes that say something of it.
fn spared(view: &View, plan: &Plan) -> BTreeSet<BucketNr> {
    let bucket = |pointer: Pointer| pointer.bucket(view.geometry.bucket_sectors);
    let kept = plan.keep.iter().filter_map(|key| Some(bucket(key.pointer()?)));
    let uncertain = plan.uncertain.iter().flat_map(|part| part.places.iter().map(|place| bucket(*place)));
    let nodes = view.doubt.claims.iter().map(|(_, node)| *node).chain(view.doubt.nodes.iter().copied());
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

async fn write_bytes<D: Device>(target: &D, at: Pointer, bytes: &[u8]) -> Result<(), OfflineError> {
    let written = target.write(at.offset, Buf::from_bytes(bytes).into(), Durability::Volatile).await;
    written.map_err(|error| OfflineError::Io { doing: DOING, error: error.to_string() })
}
