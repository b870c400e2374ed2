//! A cached volume: what a client sees of a backing device with its part of the cache.
//!
//! | module | holds |
//! |---|---|
//! | here | the parts of a volume, and its sectors |
//! | [`foreign_memory`] | writes of data in memory that somebody else may change (T0) |
//! | [`state`] | the states, and all transitions between them |
//! | [`tickets`] | requests and dirty writes under way |
//! | [`replaceable`] | the volume of clients, which stays when what is below it is replaced |
//! | [`remembered`] | what another process has to know to go on with the clients |
//! | [`gate`] | admission of requests, and the end of a volume |
//! | [`superblock`] | the backing superblock: clean, dirty, and attributes that survive a restart |
//! | [`attributes`] | what a user sets and reads by bcache's names |

pub(crate) mod attributes;
mod foreign_memory;
mod gate;
pub(crate) mod remembered;
pub(crate) mod replaceable;
pub(crate) mod state;
mod superblock;
pub(crate) mod tickets;

use std::cell::{Cell, Ref, RefCell};
use std::rc::{Rc, Weak};

use ubcache_env::local::{Lock, Notify};
use ubcache_env::{
    Env, IoError, Priority, Sector, SectorRange, Task, VolumeError, VolumeInfo, Witness,
};
use ubcache_format::{BackingState, CacheMode, Inode, SECTOR_BYTES, Superblock, Uuid};

use self::state::{Lifecycle, Transition};
use self::tickets::{DirtyWriters, Requests};
use crate::alloc::allocator::Allocator;
use crate::bypass::Bypass;
use crate::bypass::congestion::Congestion;
use crate::coherence::Coherence;
use crate::context::Context;
use crate::counted_device::CountedDevice;
use crate::events::{FaultyDevice, VolumeChange};
use crate::gc::Gc;
use crate::index::Index;
use crate::journal::Journal;
use crate::request::read::fill_queue::FillQueue;
use crate::request::read::pieces::ReadAhead;
use crate::scrub::Scrub;
use crate::settings::VolumeSettings;
use crate::stats::VolumeCounters;
use crate::stats::periods::Periods;
use crate::stats::requests::RequestCounts;
use crate::writeback::Writeback;

/// Parts of a set that a volume uses.
pub(crate) struct Core<E: Env> {
    pub context: Context<E>,
    pub journal: Rc<Journal<E>>,
    pub allocator: Rc<Allocator<E>>,
    pub index: Rc<Index<E>>,
    pub gc: Rc<Gc<E>>,
    pub congestion: Rc<Congestion>,
    pub attached: Box<dyn Fn() -> Attached>,
}

/// The volumes that share a cache.
#[derive(Copy, Clone, Default, Debug)]
pub(crate) struct Attached {
    pub volumes: u64,
    /// Size of their backing devices together.
    pub sectors: u64,
    /// Sectors of flash-only volumes.
    pub flash_dirty: u64,
}

/// A volume of a running set.
pub struct CachedVolume<E: Env> {
    pub(crate) context: Context<E>,
    pub(crate) journal: Rc<Journal<E>>,
    pub(crate) allocator: Rc<Allocator<E>>,
    pub(crate) index: Rc<Index<E>>,
    pub(crate) gc: Rc<Gc<E>>,
    /// The volumes that share the cache with this one.
    pub(crate) attached: Box<dyn Fn() -> Attached>,
    /// For the tasks that outlive a request.
    pub(crate) me: Weak<CachedVolume<E>>,
    pub(crate) backing: Rc<CountedDevice<E>>,
    superblock: RefCell<Superblock>,
    superblock_lock: Lock,
    inode: Cell<Inode>,
    info: VolumeInfo,
    sectors: Cell<u64>,
    data_offset: Sector,
    settings: RefCell<VolumeSettings>,
    counters: Cell<VolumeCounters>,
    pub(crate) counts: RequestCounts,
    periods: Periods,

    pub(crate) bypass: Bypass,
    pub(crate) coherence: Coherence,
    pub(crate) lifecycle: Lifecycle,
    requests: Requests,
    pub(crate) dirty_writers: DirtyWriters,
    /// The superblock that the device has for certain, if that is known.
    saved_superblock: RefCell<Option<Superblock>>,
    /// The attempt to move that the superblock is to name (A13).
    attempt: Cell<Option<u64>>,
    /// A task is about to save the superblock.
    saving: Cell<bool>,
    /// Its backing device belongs to another volume by now, or to nobody.
    gave_up_device: Cell<bool>,
    pub(crate) fills: FillQueue,
    /// None: the backing device is near.
    pub(crate) ahead: Option<Box<ReadAhead>>,
    /// Knowledge of the disk at the attach (A9).
    witness: RefCell<Witness>,

    tasks: RefCell<Vec<Task>>,
    pub(crate) wake_publisher: Notify,
    pub(crate) writeback: Writeback,
    pub(crate) scrub: Scrub,
}

impl<E: Env> CachedVolume<E> {
    pub(crate) fn new(
        core: Core<E>,
        backing: Rc<CountedDevice<E>>,
        superblock: Superblock,
        inode: Inode,
        (name, read_only): (String, bool),
    ) -> Rc<CachedVolume<E>> {
        let data_offset = superblock.data_offset();
        let limits = backing.limits();
        let block = limits.logical_block_bytes.max(core.context.cache.limits().logical_block_bytes);
        let name = if name.is_empty() { superblock.label_str() } else { name };
        let info = VolumeInfo {
            name,
            sectors: volume_sectors(limits.sectors, data_offset, block),
            block_bytes: block,
            preferred_bytes: core.context.geometry.block_bytes().max(4096) as u32,
            read_only,
        };
        let settings = VolumeSettings {
            cache_mode: superblock.cache_mode(),
            writeback_running: true,
            label: superblock.label_str(),
            ..VolumeSettings::default()
        };
        let Core { context, journal, allocator, index, gc, congestion, attached } = core;
        let (fill_bytes, rules) = (context.tuning.fill_bytes_max, context.rules);
        backing.report_faults(context.events.clone(), FaultyDevice::Backing(superblock.uuid));
        let ahead = ReadAhead::of(backing.shape(), context.tuning.read_ahead).map(Box::new);
        let lifecycle = match superblock.state() {
            BackingState::Clean => Lifecycle::new(false),
            BackingState::Dirty => Lifecycle::new(true),
            BackingState::None | BackingState::Stale => Lifecycle::detached(),
        };
        let periods = Periods::new(context.env.now());
        let volume = Rc::new_cyclic(|me: &Weak<CachedVolume<E>>| CachedVolume {
            context,
            journal,
            allocator,
            index,
            gc,
            attached,
            me: me.clone(),
            backing,
            saved_superblock: RefCell::new(Some(superblock.clone())),
            attempt: Cell::default(),
            saving: Cell::new(false),
            gave_up_device: Cell::new(false),
            superblock: RefCell::new(superblock),
            superblock_lock: Lock::default(),
            inode: Cell::new(inode),
            sectors: Cell::new(info.sectors),
            info,
            data_offset,
            settings: RefCell::new(settings),
            counters: Cell::default(),
            counts: RequestCounts::default(),
            periods,
            bypass: Bypass::new(congestion),
            coherence: Coherence::new(limits.volatile_cache, rules),
            lifecycle,
            requests: Requests::default(),
            dirty_writers: DirtyWriters::default(),
            fills: FillQueue::new(fill_bytes),
            ahead,
            witness: RefCell::default(),
            tasks: RefCell::default(),
            wake_publisher: Notify::default(),
            writeback: Writeback::new(),
            scrub: Scrub::default(),
        });
        let me = Rc::downgrade(&volume);
        volume.backing.set_parting(Rc::new(move || {
            let me = me.upgrade();
            Box::pin(async move { me.ok_or(IoError::Gone)?.part_from_attempt().await })
        }));
        volume
    }

    /// The volume serves from now on.
    pub(crate) fn start(self: &Rc<Self>) {
        self.watch_flushes();
        if !self.lifecycle.uses_cache() {
            return;
        }
        let publisher = self.context.env.spawn(Priority::Background, self.clone().publisher_task());
        let writeback = self.context.env.spawn(Priority::Background, self.clone().writeback_task());
        self.tasks.borrow_mut().extend([publisher, writeback]);
        #[cfg(feature = "mutants")]
        if !self.context.keeps(crate::rules::Rule::T4OneWriteback) {
            let second =
                self.context.env.spawn(Priority::Background, self.clone().writeback_task());
            self.tasks.borrow_mut().push(second);
        }
    }

    /// It is told of failed flushes of its backing device (F4).
    fn watch_flushes(&self) {
        let me = self.me.clone();
        self.backing.when_flush_fails(move |error| {
            if let Some(volume) = me.upgrade() {
                volume.backing_flush_failed(error);
            }
        });
    }

    /// Makes a transition to another state; those that are legal are in `state.rs`.
    pub(crate) fn enter(&self, transition: Transition) {
        self.lifecycle.enter(&self.context.env, transition);
        if let Some(change) = change_by(transition) {
            self.context.events.volume(self.uuid(), change);
        }
    }

    /// Its slot in the volume table, which is in the keys of its extents.
    pub(crate) fn inode(&self) -> Inode {
        self.inode.get()
    }

    pub(crate) fn set_inode(&self, inode: Inode) {
        self.inode.set(inode);
    }

    /// Adds a task that a stop waits for.
    pub(crate) fn add_task(&self, task: Task) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Waits for the background tasks, which have been told to end.
    pub(crate) async fn join_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        for task in tasks {
            self.wake_background();
            task.join().await;
        }
    }

    pub(crate) fn wake_background(&self) {
        self.wake_publisher.notify_all();
        self.writeback.wake();
        self.writeback.progresses();
        self.scrub.wake();
    }

    pub(crate) fn drop_unpublished(&self) {
        self.drop_read_ahead();
        self.coherence.drop_all_copies();
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut VolumeCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Errors of the backing device so far.
    pub(crate) fn backing_errors(&self) -> u64 {
        self.counters.get().backing_errors
    }

    /// Attributes, as they are now.
    pub(crate) fn settings(&self) -> Ref<'_, VolumeSettings> {
        self.settings.borrow()
    }

    /// Bytes of requests in sequential runs of 1 MiB and more, by the length in bytes that a
    /// `sequential_cutoff` is compared with: pairs of a power of two, from which on it was, and
    /// bytes.
    pub fn bytes_by_run(&self) -> Vec<(u64, u64)> {
        self.bypass.bytes_by_run()
    }

    /// Bytes from which on a sequential run bypasses the cache; 0: never.
    pub fn sequential_cutoff(&self) -> u64 {
        self.settings().sequential_cutoff
    }

    /// UUID of the backing device.
    pub fn uuid(&self) -> Uuid {
        self.superblock.borrow().uuid
    }

    /// UUID of the set whose cache it uses.
    pub(crate) fn set_uuid(&self) -> Uuid {
        self.superblock.borrow().set_uuid
    }

    /// Knowledge at the attach of writes to the disk by others (A9).
    pub fn witness(&self) -> Witness {
        self.witness.borrow().clone()
    }

    /// Notes what the attach found out (A9).
    pub(crate) fn note_witness(&self, witness: Witness) {
        self.witness.replace(witness);
    }

    /// Cache mode.
    pub fn mode(&self) -> CacheMode {
        self.settings.borrow().cache_mode
    }

    /// Size, blocks and name of the volume, for clients.
    pub(crate) fn volume_info(&self) -> VolumeInfo {
        VolumeInfo { sectors: self.sectors.get(), ..self.info.clone() }
    }

    /// The size of the volume, in sectors, on a backing device of so many.
    pub(crate) fn sectors_on(&self, backing_sectors: u64) -> u64 {
        volume_sectors(backing_sectors, self.data_offset, self.info.block_bytes)
    }

    /// Its size from now on. No request is under way if it becomes shorter.
    pub(crate) fn set_sectors(&self, sectors: u64) {
        self.drop_read_ahead();
        self.sectors.set(sectors);
    }

    /// Volume range to key range: sectors of the backing device, data offset included.
    pub(crate) fn key_range(&self, range: SectorRange) -> Result<SectorRange, VolumeError> {
        let per_block = u64::from(self.info.block_bytes) / SECTOR_BYTES;
        // Blocks are often sectors, and a division takes its time.
        let aligned = per_block == 1
            || (range.start.0.is_multiple_of(per_block) && range.end.0.is_multiple_of(per_block));
        if range.end.0 > self.sectors.get() || range.is_empty() || !aligned {
            return Err(VolumeError::BadRange {
                range,
                sectors: self.sectors.get(),
                block_bytes: self.info.block_bytes,
            });
        }
        Ok(range.shift(self.data_offset.0 as i64))
    }

    /// The sector of the backing device at which the volume begins.
    pub fn data_offset(&self) -> Sector {
        self.data_offset
    }

    /// The sectors of the backing device that are the volume.
    pub(crate) fn all_keys(&self) -> SectorRange {
        SectorRange::new(self.data_offset, self.sectors.get())
    }

    /// The smallest unit of I/O in sectors.
    pub(crate) fn block_sectors(&self) -> u64 {
        u64::from(self.info.block_bytes) / SECTOR_BYTES
    }

    pub(crate) fn volume_range(&self, range: SectorRange) -> SectorRange {
        range.shift(-(self.data_offset.0 as i64))
    }

    pub(crate) fn note_backing_error(&self, error: &IoError) {
        if matches!(error, IoError::NoMemory) {
            return;
        }
        self.count(|counters| counters.backing_errors += 1);
        self.writeback.progresses();
    }
}

/// Sectors of whole blocks behind the data offset of a device; none if it is too short for one.
fn volume_sectors(device_sectors: u64, data_offset: Sector, block_bytes: u32) -> u64 {
    let per_block = u64::from(block_bytes) / SECTOR_BYTES;
    device_sectors.saturating_sub(data_offset.0) / per_block * per_block
}

/// The change that an operator reads about.
fn change_by(transition: Transition) -> Option<VolumeChange> {
    match transition {
        Transition::MarkedDirty => Some(VolumeChange::Dirty),
        Transition::MarkedClean => Some(VolumeChange::Clean),
        Transition::DrainStarts => Some(VolumeChange::DrainStarts),
        Transition::Detached => Some(VolumeChange::Detached),
        Transition::AttachedAgain => Some(VolumeChange::Attached),
        _ => None,
    }
}
