//! Backing devices: what their superblocks say, and what the cache has of them.

use ubcache_env::{Device, SectorRange};
use ubcache_format::{BackingState, Inode, SUPERBLOCK_SECTOR, Sector, Superblock, compare_runs};

use super::collector::Collector;
use crate::set::{Finding, FindingKind, Location, Site, View};
use crate::walk::{Visitor, read_superblock};

/// Looks at the superblock of a backing device. If what is cached of it counts: its inode, and
/// whether one of the two is a copy of an earlier state.
pub(super) async fn check_backing<D: Device>(
    view: &View,
    device: &D,
    index: usize,
    visitor: &mut Collector<'_>,
) -> Option<(Inode, Superblock, bool)> {
    let site = Site::Backing(index);
    let place = Location { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Location::on(site) };
    let superblock = match read_superblock(device, site).await {
        Ok(superblock) => superblock,
        Err(finding) => {
            visitor.finding(finding);
            return None;
        }
    };
    if superblock.is_cache() {
        let detail = format!("a cache device (superblock version {})", superblock.version);
        visitor.finding(Finding::new(FindingKind::WrongKind, place, detail));
        return None;
    }
    let slot = view.slot(superblock.uuid);
    let dirty = slot.map_or(0, |inode| view.live_of(inode).dirty_sectors);
    let state = superblock.state();
    let here = superblock.set_uuid == view.superblock.set_uuid;
    match state {
        BackingState::Clean | BackingState::Dirty if here => {}
        _ => {
            let set = superblock.set_uuid;
            let detail = format!("its state is {}, its set {set}", state.super_show_word());
            if dirty > 0 {
                let detail = format!("{detail}; the cache has {dirty} dirty sectors of it");
                visitor.finding(Finding::new(FindingKind::DirtyVoid, place, detail));
            } else {
                visitor.finding(Finding::new(FindingKind::BackingElsewhere, place, detail));
            }
            return None;
        }
    }
    if superblock.block_sectors < view.geometry.block_sectors {
        let detail = format!(
            "blocks of {} sectors, those of the cache have {}",
            superblock.block_sectors, view.geometry.block_sectors
        );
        visitor.finding(Finding::new(FindingKind::BlockTooSmall, place, detail));
    }
    let Some(inode) = slot else {
        // An attach that was cut off leaves the table without the device only if the device does
        // not say "clean" yet.
        if state == BackingState::Dirty {
            let detail = format!("{} has no slot in the volume table", superblock.uuid);
            visitor.finding(Finding::new(FindingKind::BackingNoSlot, place, detail));
        }
        return None;
    };
    let apart = compare_runs(&view.superblock, inode, &superblock).err();
    if let Some(apart) = apart {
        let detail = format!("{apart}; the cache has {dirty} dirty sectors of it");
        visitor.finding(Finding::new(FindingKind::OlderCopy, place, detail));
    } else if state == BackingState::Clean && dirty > 0 {
        let detail = format!("its state is clean, and the cache has {dirty} dirty sectors of it");
        visitor.finding(Finding::new(FindingKind::DirtyUnderClean, place, detail));
    }
    Some((inode, superblock, apart.is_some()))
}

pub(super) fn check_absent(view: &View, given: &[bool], visitor: &mut Collector<'_>) {
    for ((slot, entry), given) in view.uuids.iter().enumerate().zip(given) {
        let inode = Inode(slot as u32);
        if !entry.is_live() || *given {
            continue;
        }
        if entry.flash_only {
            let clean = view.volume(inode).find(|(extent, _)| !extent.is_dirty());
            if let Some((extent, pointer)) = clean {
                let place = Location::cache(&view.geometry, pointer.offset)
                    .of_volume(inode, extent.range());
                visitor.finding(Finding::new(
                    FindingKind::FlashClean,
                    place,
                    "a clean extent of a flash-only volume",
                ));
            }
            continue;
        }
        let dirty = view.live_of(inode).dirty_sectors;
        if dirty > 0 {
            let detail = format!(
                "{dirty} dirty sectors of volume {inode}, whose backing device is {}",
                entry.uuid
            );
            visitor.finding(Finding::new(
                FindingKind::BackingAbsent,
                Location::on(Site::Cache),
                detail,
            ));
        }
    }
}

/// Range of the backing device that holds its data.
pub(super) fn inside<D: Device>(device: &D, superblock: &Superblock) -> SectorRange {
    SectorRange::from_bounds(superblock.data_offset(), Sector(device.limits().sectors))
}

/// Extents that the backing device has no place for.
pub(super) fn check_bounds(
    view: &View,
    inode: Inode,
    inside: SectorRange,
    visitor: &mut Collector<'_>,
) {
    for (extent, pointer) in view.volume(inode) {
        let range = extent.range();
        if !inside.covers(&range) {
            let kind = if extent.is_dirty() {
                FindingKind::BeyondEndDirty
            } else {
                FindingKind::BeyondEndClean
            };
            let place = Location::cache(&view.geometry, pointer.offset).of_volume(inode, range);
            let detail = format!("the extent is {range}, the backing device's data {inside}");
            visitor.finding(Finding::new(kind, place, detail));
        }
    }
}
