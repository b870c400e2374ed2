//! Separates the certain part of a damaged set from the rest.
//!
//!
//! Clean data is never needed: the backing device has it. A clean extent counts as "there is
//! nothing dirty here".

use std::collections::BTreeMap;

use ubcache_format::{Generation, Inode, Key, Sector, combine_leaf};

use super::claims::{Claim, pieces};
use super::region::Region;
use super::uncertain::Uncertain;
use crate::set::{END, Extent, Lost, Owner, START, View};

/// Contents of the repaired set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The extents of the new tree, in order.
    pub keep: Vec<Key>,
    /// Parts that are not certain.
    pub uncertain: Vec<Uncertain>,
    /// Clean sectors that are left out.
    pub clean_dropped: u64,
    /// The generations of all buckets.
    pub generations: Vec<Generation>,
}

/// Separates certain extents from others among those that a salvage found.
pub(crate) fn classify(view: &View, claims: &[Claim], use_uncertain: bool) -> Plan {
    let classifier = Classifier::new(view, view.is_own());
    let mut certain: Vec<Extent> = Vec::new();
    let mut all_claims: Vec<Claim> = claims.to_vec();
    let mut doubtful = classifier.doubtful.clone();
    for (index, extent) in view.extents.iter().enumerate() {
        if classifier.is_certain(index, extent) {
            certain.push(*extent);
        } else {
            doubtful.push(Region::range(extent.inode(), extent.range()));
            all_claims.push(Claim { extent: *extent });
        }
    }
    all_claims.extend(view.uncertainty.claims.iter().map(|(extent, _)| Claim { extent: *extent }));
    let covered =
        Region::of(certain.iter().map(|extent| Region::range(extent.inode(), extent.range())));
    let doubtful = Region::of(doubtful).without(&covered);

    let mut plan = Plan {
        generations: view.buckets.iter().map(|bucket| bucket.generation).collect(),
        ..Plan::default()
    };
    for extent in &certain {
        let Some(pointer) = view.live(extent) else { continue };
        match kept(view, extent) {
            Some(dirty) => {
                plan.keep.push(Key::extent(extent.inode(), extent.range(), dirty, pointer))
            }
            None => plan.clean_dropped += extent.range().sectors(),
        }
    }
    all_claims.retain(|claim| {
        let known = claim.extent.pointer().and_then(|pointer| view.bucket(pointer));
        kept(view, &claim.extent) == Some(true)
            && known.is_some_and(|bucket| !bucket.known || view.live(&claim.extent).is_some())
    });
    plan.uncertain = pieces(view, &doubtful, all_claims);
    if use_uncertain {
        take_uncertain(view, &mut plan);
    }
    plan
}

/// Returns whether an extent is kept, and if so, whether as dirty.
fn kept(view: &View, extent: &Extent) -> Option<bool> {
    match view.uuids.get(extent.inode().0 as usize) {
        // Data of a flash-only volume has no other copy, however it is marked.
        Some(slot) if slot.is_live() && slot.flash_only => Some(true),
        Some(_) => extent.is_dirty().then_some(true),
        // It is not known whether the volume has a backing device.
        None => Some(extent.is_dirty()),
    }
}

/// Adds uncertain data of which one version is known.
fn take_uncertain(view: &View, plan: &mut Plan) {
    let mut places: BTreeMap<u64, u64> = plan
        .keep
        .iter()
        .filter_map(|key| Some((key.pointer()?.offset.0, u64::from(key.sectors))))
        .collect();
    let mut new: Vec<Key> = Vec::new();
    for uncertain in &plan.uncertain {
        let &[pointer] = uncertain.places.as_slice() else { continue };
        let Some(bucket) = view.bucket(pointer) else { continue };
        let number = pointer.bucket(view.geometry.bucket_sectors).0 as usize;
        let Some(generation) = plan.generations.get_mut(number) else { continue };
        let data = matches!(bucket.owner, Owner::Free | Owner::Clean | Owner::Dirty);
        let alone = bucket.owner == Owner::Free && generation.staleness_of(pointer.generation) == 0;
        let (start, end) = (pointer.offset.0, pointer.offset.0 + uncertain.range.sectors());
        let free =
            places.range(..end).next_back().is_none_or(|(at, sectors)| at + sectors <= start);
        if !data || !free || !(alone || *generation == pointer.generation) {
            continue;
        }
        *generation = pointer.generation;
        places.insert(start, end - start);
        new.push(Key::extent(uncertain.inode, uncertain.range, true, pointer));
    }
    plan.keep.extend(new);
    plan.keep.sort_by_key(|key| (key.inode, key.start()));
}

struct Classifier<'a> {
    view: &'a View,
    own: bool,
    /// Keys of the newest part of the journal, if an older part is missing.
    sure: Option<Vec<Key>>,
    tree: Region,
    /// Extents that share their place with another one.
    shared: Vec<bool>,
    doubtful: Vec<((Inode, Sector), (Inode, Sector))>,
}

impl<'a> Classifier<'a> {
    fn new(view: &'a View, own: bool) -> Self {
        let uncertainty = &view.uncertainty;
        let missing =
            uncertainty.journal.or_else(|| view.journal.newest().is_none().then_some(u64::MAX));
        let sure = missing.map(|missing| {
            let newer = view.journal.entries.iter().filter(|found| found.place.seq > missing);
            combine_leaf(newer.map(|found| found.entry.keys.clone()).collect())
        });
        let tree = uncertainty.tree.iter().map(Region::interval);
        let mut doubtful: Vec<_> =
            view.lost.iter().chain(&uncertainty.tree).map(Region::interval).collect();
        if sure.is_some() {
            doubtful.push(Region::interval(&Lost { after: START, upto: END }));
        }
        // Data that was given away is gone, if it was ubcache that said so.
        let gone = view.extents.iter().filter(|extent| {
            let away = extent.pointer().is_some() && view.live(extent).is_none();
            let unknown = extent
                .pointer()
                .and_then(|pointer| view.bucket(pointer))
                .is_some_and(|bucket| !bucket.known);
            extent.is_dirty() && away && (own || unknown)
        });
        doubtful.extend(gone.map(|extent| Region::range(extent.inode(), extent.range())));
        Classifier { view, own, sure, tree: Region::of(tree), shared: shared(view), doubtful }
    }

    fn is_certain(&self, index: usize, extent: &Extent) -> bool {
        let view = self.view;
        let named = match &self.sure {
            Some(sure) => {
                let next = sure.partition_point(|key| {
                    key.position() <= (extent.inode(), extent.range().start)
                });
                sure.get(next).is_some_and(|key| {
                    key.inode == extent.inode()
                        && key.range().covers(&extent.range())
                        && Extent::new(&key.cut_to(extent.range()), true) == *extent
                })
            }
            None => extent.is_replayed() || !self.tree.touches(extent.inode(), extent.range()),
        };
        let Some(pointer) = extent.pointer() else { return named };
        let Some(bucket) = view.bucket(pointer) else { return false };
        if view.live(extent).is_none() {
            // A stale extent hides older data, and has no other effect.
            return named && !(extent.is_dirty() && (self.own || !bucket.known));
        }
        let data = matches!(bucket.owner, Owner::Free | Owner::Clean | Owner::Dirty);
        let counts = kept(view, extent).is_some();
        named && (!counts || data && !self.shared[index] && (bucket.known || self.own))
    }
}

/// Marks the extents that share sectors of the cache device with another one.
fn shared(view: &View) -> Vec<bool> {
    let mut shared = vec![false; view.extents.len()];
    let mut places: Vec<(u64, u64, usize)> = view
        .extents
        .iter()
        .enumerate()
        .filter_map(|(index, extent)| {
            let start = view.live(extent)?.offset.0;
            Some((start, start + extent.range().sectors(), index))
        })
        .collect();
    places.sort_unstable();
    let mut last: Option<(u64, usize)> = None;
    for (start, end, index) in places {
        if let Some((last_end, other)) = last
            && last_end > start
        {
            shared[index] = true;
            shared[other] = true;
        }
        if last.is_none_or(|(last_end, _)| end > last_end) {
            last = Some((end, index));
        }
    }
    shared
}
