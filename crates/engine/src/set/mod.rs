//! A cache set: one cache device, its index, journal and buckets, and the volumes on it.
//!
//! | module | holds |
//! |---|---|
//! | [`open`] | starting: superblock, journal, prio chain, tree, replay |
//! | [`larger_cache`] | a cache device that becomes larger (A10) |
//! | [`smaller_cache`] | a cache that becomes smaller while its set runs (A12) |
//! | [`handover`] | dropping the clean data of a set that somebody else left (H2) |
//! | [`former_owner`] | the owner that a set had before |
//! | [`initialize`] | making a formatted device a set |
//! | [`absent_disks`] | backing devices that are not here, and forgetting them (A7) |
//! | [`attach`] | backing devices: attaching, states, the volume table |
//! | [`attributes`] | what a user sets and reads by bcache's names |
//! | [`detach`] | parting a volume from the set while it is served, and taking it up again |
//! | [`flash`] | flash-only volumes: making, serving, resizing, removing them (Y2, Y3) |
//! | [`end_or_move`] | volumes that end, or move to another set (A8), while the set goes on |
//! | [`move_backing`] | a volume that moves to another backing device, while it is served (A11) |
//! | [`move_copy`] | the copy to that device (A11) |
//! | [`resize`] | backing devices that become longer or shorter while they are served (A6) |
//! | [`run_numbers`] | which cache and which backing devices are of one run (A5) |
//! | [`witness`] | disks without a superblock: which data counts at a start (A9) |
//! | [`shorter_disk`] | backing devices that have become shorter (A6) |
//! | [`stop`] | stopping cleanly |
//! | [`callbacks`] | calls of lower parts to higher ones: a failed flush fails the set (J3) |

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use former_owner::TakenOver;
use ubcache_env::local::{Lock, Notify};
use ubcache_env::{Env, KeptMemory, Task};
use ubcache_format::{Inode, JournalSeq, Superblock};

use crate::alloc::allocator::Allocator;
use crate::bypass::congestion::Congestion;
use crate::context::Context;
use crate::errors::EngineError;
use crate::events::SetEvent;
use crate::flash::FlashVolume;
use crate::gc::Gc;
use crate::index::Index;
use crate::inspect::SetView;
use crate::journal::Journal;
use crate::journal::kept::KeptState;
use crate::memory_held::Held;
use crate::rules::Rules;
use crate::settings::SetSettings;
use crate::stats::maps::BucketMap;
use crate::stats::reuse::ReuseCurve;
use crate::stats::{SetStatus, StopStep};
use crate::tuning::Tuning;
use crate::volume::CachedVolume;
use crate::volume_table::VolumeTable;

pub(crate) mod absent_disks;
pub(crate) mod attach;
mod attributes;
mod callbacks;
mod detach;
mod end_or_move;
pub(crate) mod flash;
pub(crate) mod former_owner;
mod handover;
mod initialize;
mod larger_cache;
pub(crate) mod move_backing;
pub(crate) mod move_copy;
mod open;
pub(crate) mod resize;
pub(crate) mod run_numbers;
mod shorter_disk;
pub(crate) mod smaller_cache;
mod stop;
mod witness;

/// Options for opening a set.
#[derive(Clone, Debug, Default)]
pub struct SetOptions {
    /// Attributes as they are after the start; all others have their defaults.
    pub settings: SetSettings,
    /// Limits and sizes.
    pub tuning: Tuning,
    /// Keep the clean data of a set that the Linux driver ran last, or that a tool laid down again.
    /// It may be stale: the driver leaves stale data behind after a power failure, and sometimes
    /// without one (docs/internals/coherence.md §7). Without this, all of it is dropped at the
    /// first start after the driver or the tool.
    pub keep_clean: bool,
    /// The superblocks of the backing devices that are going to be attached without a
    /// [`Choice`](crate::Choice): if one of them is not of one run with the cache, the set is not
    /// opened, and nothing is changed on any device.
    pub expected: Vec<Superblock>,
    /// Memory that outlives the process, of this set alone and of [`crate::KEPT_BYTES`]: with it, a
    /// start after the death of the process loses no request that was answered (rule V3).
    pub kept: Option<Rc<dyn KeptMemory>>,
    /// The rule that is broken, for the simulator: none.
    pub rules: Rules,
}

/// Content of the journal at the start. After a clean stop, one entry without a record.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct Replayed {
    /// Entries that had to be read.
    pub entries: u64,
    /// Changes of the index in them.
    pub records: u64,
}

struct Set<E: Env> {
    context: Context<E>,
    superblock: RefCell<Superblock>,
    superblock_lock: Lock,
    journal: Rc<Journal<E>>,
    allocator: Rc<Allocator<E>>,
    index: Rc<Index<E>>,
    table: Rc<VolumeTable<E>>,
    attach_lock: Lock,
    volumes: RefCell<BTreeMap<Inode, Weak<CachedVolume<E>>>>,
    /// Flash-only volumes that are served.
    flash: RefCell<BTreeMap<Inode, Weak<FlashVolume<E>>>>,
    /// Volumes that were detached from the set, and are served all the same.
    detached: RefCell<Vec<Weak<CachedVolume<E>>>>,
    congestion: Rc<Congestion>,
    gc: Rc<Gc<E>>,
    /// The superblock that the cache device has, if that is known.
    saved_superblock: RefCell<Option<Superblock>>,
    /// A task is about to save it.
    saving: Cell<bool>,
    /// The journal entry that has the newest setting that is kept there.
    mark_at: Cell<JournalSeq>,
    /// The former owner of the set, if this start took it over.
    taken_over: Cell<Option<TakenOver>>,
    replayed: Cell<Replayed>,
    kept_state: Cell<Option<KeptState>>,
    stopping_at: Cell<Option<StopStep>>,
    /// The number of buckets that the set has from its clean stop on, if it grows.
    grows_to: Cell<Option<u32>>,
    /// The cache is becoming smaller.
    shrinks: Cell<bool>,
    /// All buckets are counted, or the set fails or stops.
    state_changed: Notify,
    tasks: RefCell<Vec<Task>>,
}

impl<E: Env> Set<E> {
    /// The volumes that are served, attached or not.
    pub(crate) fn served(&self) -> Vec<Rc<CachedVolume<E>>> {
        let mut served = self.attached();
        served.extend(self.detached.borrow().iter().filter_map(Weak::upgrade));
        served
    }

    /// The attached volumes.
    pub(crate) fn attached(&self) -> Vec<Rc<CachedVolume<E>>> {
        self.volumes.borrow().values().filter_map(Weak::upgrade).collect()
    }

    #[track_caller]
    pub(crate) fn spawn(
        self: &Rc<Self>,
        priority: ubcache_env::Priority,
        task: impl Future<Output = ()> + 'static,
    ) {
        let task = self.context.env.spawn(priority, task);
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }
}

/// A handle to a running cache set. Cheap to clone.
pub struct CacheSet<E: Env> {
    set: Rc<Set<E>>,
}

impl<E: Env> Clone for CacheSet<E> {
    fn clone(&self) -> Self {
        CacheSet { set: self.set.clone() }
    }
}

impl<E: Env> CacheSet<E> {
    /// The former owner of the set, and what this start dropped; `None` if ubcache ran the set
    /// last.
    pub fn taken_over(&self) -> Option<TakenOver> {
        self.set.taken_over.get()
    }

    /// Waits for the next event. One task at a time.
    pub async fn next_event(&self) -> SetEvent {
        self.set.context.events.next().await
    }

    /// The next event, if there is one.
    pub fn take_event(&self) -> Option<SetEvent> {
        self.set.context.events.take()
    }

    /// The journal as this start found it.
    pub fn replayed(&self) -> Replayed {
        self.set.replayed.get()
    }

    /// The kept memory as this start found it; `None` without one.
    pub fn kept_state(&self) -> Option<KeptState> {
        self.set.kept_state.get()
    }

    /// The step of the stop that is under way.
    pub fn stopping_at(&self) -> Option<StopStep> {
        self.set.stopping_at.get()
    }

    /// Bytes of the cache device behind the last bucket, if there is room for more buckets.
    pub fn unused_bytes(&self) -> u64 {
        let geometry = &self.set.context.geometry;
        let used = u64::from(geometry.buckets) * geometry.bucket_bytes();
        let unused = (self.set.context.cache.limits().sectors * ubcache_format::SECTOR_BYTES)
            .saturating_sub(used);
        if unused < geometry.bucket_bytes() { 0 } else { unused }
    }

    /// Shows the memory of the set at this moment.
    pub fn inspect(&self) -> SetView {
        SetView { longest_hold: self.set.allocator.buckets().longest_hold() }
    }

    /// Counts what the buckets hold, in no more than so many cells of the cache device.
    pub async fn bucket_map(&self, cells_max: u32) -> BucketMap {
        self.set.allocator.bucket_map(cells_max).await
    }

    /// Hit ratios by size of the cache, of what was read and written since the start.
    pub fn reuse_curve(&self) -> ReuseCurve {
        self.set.context.reuse.curve()
    }

    /// Counters and states.
    pub fn status(&self) -> SetStatus {
        let set = &self.set;
        let (geometry, buckets) = (&set.context.geometry, set.allocator.buckets());
        SetStatus {
            uuid: set.superblock.borrow().set_uuid,
            cache: set.context.cache.counters(),
            cache_latencies: set.context.cache.latencies(),
            size_bytes: u64::from(set.superblock.borrow().nbuckets) * geometry.bucket_bytes(),
            bucket_bytes: geometry.bucket_bytes(),
            block_bytes: geometry.block_bytes(),
            available_percent: 100 - buckets.in_use_percent(),
            filled_percent: buckets.filled_percent(),
            used_bytes: (buckets.in_set() as u64).saturating_sub(buckets.empty_len() as u64)
                * geometry.bucket_bytes(),
            put_aside_bytes: buckets.without_room() as u64 * geometry.bucket_bytes(),
            counted: buckets.is_counted(),
            failed: set.context.health.failure(),
            btree_leaves: set.index.leaf_count() as u64,
            tree_depth: u64::from(set.index.root_level()),
            active_journal_entries: set.journal.active_entries(),
            volumes: set.served().iter().map(|volume| volume.status()).collect(),
            flash: set.served_flash().iter().map(|volume| volume.status()).collect(),
            flash_room_bytes: buckets.flash_room_bytes(),
        }
    }

    /// Counts what the set and its volumes hold.
    pub fn held(&self) -> Held {
        let set = &self.set;
        let mut held = Held {
            buckets: u64::from(set.context.geometry.buckets),
            extents: set.index.loaded_extents() as u64,
            ghosts: set.index.ghosts_held() as u64,
            ..Held::default()
        };
        for volume in set.served() {
            let entries = volume.coherence.entries();
            held.in_flight += entries.in_flight as u64;
            held.copies += entries.copies as u64;
            held.unflushed += entries.unflushed as u64;
            held.streams += entries.streams as u64;
        }
        held.in_flight +=
            set.served_flash().iter().map(|volume| volume.in_flight() as u64).sum::<u64>();
        held
    }

    /// Runs a garbage collection pass now.
    pub async fn trigger_gc(&self) -> Result<(), EngineError> {
        // Until the buckets are counted there is nothing to collect, and little to write nodes to.
        self.set.wait_until_counted().await?;
        self.set.gc.collect_garbage().await
    }

    /// A test aid: nearly every free bucket is taken for full of clean data from now on. No key
    /// points into it, so it can't be read, but all that is done bucket by bucket is done with it.
    pub async fn pretend_full(&self) {
        let set = &self.set;
        set.allocator
            .for_all_buckets(1, |part| set.allocator.buckets_mut().pretend_full(part.len()))
            .await;
    }

    /// A test aid: from now on free buckets are used from the last on, so that something is where a
    /// cache that becomes smaller ends.
    pub fn take_last_first(&self) {
        self.set.allocator.buckets_mut().take_last_first();
    }

    /// A test aid: gives up every bucket without dirty data and waits until that is durable. What
    /// is read afterwards comes from the backing devices, or is dirty.
    pub async fn evict_all_clean(&self) -> Result<(), EngineError> {
        for volume in self.set.attached() {
            volume.drop_unpublished();
        }
        let set = &self.set;
        set.allocator.close_open_buckets();
        set.allocator.evict(usize::MAX).await;
        set.allocator.write_prios().await
    }
}
