//! Owners of buckets, staleness of pointers and free buckets, which follow from all extents
//! together.

use ubcache_format::{BucketNr, SectorRange, Uuid};

use super::totals::totals_of;
use super::visitor::Visitor;
use crate::io::thread_pool::ThreadPool;
use crate::set::{
    Extent, Finding, FindingKind, Location, Owner, STALE_FATAL, STALE_NOTE, Site, View,
    VolumeTotals,
};

/// A bucket's generation is raised by pointers by this much at most, in a set that is in order.
const AHEAD_MAX: u8 = 32;

/// The priority by which ubcache promises, in its own prio chain, that a bucket is free.
const PRIORITY_FREE: u16 = 0;

/// Assigns every bucket to its owner, and checks every extent.
pub(crate) fn assign_owners<V: Visitor + ?Sized>(
    view: &mut View,
    pool: &ThreadPool,
    visitor: &mut V,
) {
    let added = view.totals.take();
    let kept = added.is_none();
    match added.or_else(|| totals_of(view, pool)) {
        Some(totals) if !totals.overlap && totals.assign_owners(&mut view.buckets) => {
            view.ages.extents = totals.oldest;
            view.volumes = totals.volumes;
        }
        _ if kept => one_by_one(view, visitor),
        _ => {
            view.aborted = true;
            return;
        }
    }
    if !view.complete {
        return;
    }
    let own_chain = view.journal.last_run.stamp().is_some_and(|stamp| stamp.own_chain);
    generations(view, own_chain, visitor);
    reserves(view, visitor);
}

/// Checks extents one by one, and against each other.
fn one_by_one<V: Visitor + ?Sized>(view: &mut View, visitor: &mut V) {
    let mut owners: Vec<Owner> = view.buckets.iter().map(|bucket| bucket.owner).collect();
    let mut oldest = 0;
    view.volumes = owners_and_sums(view, &mut owners, &mut oldest, visitor);
    view.ages.extents = oldest;
    for (bucket, owner) in view.buckets.iter_mut().zip(owners) {
        bucket.owner = owner;
    }
    shared_sectors(view, visitor);
}

fn owners_and_sums<V: Visitor + ?Sized>(
    view: &View,
    owners: &mut [Owner],
    oldest: &mut u8,
    visitor: &mut V,
) -> Vec<VolumeTotals> {
    let mut volumes: Vec<VolumeTotals> = Vec::new();
    for extent in &view.extents {
        let Some(pointer) = extent.pointer() else { continue };
        let number = pointer.bucket(view.geometry.bucket_sectors).0 as usize;
        let (Some(bucket), Some(current)) = (view.buckets.get(number), owners.get_mut(number))
        else {
            continue;
        };
        let place = || {
            Location::cache(&view.geometry, pointer.offset)
                .of_volume(extent.inode(), extent.range())
        };
        let stale = view.reach.staleness_of(bucket.generation, pointer.generation);
        if stale > 0 {
            *oldest = stale.max(*oldest);
            stale_extent(view, extent, stale, place(), visitor);
            continue;
        }
        if volumes.last().is_none_or(|last| last.inode != extent.inode()) {
            volumes.push(VolumeTotals { inode: extent.inode(), ..VolumeTotals::default() });
        }
        let sectors = extent.range().sectors();
        let owner = if extent.is_dirty() { Owner::Dirty } else { Owner::Clean };
        if let Some(totals) = volumes.last_mut() {
            totals.extents += 1;
            totals.dirty_sectors += if extent.is_dirty() { sectors } else { 0 };
            totals.clean_sectors += if extent.is_dirty() { 0 } else { sectors };
        }
        if let Some(former) = current.assign(owner) {
            let detail = format!("{} is in a bucket of: {}", owner.word(), former.word());
            visitor.finding(Finding::new(FindingKind::BucketTwice, place(), detail));
        }
    }
    volumes
}

fn stale_extent<V: Visitor + ?Sized>(
    view: &View,
    extent: &Extent,
    stale: u8,
    place: Location,
    visitor: &mut V,
) {
    let detail = || {
        format!("the pointer to volume {} {} is stale by {stale}", extent.inode(), extent.range())
    };
    if stale > STALE_FATAL {
        visitor.finding(Finding::new(FindingKind::TooStale, place, detail()));
    } else if stale > STALE_NOTE {
        visitor.finding(Finding::new(FindingKind::NearlyStale, place, detail()));
    }
    let served = view.uuids.get(extent.inode().0 as usize).is_some_and(|slot| slot.is_live());
    if extent.is_dirty() && served {
        let source = if extent.is_replayed() { "journal" } else { "tree" };
        let kind = if view.is_own() { FindingKind::DirtyLost } else { FindingKind::DirtyStale };
        visitor.finding(Finding::new(
            kind,
            place,
            format_args!("{}, and dirty by the {source}", detail()),
        ));
    }
}

fn shared_sectors<V: Visitor + ?Sized>(view: &View, visitor: &mut V) {
    let extents = &view.extents;
    let mut places: Vec<(u64, u16, u32)> = extents
        .iter()
        .zip(0..)
        .filter_map(|(extent, index)| {
            Some((view.live(extent)?.offset.0, extent.range().sectors() as u16, index))
        })
        .collect();
    places.sort_unstable();
    let mut last: Option<(u64, u32)> = None;
    for (offset, sectors, index) in places {
        let end = offset + u64::from(sectors);
        if let (Some((last_end, other)), Some(extent)) = (last, extents.get(index as usize))
            && last_end > offset
            && let Some(other) = extents.get(other as usize)
        {
            let place = Location::cache(&view.geometry, ubcache_format::Sector(offset));
            let detail = format!(
                "volume {} {} and volume {} {} are in the same sectors",
                other.inode(),
                other.range(),
                extent.inode(),
                extent.range()
            );
            let place = place.of_volume(extent.inode(), extent.range());
            visitor.finding(Finding::new(FindingKind::SectorsTwice, place, detail));
        }
        if last.is_none_or(|(last_end, _)| end > last_end) {
            last = Some((end, index));
        }
    }
}

fn generations<V: Visitor + ?Sized>(view: &View, own_chain: bool, visitor: &mut V) {
    for (index, bucket) in view.buckets.iter().enumerate() {
        let place = || Location::bucket(&view.geometry, BucketNr(index as u32));
        let ahead = bucket.generation.0.wrapping_sub(bucket.stored.0);
        if ahead > AHEAD_MAX {
            let detail = format!(
                "pointers have generation {}, the prio chain has {}",
                bucket.generation, bucket.stored
            );
            visitor.finding(Finding::new(FindingKind::FarAhead, place(), detail));
        }
        // Metadata that was written since is named by the journal, and read before any promise is
        // relied on.
        let data = matches!(bucket.owner, Owner::Clean | Owner::Dirty);
        if own_chain && data && bucket.priority == PRIORITY_FREE {
            let detail =
                format!("the prio chain lists the bucket as free, it has {}", bucket.owner.word());
            visitor.finding(Finding::new(FindingKind::PromiseBroken, place(), detail));
        }
    }
}

/// docs/reference/format.md §9.5.
fn reserves<V: Visitor + ?Sized>(view: &View, visitor: &mut V) {
    let geometry = &view.geometry;
    let usable = u64::from(geometry.buckets - geometry.first_bucket);
    let count = |owners: &[Owner]| {
        view.buckets.iter().filter(|bucket| owners.contains(&bucket.owner)).count() as u64
    };
    let unusable = u64::from(geometry.first_bucket);
    let free = count(&[Owner::Free]).saturating_sub(unusable);
    let kept = count(&[Owner::Journal, Owner::Prio, Owner::Uuids, Owner::Node, Owner::Dirty]);
    let (prio, journal) = (u64::from(geometry.prio_buckets()), u64::from(geometry.journal_buckets));
    let least = prio + journal;
    let good = prio + 2 * journal.max(8);
    let detail = format!(
        "{free} of {usable} buckets are free, {kept} can not be freed; at least {least} have to \
         be free, {good} should be"
    );
    let place = Location::on(Site::Cache);
    if free < least {
        visitor.finding(Finding::new(FindingKind::ReserveGone, place, detail));
    } else if free < good || kept * 10 > usable * 7 {
        visitor.finding(Finding::new(FindingKind::ReserveSmall, place, detail));
    } else if free * 20 < usable {
        visitor.finding(Finding::new(FindingKind::ReserveTight, place, detail));
    }
    unknown_volumes(view, visitor);
}

/// Data that no volume shows.
fn unknown_volumes<V: Visitor + ?Sized>(view: &View, visitor: &mut V) {
    for &VolumeTotals { inode, clean_sectors: clean, dirty_sectors: dirty, .. } in &view.volumes {
        let slot = view.uuids.get(inode.0 as usize).copied().unwrap_or_default();
        if slot.is_live() {
            continue;
        }
        let extents = view.extents_of(inode);
        let state = if slot.uuid == Uuid::INVALIDATED {
            "was detached"
        } else {
            "is not in the volume table"
        };
        let all = match (extents.first(), extents.last()) {
            (Some(first), Some(last)) => {
                SectorRange::from_bounds(first.range().start, last.range().end)
            }
            _ => continue,
        };
        let place = Location::on(Site::Cache).of_volume(inode, all);
        if dirty > 0 {
            let detail = format!("{dirty} dirty sectors of volume {inode}, which {state}");
            // Removing a volume leaves the slot dead, not empty.
            let kind =
                if slot.is_free() { FindingKind::SlotLost } else { FindingKind::DirtyOrphan };
            visitor.finding(Finding::new(kind, place, detail));
        }
        if clean > 0 && slot.is_free() {
            let detail = format!("{clean} sectors of volume {inode}, which {state}");
            visitor.finding(Finding::new(FindingKind::VolumeUnknown, place, detail));
        }
    }
}
