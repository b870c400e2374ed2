//! What follows from all extents together: who owns which bucket, what is stale, how much is free.

use ubcache_format::{BucketNr, SectorRange, Uuid};

use crate::finding::{Finding, Kind, Place, Site};
use crate::view::{Extent, Owner, View};
use crate::walk::Visitor;

/// Beyond this the driver gives the set up.
const STALE_FATAL: u8 = 96;
/// Beyond this it is time for garbage collection.
const STALE_NOTE: u8 = 80;
/// A bucket's generation is raised by pointers by this much at most, in a set that is in order.
const AHEAD_MAX: u8 = 32;

/// The mark of ubcache's journal entries, if the prio chain is ubcache's own as well.
const OWN_CHAIN: [u8; 9] = *b"ubcache1\x01";
/// The priority by which ubcache promises, in its own prio chain, that a bucket is free.
const PRIORITY_FREE: u16 = 0;

/// Gives every bucket its owner, and looks at every extent.
pub(crate) fn account<V: Visitor + ?Sized>(view: &mut View, visitor: &mut V) {
    let extents = std::mem::take(&mut view.extents);
    let mark = view.journal.newest().map_or([0; 16], |newest| newest.entry.mark);
    let mut places: Vec<(u64, u16, u32)> = Vec::new();
    for (index, extent) in extents.iter().enumerate() {
        let Some(pointer) = extent.pointer() else { continue };
        let Some(stale) = view.staleness(pointer) else { continue };
        let place = Place::cache(&view.geometry, pointer.offset).of_volume(extent.inode(), extent.range());
        if stale > 0 {
            stale_extent(view, extent, stale, place, visitor);
            continue;
        }
        places.push((pointer.offset.0, extent.range().sectors() as u16, index as u32));
        let bucket = pointer.bucket(view.geometry.bucket_sectors);
        let owner = if extent.is_dirty() { Owner::Dirty } else { Owner::Clean };
        if let Some(former) = view.own(bucket, owner) {
            let detail = format!("{} is in a bucket of: {}", owner.word(), former.word());
            visitor.finding(Finding::new(Kind::BucketTwice, place, detail));
        }
    }
    shared_sectors(view, &extents, places, visitor);
    view.extents = extents;
    if !view.complete {
        return;
    }
    generations(view, mark[..9] == OWN_CHAIN, visitor);
    reserves(view, visitor);
}

fn stale_extent<V: Visitor + ?Sized>(view: &View, extent: &Extent, stale: u8, place: Place, visitor: &mut V) {
    let detail =
        || format!("the pointer to volume {} {} is stale by {stale}", extent.inode(), extent.range());
    if stale > STALE_FATAL {
        visitor.finding(Finding::new(Kind::TooStale, place, detail()));
    } else if stale > STALE_NOTE {
        visitor.finding(Finding::new(Kind::NearlyStale, place, detail()));
    }
    let served = view.uuids.get(extent.inode().0 as usize).is_some_and(|slot| slot.is_live());
    if extent.is_dirty() && served {
        let source = if extent.is_replayed() { "journal" } else { "tree" };
        let kind = if view.is_own() { Kind::DirtyLost } else { Kind::DirtyStale };
        visitor.finding(Finding::new(kind, place, format_args!("{}, and dirty by the {source}", detail())));
    }
}

fn shared_sectors<V: Visitor + ?Sized>(
    view: &View,
    extents: &[Extent],
    mut places: Vec<(u64, u16, u32)>,
    visitor: &mut V,
) {
    places.sort_unstable();
    let mut last: Option<(u64, u32)> = None;
    for (offset, sectors, index) in places {
        let end = offset + u64::from(sectors);
        if let (Some((last_end, other)), Some(extent)) = (last, extents.get(index as usize))
            && last_end > offset
            && let Some(other) = extents.get(other as usize)
        {
            let place = Place::cache(&view.geometry, ubcache_format::Sector(offset));
            let detail = format!(
                "volume {} {} and volume {} {} are in the same sectors",
                other.inode(),
                other.range(),
                extent.inode(),
                extent.range()
            );
            let place = place.of_volume(extent.inode(), extent.range());
            visitor.finding(Finding::new(Kind::SectorsTwice, place, detail));
        }
        if last.is_none_or(|(last_end, _)| end > last_end) {
            last = Some((end, index));
        }
    }
}

fn generations<V: Visitor + ?Sized>(view: &View, own_chain: bool, visitor: &mut V) {
    for (index, bucket) in view.buckets.iter().enumerate() {
        let place = || Place::bucket(&view.geometry, BucketNr(index as u32));
        let ahead = bucket.generation.0.wrapping_sub(bucket.stored.0);
        if ahead > AHEAD_MAX {
            let detail = format!(
                "pointers have generation {}, the prio chain has {}",
                bucket.generation, bucket.stored
            );
            visitor.finding(Finding::new(Kind::FarAhead, place(), detail));
        }
        // Metadata that was written since is named by the journal, and read before any promise is relied on.
        let data = matches!(bucket.owner, Owner::Clean | Owner::Dirty);
        if own_chain && data && bucket.priority == PRIORITY_FREE {
            let detail =
                format!("the prio chain says that the bucket is free, it has {}", bucket.owner.word());
            visitor.finding(Finding::new(Kind::PromiseBroken, place(), detail));
        }
    }
}

/// docs/format.md §9.5.
fn reserves<V: Visitor + ?Sized>(view: &View, visitor: &mut V) {
    let geometry = &view.geometry;
    let usable = u64::from(geometry.buckets - geometry.first_bucket);
    let count =
        |owners: &[Owner]| view.buckets.iter().filter(|bucket| owners.contains(&bucket.owner)).count() as u64;
    let unusable = u64::from(geometry.first_bucket);
    let free = count(&[Owner::Free]).saturating_sub(unusable);
    let kept = count(&[Owner::Journal, Owner::Prio, Owner::Uuids, Owner::Node, Owner::Dirty]);
    let (prio, journal) = (u64::from(geometry.prio_buckets()), u64::from(geometry.journal_buckets));
    let least = prio + journal;
    let good = prio + 2 * journal.max(8);
    let detail = format!(
        "{free} of {usable} buckets are free, {kept} can not be given up; at least {least} have to be free, {good} should be"
    );
    let place = Place::on(Site::Cache);
    if free < least {
        visitor.finding(Finding::new(Kind::ReserveGone, place, detail));
    } else if free < good || kept * 10 > usable * 7 {
        visitor.finding(Finding::new(Kind::ReserveSmall, place, detail));
    } else if free * 20 < usable {
        visitor.finding(Finding::new(Kind::ReserveTight, place, detail));
    }
    unknown_volumes(view, visitor);
}

/// Data that no volume shows.
fn unknown_volumes<V: Visitor + ?Sized>(view: &View, visitor: &mut V) {
    let mut start = 0;
    while let Some(first) = view.extents.get(start) {
        let inode = first.inode();
        let length = view.extents[start..].partition_point(|extent| extent.inode() == inode);
        let extents = &view.extents[start..start + length];
        start += length.max(1);
        let slot = view.uuids.get(inode.0 as usize).copied().unwrap_or_default();
        if slot.is_live() {
            continue;
        }
        let live = || extents.iter().filter(|extent| view.live(extent).is_some());
        let sum = |dirty: bool| -> u64 {
            live().filter(|extent| extent.is_dirty() == dirty).map(|extent| extent.range().sectors()).sum()
        };
        let (dirty, clean) = (sum(true), sum(false));
        let state =
            if slot.uuid == Uuid::INVALIDATED { "was detached" } else { "is not in the volume table" };
        let all = SectorRange::from_bounds(
            first.range().start,
            extents.last().map_or(first.range().end, |e| e.range().end),
        );
        let place = Place::on(Site::Cache).of_volume(inode, all);
        if dirty > 0 {
            let detail = format!("{dirty} dirty sectors of volume {inode}, which {state}");
            visitor.finding(Finding::new(Kind::DirtyOrphan, place, detail));
        }
        if clean > 0 && slot.is_free() {
            let detail = format!("{clean} sectors of volume {inode}, which {state}");
            visitor.finding(Finding::new(Kind::VolumeUnknown, place, detail));
        }
    }
}
