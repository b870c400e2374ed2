//! The volume table, which has no checksum: slots of backing devices that it does not know.
//!
//! A slot never moves, so an older copy of the table, in a bucket that was not used again, says as well which slot a
//! device has. A UUID that differs in a few bytes is the same one, damaged: UUIDs are random.

use ubcache_env::Device;
use ubcache_env::local::join_all;
use ubcache_format::{
    BackingState, BucketNr, SECTOR_BYTES, Superblock, UUID_ENTRY_BYTES, Uuid, UuidEntry, parse_uuids,
};

use crate::disk::{Phase, Watcher, read};
use crate::view::View;

/// Bytes of a bucket in which slots are looked for.
const LOOKED_AT: u64 = 4096;
const AT_ONCE: u32 = 64;
/// Bytes of 16 that make a damaged UUID known.
const ALIKE: usize = 11;

/// Gives attached backing devices that have no slot the one that they had, where that is certain. Says what was done.
pub(super) async fn repair<D: Device>(
    view: &mut View,
    cache: &D,
    backings: &[Superblock],
    watcher: &dyn Watcher,
) -> Vec<String> {
    let set = view.superblock.set_uuid;
    let attached = |backing: &&Superblock| {
        backing.set_uuid == set && matches!(backing.state(), BackingState::Clean | BackingState::Dirty)
    };
    let without: Vec<&Superblock> =
        backings.iter().filter(attached).filter(|backing| view.slot(backing.uuid).is_none()).collect();
    if without.is_empty() {
        return Vec::new();
    }
    let wanted: Vec<Uuid> = without.iter().map(|backing| backing.uuid).collect();
    let older = older_slots(view, cache, &wanted, watcher).await;
    let mut said = Vec::new();
    for backing in without {
        if view.uuids.is_empty() {
            view.uuids = vec![UuidEntry::default(); view.geometry.uuid_slots() as usize];
        }
        let alike = |entry: &UuidEntry| {
            entry.uuid.0.iter().zip(backing.uuid.0).filter(|(a, b)| **a == *b).count() >= ALIKE
        };
        let mut slots: Vec<usize> =
            view.uuids.iter().enumerate().filter(|(_, entry)| alike(entry)).map(|(slot, _)| slot).collect();
        slots.extend(older.iter().filter(|(uuid, _)| *uuid == backing.uuid).map(|(_, slot)| *slot));
        slots.sort_unstable();
        slots.dedup();
        // A slot that somebody else has, or that died since, is not this one's any more.
        slots.retain(|slot| view.uuids.get(*slot).is_some_and(|entry| entry.is_free() || alike(entry)));
        match slots.as_slice() {
            [slot] => {
                if let Some(entry) = view.uuids.get_mut(*slot) {
                    entry.uuid = backing.uuid;
                    entry.label = backing.label;
                    entry.flash_only = false;
                    said.push(format!("slot {slot} is that of backing device {} again", backing.uuid));
                }
            }
            [] => said.push(format!("no slot is known of backing device {}", backing.uuid)),
            several => said.push(format!(
                "backing device {} may have had any of the slots {several:?}: left out",
                backing.uuid
            )),
        }
    }
    said
}

/// Slots with one of these UUIDs in anything that looks like a volume table.
async fn older_slots<D: Device>(
    view: &View,
    cache: &D,
    wanted: &[Uuid],
    watcher: &dyn Watcher,
) -> Vec<(Uuid, usize)> {
    let geometry = view.geometry;
    let sectors = LOOKED_AT.min(geometry.metadata_bytes()) / SECTOR_BYTES;
    let total = u64::from(geometry.buckets - geometry.first_bucket) * sectors * SECTOR_BYTES;
    let phase = Phase::new(watcher, "looking for older volume tables", total);
    let mut found = Vec::new();
    let mut start = geometry.first_bucket;
    while start < geometry.buckets {
        let end = (start + AT_ONCE).min(geometry.buckets);
        let reads = (start..end).map(|number| read(cache, geometry.bucket_start(BucketNr(number)), sectors));
        for bytes in join_all(reads.collect::<Vec<_>>()).await {
            phase.add(sectors * SECTOR_BYTES);
            let Ok(bytes) = bytes else { continue };
            for (slot, entry) in parse_uuids(bytes.as_slice()).iter().enumerate() {
                // In a table all that is not used of a slot is zero.
                let at = slot * UUID_ENTRY_BYTES as usize;
                let padding = bytes.as_slice().get(at + 72..at + UUID_ENTRY_BYTES as usize);
                let plain = padding.is_some_and(|padding| padding.iter().all(|byte| *byte == 0));
                if plain && wanted.contains(&entry.uuid) {
                    found.push((entry.uuid, slot));
                }
            }
        }
        start = end;
    }
    found
}
