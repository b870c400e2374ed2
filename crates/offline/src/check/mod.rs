//! The check of a whole set: the walk's findings, the backing devices' superblocks, and whether
//! clean extents are what the backing devices have.
//!
//! Every image that a power failure leaves of a running set is free of errors: a torn end of the
//! journal, unwritten leaves and pointers ahead are in order. Only reads; nothing on any device is
//! changed.

mod backing;
mod collector;
mod data;

use ubcache_env::Device;

use self::backing::{check_absent, check_backing, check_bounds, inside};
use self::collector::Collector;
use self::data::{Comparison, read_dirty};
use crate::io::progress::Watcher;
use crate::set::{Lost, Owner, Report, Stats, View, VolumeTotals};
use crate::walk::{Visitor, WalkOptions, walk, walk_with};

/// Options of a [`check()`].
#[derive(Copy, Clone)]
pub struct CheckOptions<'a> {
    /// Reads dirty data, and compares clean data with the backing devices. A pack has no data:
    /// `false` checks what can be checked of one.
    pub data: bool,
    /// Returns the [`View`] of the set, which takes memory for all extents.
    pub view: bool,
    /// Progress of the check.
    pub watcher: &'a dyn Watcher,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        CheckOptions { data: true, view: false, watcher: &() }
    }
}

/// Result of a [`check()`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// The findings.
    pub report: Report,
    /// The set, if it was asked for and its superblock is readable.
    pub view: Option<View>,
    /// Intervals of keys whose part of the tree could not be read.
    pub lost: Vec<Lost>,
}

/// Checks a set. `backing` are some or all of its backing devices. A `visitor` sees everything that
/// is read.
///
/// Without backing devices, visitor and view, extents are added up and not kept in memory, unless
/// one of them needs a finding.
pub async fn check<D: Device>(
    cache: &D,
    backing: &[&D],
    visitor: Option<&mut dyn Visitor>,
    options: CheckOptions<'_>,
) -> Checked {
    if backing.is_empty()
        && visitor.is_none()
        && !options.view
        && let Some(report) = check_totals(cache, options.watcher).await
    {
        return Checked { report, view: None, lost: Vec::new() };
    }
    let mut nobody = ();
    let mut visitor = Collector::new(visitor.unwrap_or(&mut nobody));
    let view = walk(cache, &mut visitor, options.watcher).await;
    if let Some(view) = &view {
        check_devices(view, cache, backing, &mut visitor, options).await;
        let stats = stats(view, visitor.report.stats.compared_sectors);
        visitor.report.stats = stats;
    }
    let report = visitor.report;
    match view {
        Some(view) if options.view => Checked { report, lost: view.lost.clone(), view: Some(view) },
        view => {
            Checked { report, lost: view.map(|view| view.lost).unwrap_or_default(), view: None }
        }
    }
}

/// Checks a set by the totals of its extents. Returns nothing if an extent needs a finding.
async fn check_totals<D: Device>(cache: &D, watcher: &dyn Watcher) -> Option<Report> {
    let mut nobody = ();
    let mut visitor = Collector::new(&mut nobody);
    let totals_only = WalkOptions { totals_only: true, ..WalkOptions::default() };
    if let Some(view) = walk_with(totals_only, cache, &mut visitor, watcher).await {
        let is_named = |volume: &VolumeTotals| {
            let slot = view.uuids.get(volume.inode.0 as usize);
            slot.is_some_and(|slot| {
                slot.is_live() && !(slot.flash_only && volume.clean_sectors > 0)
            })
        };
        if view.aborted || !view.complete || !view.volumes.iter().all(is_named) {
            return None;
        }
        check_absent(&view, &vec![false; view.uuids.len()], &mut visitor);
        visitor.report.stats = stats(&view, 0);
    }
    Some(visitor.report)
}

/// Checks the backing devices, and the data of the cache against them.
async fn check_devices<D: Device>(
    view: &View,
    cache: &D,
    backing: &[&D],
    visitor: &mut Collector<'_>,
    CheckOptions { data, watcher, .. }: CheckOptions<'_>,
) {
    let mut given = vec![false; view.uuids.len()];
    for (index, device) in backing.iter().enumerate() {
        let attached = check_backing(view, *device, index, visitor).await;
        if let Some((inode, superblock, apart)) = attached {
            if let Some(given) = given.get_mut(inode.0 as usize) {
                *given = true;
            }
            let inside = inside(*device, &superblock);
            check_bounds(view, inode, inside, visitor);
            if data && !apart {
                let comparison = Comparison { view, cache, backing: *device, index, inode, inside };
                comparison.run(visitor, watcher).await;
            }
        }
    }
    check_absent(view, &given, visitor);
    if data {
        read_dirty(view, cache, &given, visitor, watcher).await;
    }
}

fn stats(view: &View, compared_sectors: u64) -> Stats {
    let first = view.geometry.first_bucket as usize;
    let free = view.buckets.iter().skip(first).filter(|bucket| bucket.owner == Owner::Free);
    let mut stats = Stats {
        journal_entries: view.journal.entries.len() as u64,
        nodes: view.nodes,
        compared_sectors,
        free_buckets: free.count() as u64,
        buckets: view.buckets.len() as u64,
        oldest_data_pointer: view.ages.extents,
        oldest_node_pointer: view.ages.nodes,
        ..Stats::default()
    };
    for volume in &view.volumes {
        stats.extents += volume.extents;
        stats.cached_sectors += volume.clean_sectors + volume.dirty_sectors;
        stats.dirty_sectors += volume.dirty_sectors;
    }
    stats
}
