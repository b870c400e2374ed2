//! [`walk()`]: the parts of a set in the order in which the format names them
//! (docs/reference/format.md §12).

use std::sync::Arc;

use ubcache_env::Device;
use ubcache_format::{Generation, SUPERBLOCK_SECTOR, Superblock};

use super::journal::{Reading, named_by, read_journal};
use super::leaf::Replay;
use super::owners::assign_owners;
use super::prio::read_prios;
use super::superblock::{missing, read_superblock, short};
use super::tree::{Tree, walk_tree};
use super::visitor::Visitor;
use super::volume_table::read_table;
use crate::io::buffer_pool::BufferPool;
use crate::io::prefetched::Prefetched;
use crate::io::progress::Watcher;
use crate::io::read_ahead::{BUFFER_POOL_BYTES, ReadOptions};
use crate::io::thread_pool::ThreadPool;
use crate::set::{Bucket, Extent, Finding, FindingKind, Location, Owner, Site, View};

/// Walks over the set of a cache device, which is only read. Returns `None` if the superblock can't
/// be read.
pub async fn walk<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> Option<View> {
    walk_with(WalkOptions::default(), cache, visitor, watcher).await
}

/// Walks with options.
pub(crate) async fn walk_with<D: Device, V: Visitor + ?Sized>(
    options: WalkOptions,
    cache: &D,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> Option<View> {
    let superblock = match read_superblock(cache, Site::Cache).await {
        Ok(superblock) if superblock.is_cache() => superblock,
        Ok(superblock) => {
            let detail = format!("a backing device (superblock version {})", superblock.version);
            visitor.finding(Finding::new(
                FindingKind::WrongKind,
                Location::on(Site::Cache),
                detail,
            ));
            return None;
        }
        Err(finding) => {
            visitor.finding(finding);
            return None;
        }
    };
    Some(walk_from(cache, superblock, options, visitor, watcher).await)
}

/// Options of a walk.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct WalkOptions {
    /// Continues behind damage as far as anything can be read, and keeps what is found there apart
    /// (`Uncertainty`).
    pub salvage: bool,
    /// Adds extents up instead of keeping them. The walk stops if an extent needs a finding.
    pub totals_only: bool,
}

impl WalkOptions {
    /// Reads everything that is readable.
    pub const SALVAGE: WalkOptions = WalkOptions { salvage: true, totals_only: false };
}

/// The walk from a superblock on.
pub(crate) async fn walk_from<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    superblock: Superblock,
    WalkOptions { salvage, totals_only }: WalkOptions,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> View {
    let pool = ThreadPool::new();
    let buffers = BufferPool::new(BUFFER_POOL_BYTES);
    let prefetched = Prefetched::default();
    let options = ReadOptions {
        pool: &pool,
        buffers: &buffers,
        prefetched: &prefetched,
        around_errors: salvage,
    };
    visitor.superblock(&superblock);
    if missing(cache, &superblock) > 0 {
        visitor.finding(short(cache, &superblock));
    }
    let mut view = View::new(superblock);
    let geometry = view.geometry;
    view.buckets = vec![
        Bucket {
            stored: Generation(0),
            generation: Generation(0),
            priority: 0,
            owner: Owner::Free,
            known: false,
            named: false,
        };
        geometry.buckets as usize
    ];
    if !view.superblock.sync() {
        let place = Location { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Location::on(Site::Cache) };
        visitor.finding(Finding::new(
            FindingKind::NeverStarted,
            place,
            "the cache has never been started",
        ));
        return view;
    }
    for index in 0..geometry.journal_buckets {
        let _ = view.assign_bucket(geometry.journal_bucket(index), Owner::Journal);
    }
    let discard = view.superblock.discard();
    let reading = Reading { discard, salvage };
    view.journal = read_journal(cache, &geometry, reading, (options, watcher), &mut |finding| {
        visitor.finding(finding)
    })
    .await;
    view.uncertainty.journal = view.journal.missing;
    visitor.journal(&geometry, &view.journal);
    view.complete &= !view.journal.incomplete;
    let Some(newest) = view.journal.newest() else { return view };
    let (newest, version) = (newest.entry.clone(), newest.version);
    prefetched.read_all(cache, named_by(&geometry, &newest)).await;
    read_prios(cache, &prefetched, &mut view, newest.prio_bucket, visitor, watcher).await;
    read_table(cache, &prefetched, &mut view, (&newest.uuid_bucket, version), salvage, visitor)
        .await;
    let replay = Arc::new(take_replay(&mut view, visitor));
    let tree = Tree { root: &newest.root, level: newest.root_level, replay, salvage, totals_only };
    walk_tree(cache, &mut view, &tree, visitor, (options, watcher)).await;
    if view.aborted {
        return view;
    }
    // Raised only now: by what the tree says, a key of the journal is not ahead of itself.
    let entries = std::mem::take(&mut view.journal.entries);
    for key in entries.iter().rev().flat_map(|found| &found.entry.keys) {
        if key.check_journaled(&geometry).is_ok() {
            // Totals were added up with other generations.
            view.aborted |= view.raise_key(key) && view.totals.is_some();
        }
    }
    view.journal.entries = entries;
    if !view.aborted {
        assign_owners(&mut view, &pool, visitor);
    }
    view
}

/// The extents of the replay range.
fn take_replay<V: Visitor + ?Sized>(view: &mut View, visitor: &mut V) -> Replay {
    let geometry = view.geometry;
    let mut extents = Vec::new();
    for found in &view.journal.entries {
        let bucket = geometry.journal_bucket(found.place.index);
        let place = Location::bucket(&geometry, bucket).plus(u64::from(found.place.offset));
        for key in &found.entry.keys {
            match key.check_journaled(&geometry) {
                Ok(()) => extents.push(Extent::new(key, true)),
                Err(error) => {
                    let detail = format!("entry {}: {error}", found.place.seq);
                    visitor.finding(Finding::new(
                        FindingKind::JournalKey,
                        place.of_volume(key.inode, key.range()),
                        detail,
                    ));
                    view.complete = false;
                    view.uncertainty.journal = view.uncertainty.journal.max(Some(found.place.seq));
                }
            }
        }
    }
    Replay::new(extents)
}
