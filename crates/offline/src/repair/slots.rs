//! The volume table, which has no checksum: slots of backing devices that it does not know.
//!
//! A slot never moves, so an older copy of the table, in a bucket that was not used again, says as
//! well which slot a device has. A UUID that differs in a few bytes is the same one, damaged: UUIDs
//! are random. Where neither helps, what the cache has of each slot is compared with the devices
//! (`owners.rs`), if all of them are named.

use ubcache_env::Device;
use ubcache_env::local::join_all;
use ubcache_format::{
    BackingState, BucketNr, Inode, SECTOR_BYTES, UUID_ENTRY_BYTES, Uuid, UuidEntry, parse_uuids,
};

use super::options::RepairOptions;
use super::owners::{Backing, Owner, has_owner, owners};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::View;

/// Bytes of a bucket in which slots are looked for.
const LOOKED_AT: u64 = 4096;
const AT_ONCE: u32 = 64;
/// Bytes of 16 that make a damaged UUID known.
const ALIKE: usize = 11;

/// Result of looking for the slots of backing devices that the table does not know.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    /// Changes as text, one line a device.
    pub said: Vec<String>,
    /// The devices that still have no slot.
    pub without: Vec<Uuid>,
    /// Slots that were given because all backing devices are said to be named.
    pub by_choice: usize,
}

/// Restores the slot of attached backing devices that have none, if it is certain.
pub(super) async fn repair<D: Device>(
    view: &mut View,
    cache: &D,
    backings: &[Backing<'_, D>],
    options: RepairOptions,
    watcher: &dyn Watcher,
) -> Slots {
    let set = view.superblock.set_uuid;
    let attached = |backing: &&Backing<'_, D>| {
        let superblock = &backing.superblock;
        superblock.set_uuid == set
            && matches!(superblock.state(), BackingState::Clean | BackingState::Dirty)
    };
    let without: Vec<&Backing<'_, D>> = backings
        .iter()
        .filter(attached)
        .filter(|backing| view.slot(backing.superblock.uuid).is_none())
        .collect();
    let mut done = Slots::default();
    if without.is_empty() {
        return done;
    }
    if view.uuids.is_empty() {
        view.uuids = vec![UuidEntry::default(); view.geometry.uuid_slots() as usize];
    }
    let wanted: Vec<Uuid> = without.iter().map(|backing| backing.superblock.uuid).collect();
    let older = older_slots(view, cache, &wanted, watcher).await;
    let mut unknown = Vec::new();
    for device in without {
        let backing = &device.superblock;
        let alike = |entry: &UuidEntry| {
            entry.uuid.0.iter().zip(backing.uuid.0).filter(|(a, b)| **a == *b).count() >= ALIKE
        };
        let mut slots: Vec<usize> = view
            .uuids
            .iter()
            .enumerate()
            .filter(|(_, entry)| alike(entry))
            .map(|(slot, _)| slot)
            .collect();
        slots.extend(older.iter().filter(|(uuid, _)| *uuid == backing.uuid).map(|(_, slot)| *slot));
        slots.sort_unstable();
        slots.dedup();
        // A slot of another device, or one that was detached since, is not a candidate.
        slots.retain(|slot| {
            view.uuids.get(*slot).is_some_and(|entry| entry.is_free() || alike(entry))
        });
        match slots.as_slice() {
            [slot] => {
                give(view, *slot, device);
                done.said.push(format!(
                    "slot {slot} is assigned to backing device {} again",
                    backing.uuid
                ));
            }
            [] => unknown.push(device),
            several => {
                done.without.push(backing.uuid);
                done.said.push(format!(
                    "backing device {} may have had any of the slots {several:?}: left out",
                    backing.uuid
                ));
            }
        }
    }
    if !unknown.is_empty() {
        let others = not_named(view, backings);
        let found = owners(view, cache, (&unknown, backings), !options.without_data, watcher).await;
        for (device, owner) in unknown.into_iter().zip(found) {
            by_choice(view, device, owner, options.all_disks, &others, &mut done);
        }
    }
    done
}

/// Lists the devices that the table names and the caller did not.
fn not_named<D: Device>(view: &View, backings: &[Backing<'_, D>]) -> String {
    let is_named = |uuid| backings.iter().any(|backing| backing.superblock.uuid == uuid);
    let others =
        view.uuids.iter().filter(|slot| slot.is_live() && !slot.flash_only && !is_named(slot.uuid));
    let others: Vec<String> =
        others.filter(|slot| has_owner(slot, backings)).map(|slot| slot.uuid.to_string()).collect();
    match others.as_slice() {
        [] => String::new(),
        others => format!("; the table has devices that are not named: {}", others.join(", ")),
    }
}

/// Handles a slot for which there is no evidence but the absence of other choices.
fn by_choice<D: Device>(
    view: &mut View,
    device: &Backing<'_, D>,
    owner: Result<Owner, Vec<Inode>>,
    all_disks: bool,
    others: &str,
    done: &mut Slots,
) {
    let uuid = device.superblock.uuid;
    let reason = |owner: &Owner| match owner {
        Owner { is_new: true, .. } => "the cache has no data that could belong to it".to_owned(),
        Owner { same: 0, .. } => "no other candidate is left".to_owned(),
        Owner { same, .. } => {
            format!(
                "no other candidate is left, and {same} of its sectors were found on the \
                     device"
            )
        }
    };
    match owner {
        Ok(owner) if all_disks => {
            give(view, owner.slot.0 as usize, device);
            done.by_choice += 1;
            done.said.push(format!(
                "slot {} is assigned to backing device {uuid}: {}",
                owner.slot,
                reason(&owner)
            ));
        }
        Ok(owner) => {
            done.without.push(uuid);
            done.said.push(format!(
                "slot {} may be that of backing device {uuid}: {}. If every disk of this set is \
                 named after -B, add --all-disks to assign it",
                owner.slot,
                reason(&owner)
            ));
        }
        Err(choices) => {
            done.without.push(uuid);
            let choices = match choices.as_slice() {
                [] => String::new(),
                choices => {
                    let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
                    format!(": candidates with data are {}", choices.join(" or "))
                }
            };
            done.said.push(format!("no slot of backing device {uuid} is known{choices}{others}"));
        }
    }
}

fn give<D: Device>(view: &mut View, slot: usize, device: &Backing<'_, D>) {
    let is_known = view.slot(device.superblock.uuid) == Some(Inode(slot as u32));
    if let Some(entry) = view.uuids.get_mut(slot).filter(|_| !is_known) {
        // Times survive in a damaged slot, if anything does.
        let (first_reg, last_reg) = (entry.first_reg, entry.last_reg);
        *entry = UuidEntry {
            uuid: device.superblock.uuid,
            label: device.superblock.label,
            first_reg,
            last_reg,
            ..UuidEntry::default()
        };
    }
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
        let reads = (start..end)
            .map(|number| read(cache, geometry.bucket_start(BucketNr(number)), sectors));
        for bytes in join_all(reads.collect::<Vec<_>>()).await {
            phase.add(sectors * SECTOR_BYTES);
            let Ok(bytes) = bytes else { continue };
            for (slot, entry) in parse_uuids(bytes.as_slice()).iter().enumerate() {
                // Unused bytes of a slot are zero.
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
