//! Matches volumes of the cache with backing devices, if no volume table does.
//!
//! A match needs all disks of the set. Everything that excludes a pair of slot and device is looked
//! for, and a pair is made only if neither of the two has another choice left.
//!

use ubcache_env::local::join_all;
use ubcache_env::{Device, SectorRange};
use ubcache_format::{BackingState, Inode, Sector, Superblock, UuidEntry};

use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::View;

/// Clean extents that are compared for a pair, and sectors of each at most.
const COMPARED: usize = 256;
const COMPARED_SECTORS: u64 = 64;
const AT_ONCE: usize = 16;
/// Compared clean sectors for each one that may differ: the Linux driver leaves stale ones behind.
const STALE_ONE_OF: u64 = 10;

/// A backing device and its superblock.
pub(crate) struct Backing<'a, D: Device> {
    pub device: &'a D,
    pub superblock: Superblock,
}

/// A slot that is taken for that of a device, with the reason.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub slot: Inode,
    /// Sectors of clean data that are the same on the device.
    pub same: u64,
    /// The cache has no data that could belong to the device: it gets an unused slot.
    pub is_new: bool,
}

/// Finds the slots of devices that have none, of those that have data and no owner. `named` are all
/// backing devices of the set. One without an answer has several to choose from, or none.
pub(crate) async fn owners<D: Device>(
    view: &View,
    cache: &D,
    (wanted, named): (&[&Backing<'_, D>], &[Backing<'_, D>]),
    with_data: bool,
    watcher: &dyn Watcher,
) -> Vec<Result<Owner, Vec<Inode>>> {
    let volumes: Vec<Inode> = view
        .volumes
        .iter()
        .filter(|volume| volume.clean_sectors + volume.dirty_sectors > 0)
        .map(|volume| volume.inode)
        .filter(|inode| {
            view.uuids.get(inode.0 as usize).is_some_and(|slot| !has_owner(slot, named))
        })
        .collect();
    let phase = Phase::new(watcher, "looking for the owners of volumes", 0);
    let mut possible: Vec<Vec<(Inode, u64)>> = Vec::new();
    for backing in wanted {
        let mut slots = Vec::new();
        for inode in &volumes {
            let same = match fits(view, *inode, backing) {
                true if with_data => compare(view, cache, *inode, backing, &phase).await,
                fits => fits.then_some(0),
            };
            slots.extend(same.map(|same| (*inode, same)));
        }
        possible.push(slots);
    }
    let choices: Vec<Vec<Inode>> =
        possible.iter().map(|slots| slots.iter().map(|(slot, _)| *slot).collect()).collect();
    let mut found: Vec<Option<Owner>> = vec![None; wanted.len()];
    // A device with one choice takes it, and no other device can.
    while let Some(index) = (0..wanted.len()).find(|index| {
        found[*index].is_none()
            && matches!(possible[*index].as_slice(), [(slot, _)] if possible.iter()
                .filter(|slots| slots.len() == 1 && slots[0].0 == *slot).count() == 1)
    }) {
        let (slot, same) = possible[index][0];
        found[index] = Some(Owner { slot, same, is_new: false });
        possible.iter_mut().for_each(|slots| slots.retain(|(other, _)| *other != slot));
    }
    let is_whole = view.lost.is_empty()
        && view.uncertainty.tree.is_empty()
        && view.uncertainty.journal.is_none();
    let all_have_owners =
        volumes.iter().all(|inode| found.iter().flatten().any(|owner| owner.slot == *inode));
    if is_whole && all_have_owners {
        let unused = |slot: &usize| {
            let entry = view.uuids.get(*slot);
            entry.is_some_and(UuidEntry::is_free)
                && view.extents_of(Inode(*slot as u32)).is_empty()
                && !found.iter().flatten().any(|owner| owner.slot.0 as usize == *slot)
        };
        let mut unused = (0..view.uuids.len()).filter(unused).collect::<Vec<_>>().into_iter();
        for owner in found.iter_mut().filter(|owner| owner.is_none()) {
            *owner =
                unused.next().map(|slot| Owner { slot: Inode(slot as u32), same: 0, is_new: true });
        }
    }
    found.into_iter().zip(choices).map(|(owner, choices)| owner.ok_or(choices)).collect()
}

/// Returns true if a slot may belong to a named device, to one that was not named, or to a
/// flash-only volume. The table has no checksum: a slot may be bytes without meaning.
pub(crate) fn has_owner<D: Device>(slot: &UuidEntry, named: &[Backing<'_, D>]) -> bool {
    let is_named = || named.iter().any(|backing| backing.superblock.uuid == slot.uuid);
    let is_plain = || slot.label.iter().all(|byte| *byte == 0 || *byte >= b' ');
    let is_flash = || slot.flash_only && slot.sectors > 0 && slot.sectors < 1 << 44;
    // UUIDs of backing devices are random ones of RFC 4122.
    let is_random = || slot.uuid.0[6] >> 4 == 4 && slot.uuid.0[8] >> 6 == 2;
    let is_backed = || !slot.flash_only && slot.sectors == 0 && is_random();
    !slot.is_free()
        && (!slot.is_live()
            || is_named()
            || is_plain() && slot.invalidated == 0 && (is_flash() || is_backed()))
}

/// Returns true if nothing in the metadata excludes that the volume belongs to the device.
fn fits<D: Device>(view: &View, inode: Inode, backing: &Backing<'_, D>) -> bool {
    let data = SectorRange::from_bounds(
        backing.superblock.data_offset(),
        Sector(backing.device.limits().sectors),
    );
    let is_clean = backing.superblock.state() == BackingState::Clean;
    let dirty = view.live_of(inode).dirty_sectors;
    !(is_clean && dirty > 0) && view.volume(inode).all(|(extent, _)| data.covers(&extent.range()))
}

/// Counts the sectors of clean data that the device has as well, without those of equal bytes.
/// `None` if too many differ.
async fn compare<D: Device>(
    view: &View,
    cache: &D,
    inode: Inode,
    backing: &Backing<'_, D>,
    phase: &Phase<'_>,
) -> Option<u64> {
    let clean = || view.volume(inode).filter(|(extent, _)| !extent.is_dirty());
    let step = clean().count().div_ceil(COMPARED).max(1);
    let some: Vec<_> = clean().step_by(step).collect();
    let (mut same, mut other) = (0, 0);
    for some in some.chunks(AT_ONCE) {
        let reads = some.iter().map(async |(extent, pointer)| {
            let range = extent.range();
            let sectors = range.sectors().min(COMPARED_SECTORS);
            (
                read(cache, pointer.offset, sectors).await,
                read(backing.device, range.start, sectors).await,
            )
        });
        for pair in join_all(reads.collect::<Vec<_>>()).await {
            let (Ok(cached), Ok(backed)) = pair else { continue };
            phase.add(cached.len() as u64);
            for (cached, backed) in cached.as_slice().chunks(512).zip(backed.as_slice().chunks(512))
            {
                let says_nothing =
                    cached == backed && cached.iter().all(|byte| Some(byte) == cached.first());
                same += u64::from(cached == backed && !says_nothing);
                other += u64::from(cached != backed);
            }
        }
    }
    (other * STALE_ONE_OF <= same).then_some(same)
}
