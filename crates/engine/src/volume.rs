//! A cached volume: what a client sees of a backing device with its part of the cache.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use ubcache_env::local::{Lock, Notify, Semaphore};
use ubcache_env::{
    BlockStatus, Env, ForeignMemory, IoError, IoVec, Nanos, Priority, Sector, SectorRange,
    StreamId, Task, Volume, VolumeError, VolumeInfo,
};
use ubcache_format::{BackingState, CacheMode, Inode, SECTOR_BYTES, Superblock, Uuid};

use crate::bypass::sequential::SequentialDetector;
use crate::coherence::flush_errors::FlushErrors;
use crate::coherence::table::InFlight;
use crate::coherence::unflushed::Unflushed;
use crate::coherence::unpublished::Unpublished;
use crate::coherence::zeroes::Zeroes;
use crate::errors::EngineError;
use crate::meter::Meter;
use crate::mutants::Mutant;
use crate::request::read::Fills;
use crate::request::write::Payload;
use crate::set::Set;
use crate::set::attach::AttachOptions;
use crate::set::first_run::write_superblock;
use crate::settings::{AttributeError, VolumeSettings, human, parse_human};
use crate::stats::{VolumeCounters, VolumeState, VolumeStatus};
use crate::writeback::controller::{IdleCounter, RateController, RateLimiter};

/// A volume of a running set.
pub struct CachedVolume<E: Env> {
    pub(crate) set: Rc<Set<E>>,
    /// For the tasks that outlive a request.
    pub(crate) me: Weak<CachedVolume<E>>,
    pub(crate) backing: Meter<E>,
    pub(crate) superblock: RefCell<Superblock>,
    superblock_lock: Lock,
    inode: Cell<Inode>,
    info: VolumeInfo,
    data_offset: Sector,
    pub(crate) settings: RefCell<VolumeSettings>,
    pub(crate) counters: Cell<VolumeCounters>,
    pub(crate) sequential: RefCell<SequentialDetector>,

    pub(crate) inflight: InFlight,
    pub(crate) unflushed: RefCell<Unflushed>,
    pub(crate) unpublished: RefCell<Unpublished>,
    pub(crate) zeroes: Zeroes,
    pub(crate) flush_lock: Lock,
    pub(crate) flushes_started: Cell<u64>,
    pub(crate) flush_good: Cell<u64>,
    /// Flushes of the backing device that failed, whoever asked for them.
    pub(crate) flush_failures: Cell<u64>,
    pub(crate) flush_errors: RefCell<FlushErrors>,

    /// The backing superblock says dirty, durably.
    pub(crate) marked_dirty: Cell<bool>,
    /// The superblock that the device has for certain, if that is known.
    saved_superblock: RefCell<Option<Superblock>>,
    /// A task is about to save the superblock.
    saving: Cell<bool>,
    /// Writers between that and their dirty key.
    pub(crate) dirty_writers: Cell<u64>,
    pub(crate) state_lock: Lock,
    /// The superblock says, durably, that there is no cache: requests go to the backing device (A3,
    /// A4).
    pub(crate) passthrough: Cell<bool>,
    /// It was detached, so it can be attached again.
    pub(crate) detached: Cell<bool>,
    /// One detach or attach at a time.
    pub(crate) attachment_lock: Lock,
    /// It is to be detached: no new dirty data, writeback at full speed.
    pub(crate) detaching: Cell<bool>,
    /// New requests wait until this ends.
    paused: Cell<bool>,
    resumed: Notify,
    pub(crate) fill_budget: Rc<Semaphore>,
    pub(crate) fill_tasks: Cell<usize>,
    /// Fills beyond those tasks.
    pub(crate) waiting_fills: RefCell<VecDeque<Fills>>,

    requests: Cell<u64>,
    requests_done: Notify,
    stopping: Cell<bool>,
    tasks: RefCell<Vec<Task>>,
    pub(crate) wake_publisher: Notify,
    pub(crate) wake_writeback: Notify,
    pub(crate) controller: RefCell<RateController>,
    pub(crate) limiter: RefCell<RateLimiter>,
    pub(crate) idle: RefCell<IdleCounter>,
}

impl<E: Env> CachedVolume<E> {
    pub(crate) fn new(
        set: Rc<Set<E>>,
        backing: Meter<E>,
        superblock: Superblock,
        inode: Inode,
        options: AttachOptions,
    ) -> Rc<CachedVolume<E>> {
        let data_offset = superblock.data_offset();
        let geometry = backing.geometry();
        let block = geometry.logical_block_bytes.max(set.cache.geometry().logical_block_bytes);
        let name = if options.name.is_empty() { superblock.label_str() } else { options.name };
        let info = VolumeInfo {
            name,
            sectors: {
                let per_block = u64::from(block) / SECTOR_BYTES;
                (geometry.sectors - data_offset.0) / per_block * per_block
            },
            block_bytes: block,
            preferred_bytes: set.geometry.block_bytes().max(4096) as u32,
            read_only: options.read_only,
        };
        let settings = VolumeSettings {
            cache_mode: superblock.cache_mode(),
            writeback_running: true,
            label: superblock.label_str(),
            ..VolumeSettings::default()
        };
        let (fill_bytes, mutation) = (set.tuning.fill_bytes_max, set.mutation);
        let dirty = superblock.state() == BackingState::Dirty;
        Rc::new_cyclic(|me| CachedVolume {
            set,
            me: me.clone(),
            backing,
            saved_superblock: RefCell::new(Some(superblock.clone())),
            saving: Cell::new(false),
            superblock: RefCell::new(superblock),
            superblock_lock: Lock::default(),
            inode: Cell::new(inode),
            info,
            data_offset,
            settings: RefCell::new(settings),
            counters: Cell::default(),
            sequential: RefCell::new(SequentialDetector::new()),
            inflight: InFlight::new(mutation),
            unflushed: RefCell::new(Unflushed::new(geometry.volatile_cache, mutation)),
            unpublished: RefCell::default(),
            zeroes: Zeroes::default(),
            flush_lock: Lock::default(),
            flushes_started: Cell::new(0),
            flush_good: Cell::new(0),
            flush_failures: Cell::new(0),
            flush_errors: RefCell::default(),
            marked_dirty: Cell::new(dirty),
            dirty_writers: Cell::new(0),
            state_lock: Lock::default(),
            passthrough: Cell::new(false),
            detached: Cell::new(false),
            attachment_lock: Lock::default(),
            detaching: Cell::new(false),
            paused: Cell::new(false),
            resumed: Notify::default(),
            fill_budget: Rc::new(Semaphore::new(fill_bytes)),
            fill_tasks: Cell::new(0),
            waiting_fills: RefCell::default(),
            requests: Cell::new(0),
            requests_done: Notify::default(),
            stopping: Cell::new(false),
            tasks: RefCell::default(),
            wake_publisher: Notify::default(),
            wake_writeback: Notify::default(),
            controller: RefCell::new(RateController::new()),
            limiter: RefCell::new(RateLimiter::new()),
            idle: RefCell::new(IdleCounter::new()),
        })
    }

    pub(crate) fn start(self: &Rc<Self>) {
        let me = self.me.clone();
        self.backing.when_flush_fails(move |error| {
            if let Some(volume) = me.upgrade() {
                volume.backing_flush_failed(error);
            }
        });
        let publisher = self.set.env.spawn(Priority::Background, self.clone().publisher_task());
        let writeback = self.set.env.spawn(Priority::Background, self.clone().writeback_task());
        self.tasks.borrow_mut().extend([publisher, writeback]);
        if self.set.mutant(Mutant::TwoWritebacksAtOnce) {
            let second = self.set.env.spawn(Priority::Background, self.clone().writeback_task());
            self.tasks.borrow_mut().push(second);
        }
    }

    /// Its slot in the volume table, which is in the keys of its extents.
    pub(crate) fn inode(&self) -> Inode {
        self.inode.get()
    }

    pub(crate) fn set_inode(&self, inode: Inode) {
        self.inode.set(inode);
    }

    /// New requests wait until [`CachedVolume::resume`]; those under way and the fills that they
    /// left behind complete.
    pub(crate) async fn pause(&self) {
        self.paused.set(true);
        self.requests_end().await;
        self.fills_end().await;
    }

    async fn fills_end(&self) {
        while !self.inflight.is_empty() {
            self.set.env.sleep(Nanos::from_micros(100)).await;
        }
    }

    pub(crate) fn resume(&self) {
        self.paused.set(false);
        self.resumed.notify_all();
    }

    async fn requests_end(&self) {
        while self.requests.get() > 0 {
            self.requests_done.notified().await;
        }
    }

    /// Waits for the background tasks, which have been told to end.
    pub(crate) async fn join_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        for task in tasks {
            self.wake_background();
            task.join().await;
        }
    }

    /// Ends the volume: requests complete, background work stops, what is un-flushed is flushed. An
    /// error of that flush is given when everything else is done.
    pub(crate) async fn stop(&self) -> Result<(), EngineError> {
        self.stopping.set(true);
        self.wake_background();
        self.requests_end().await;
        self.fills_end().await;
        self.join_tasks().await;
        let flushed = if self.passthrough.get() {
            self.backing.flush().await
        } else {
            self.flush_backing().await
        };
        if flushed.is_ok() && self.set.failure().is_none() {
            self.publish_all().await;
            self.mark_clean_if_so().await;
        }
        self.drop_unpublished();
        flushed.map_err(EngineError::io("flushing a backing device"))?;
        // An earlier attempt may have failed, half way or before its flush.
        self.save_attributes().await?;
        if self.flush_errors.borrow().are_owed()
            && !self.set.mutant(Mutant::FailedOwnFlushToldToNobody)
        {
            self.set.env.mark("stop_tells_of_a_failed_flush");
            return Err(EngineError::LossUntold(self.uuid()));
        }
        Ok(())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    pub(crate) fn wake_background(&self) {
        self.wake_publisher.notify_all();
        self.wake_writeback.notify_all();
    }

    pub(crate) fn drop_unpublished(&self) {
        self.unpublished.borrow_mut().clear();
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut VolumeCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// UUID of the backing device.
    pub fn uuid(&self) -> Uuid {
        self.superblock.borrow().uuid
    }

    /// Cache mode.
    pub fn mode(&self) -> CacheMode {
        self.settings.borrow().cache_mode
    }

    /// State word.
    pub fn state(&self) -> VolumeState {
        if self.detached.get() {
            return VolumeState::NoCache;
        }
        let dirty = self.set.dirty_sectors(self.inode()) > 0;
        match self.set.failure() {
            Some(_) if dirty => VolumeState::Failed,
            Some(_) => VolumeState::NoCache,
            None if dirty || self.marked_dirty.get() => VolumeState::Dirty,
            None => VolumeState::Clean,
        }
    }

    /// Counters and state.
    pub fn status(&self) -> VolumeStatus {
        VolumeStatus {
            name: self.info.name.clone(),
            uuid: self.uuid(),
            backing: self.backing.counters(),
            size_bytes: self.info.sectors * SECTOR_BYTES,
            mode: self.mode(),
            state: self.state(),
            dirty_bytes: self.set.dirty_sectors(self.inode()) * SECTOR_BYTES,
            stats: self.counters.get(),
            writeback_rate_bytes: self.controller.borrow().rate() * SECTOR_BYTES,
        }
    }

    /// Sets an attribute (bcache's names). `cache_mode` and `label` survive a restart.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<(), AttributeError> {
        if name == "writeback_rate" {
            self.controller.borrow_mut().set_rate(parse_rate(value)?);
            return Ok(());
        }
        self.settings.borrow_mut().set(name, value)?;
        if matches!(name, "cache_mode" | "label") {
            {
                let settings = self.settings.borrow();
                let mut superblock = self.superblock.borrow_mut();
                superblock.set_cache_mode(settings.cache_mode);
                superblock.set_label(&settings.label);
            }
            self.save_soon();
        }
        self.wake_background();
        Ok(())
    }

    /// Returns what [`CachedVolume::set_attribute`] would return for these, one after the other.
    pub fn try_attributes(&self, pairs: &[(&str, &str)]) -> Vec<Result<(), AttributeError>> {
        let mut settings = self.settings.borrow().clone();
        let mut set = |name: &str, value: &str| match name {
            "writeback_rate" => parse_rate(value).map(drop),
            _ => settings.set(name, value),
        };
        pairs.iter().map(|(name, value)| set(name, value)).collect()
    }

    /// Has a task save the superblock. There is one at most that has not begun, however often it
    /// changes.
    fn save_soon(&self) {
        let Some(me) = self.me.upgrade() else { return };
        if self.saving.replace(true) {
            return;
        }
        let task = self.set.env.spawn(Priority::Background, async move {
            me.saving.set(false);
            // An error shows in the counters; the setting is in force for this run.
            drop(me.save_attributes().await);
        });
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Waits until the attributes that survive a restart are on the backing device, durably.
    pub async fn save_attributes(&self) -> Result<(), EngineError> {
        let saved = self.saved_superblock.borrow().as_ref() == Some(&*self.superblock.borrow());
        if saved { Ok(()) } else { self.write_backing_superblock().await }
    }

    /// The present value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<String> {
        match name {
            "state" => Some(self.state().word().to_owned()),
            "dirty_data" => {
                Some(human((self.set.dirty_sectors(self.inode()) * SECTOR_BYTES) as i64))
            }
            "writeback_rate" => {
                Some(human((self.controller.borrow().rate() * SECTOR_BYTES) as i64))
            }
            "writeback_rate_debug" => {
                let now = self.set.env.now();
                let next = self.limiter.borrow().next_ms(now);
                Some(self.controller.borrow().debug().text(next))
            }
            "stripe_size" => Some(human(1 << 40)),
            "partial_stripes_expensive" => Some("0".to_owned()),
            "io_errors" => Some(self.counters.get().backing_errors.to_string()),
            "running" => Some("1".to_owned()),
            "backing_dev_uuid" => Some(self.uuid().to_string()),
            _ => self.settings.borrow().get(name),
        }
    }

    /// Writes the superblock of the backing device as it is now. Whoever waits for his turn here is
    /// served by the one before if that wrote what he wants.
    pub(crate) async fn write_backing_superblock(&self) -> Result<(), EngineError> {
        let _one = self.superblock_lock.lock().await;
        let superblock = self.superblock.borrow().clone();
        if self.saved_superblock.borrow().as_ref() == Some(&superblock) {
            return Ok(());
        }
        *self.saved_superblock.borrow_mut() = None;
        let result =
            write_superblock(&self.backing, &superblock, "writing the backing superblock").await;
        if result.is_ok() {
            *self.saved_superblock.borrow_mut() = Some(superblock);
        }
        result
    }

    /// I12: the backing superblock says dirty, durably, before the first dirty key exists.
    pub(crate) async fn ensure_marked_dirty(&self) -> Result<(), EngineError> {
        if self.marked_dirty.get() {
            return Ok(());
        }
        let _one = self.state_lock.lock().await;
        if !self.marked_dirty.get() {
            self.superblock.borrow_mut().set_state(BackingState::Dirty);
            self.write_backing_superblock().await?;
            self.marked_dirty.set(true);
            self.set.env.mark("marked_dirty");
        }
        Ok(())
    }

    /// No dirty key, none on its way, and that is known for sure.
    pub(crate) fn has_nothing_dirty(&self) -> bool {
        self.set.allocator.buckets().is_counted()
            && self.set.dirty_sectors(self.inode()) == 0
            && self.dirty_writers.get() == 0
    }

    /// The backing superblock says clean when every dirty key is durably clean and no new one is
    /// on its way.
    pub(crate) async fn mark_clean_if_so(&self) {
        let clean =
            || self.superblock.borrow().state() == BackingState::Dirty && self.has_nothing_dirty();
        if !clean() || self.set.failure().is_some() {
            return;
        }
        let _one = self.state_lock.lock().await;
        if self.set.journal.flush().await.is_err() || !clean() {
            self.set.env.mark("marking_clean_overtaken");
            return;
        }
        // From here on a writer waits for the lock and marks it dirty again.
        self.marked_dirty.set(false);
        self.superblock.borrow_mut().set_state(BackingState::Clean);
        self.set.env.mark("marked_clean");
        if self.write_backing_superblock().await.is_err() {
            self.superblock.borrow_mut().set_state(BackingState::Dirty);
        }
    }

    /// Volume range to key range: sectors of the backing device, data offset included.
    pub(crate) fn key_range(&self, range: SectorRange) -> Result<SectorRange, VolumeError> {
        let per_block = u64::from(self.info.block_bytes) / SECTOR_BYTES;
        // Blocks are often sectors, and a division takes its time.
        let aligned = per_block == 1
            || (range.start.0.is_multiple_of(per_block) && range.end.0.is_multiple_of(per_block));
        if range.end.0 > self.info.sectors || range.is_empty() || !aligned {
            return Err(VolumeError::BadRange {
                range,
                sectors: self.info.sectors,
                block_bytes: self.info.block_bytes,
            });
        }
        Ok(range.shift(self.data_offset.0 as i64))
    }

    /// The smallest unit of I/O in sectors.
    pub(crate) fn block_sectors(&self) -> u64 {
        u64::from(self.info.block_bytes) / SECTOR_BYTES
    }

    pub(crate) fn volume_range(&self, range: SectorRange) -> SectorRange {
        range.shift(-(self.data_offset.0 as i64))
    }

    async fn begin(&self) -> Result<Request<'_, E>, VolumeError> {
        while self.paused.get() {
            self.resumed.notified().await;
        }
        self.begin_now()
    }

    fn begin_now(&self) -> Result<Request<'_, E>, VolumeError> {
        if self.stopping.get() || self.set.is_ending() {
            return Err(VolumeError::Unavailable("the cache set is being stopped".to_owned()));
        }
        self.requests.set(self.requests.get() + 1);
        self.idle.borrow_mut().request();
        self.controller.borrow_mut().leave_idle();
        Ok(Request { volume: self })
    }

    async fn begin_write(&self) -> Result<Request<'_, E>, VolumeError> {
        if self.info.read_only {
            return Err(VolumeError::ReadOnly);
        }
        self.begin().await
    }

    #[cfg(feature = "mutants")]
    async fn write_uncopied(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        let _request = self.begin_write().await?;
        self.write_keys(stream, keys, Payload::Foreign(data), fua).await
    }

    pub(crate) fn note_backing_error(&self, error: &IoError) {
        if matches!(error, IoError::NoMemory) {
            return;
        }
        self.count(|counters| counters.backing_errors += 1);
    }
}

/// Counts a request while it runs.
struct Request<'a, E: Env> {
    volume: &'a CachedVolume<E>,
}

impl<E: Env> Drop for Request<'_, E> {
    fn drop(&mut self) {
        let left = self.volume.requests.get() - 1;
        self.volume.requests.set(left);
        if left == 0 {
            self.volume.requests_done.notify_all();
        }
    }
}

/// Zeroing and discarding work on at most this much at once.
const LONG_STEP: u64 = 16 << 11;
/// And prefetching on this much, which is what it has in memory.
const PREFETCH_STEP: u64 = 1 << 11;

impl<E: Env> Volume for CachedVolume<E> {
    fn info(&self) -> VolumeInfo {
        self.info.clone()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let keys = self.key_range(range)?;
        // Begins like `begin`, with one future less for a hit to go through.
        let _request = if self.paused.get() { self.begin().await? } else { self.begin_now()? };
        match self.begin_read(stream, keys) {
            Ok(hit) => self.read_hit(hit).await.map(IoVec::from),
            Err(other) => Box::pin(self.read_other(keys, other)).await,
        }
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        assert_eq!(data.sectors(), range.sectors(), "the data fills the range");
        if self.info.read_only {
            return Err(VolumeError::ReadOnly);
        }
        // Begins like `begin_write`, with one future less.
        let _request = if self.paused.get() { self.begin().await? } else { self.begin_now()? };
        self.flush_errors.borrow_mut().writes(stream);
        self.write_keys(stream, keys, Payload::Data(data), fua).await
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        if self.set.mutant(Mutant::ForeignMemoryTwice) {
            #[cfg(feature = "mutants")]
            return self.write_uncopied(stream, range, data, fua).await;
        }
        // T0: copied once, before the write enters the table.
        self.write(stream, range, data.copy().into(), fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        let _request = self.begin_write().await?;
        self.flush_errors.borrow_mut().writes(stream);
        for step in steps(keys, LONG_STEP) {
            self.discard_keys(stream, step).await?;
        }
        if fua { self.flush_devices().await } else { Ok(()) }
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        _may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        let _request = self.begin_write().await?;
        self.flush_errors.borrow_mut().writes(stream);
        for step in steps(keys, LONG_STEP) {
            self.write_keys(stream, step, Payload::Zeroes, fua).await?;
        }
        Ok(())
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        let _request = self.begin().await?;
        self.flush_all(stream).await
    }

    fn stream_ended(&self, stream: StreamId) {
        let flushed = self.unflushed.borrow().is_empty() && !self.passthrough.get();
        self.flush_errors.borrow_mut().leaves(stream, flushed);
    }

    async fn prefetch(&self, _stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        let _request = self.begin().await?;
        for step in steps(keys, PREFETCH_STEP) {
            self.prefetch_keys(step).await?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        self.key_range(range)?;
        Ok(vec![(range, BlockStatus::Data)])
    }
}

fn steps(range: SectorRange, most: u64) -> impl Iterator<Item = SectorRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = Sector(range.end.0.min(at.0 + most));
        let step = SectorRange::from_bounds(at, end);
        at = end;
        (!step.is_empty()).then_some(step)
    })
}

fn parse_rate(value: &str) -> Result<u64, AttributeError> {
    parse_human(value).map_err(|_| AttributeError::BadValue {
        name: "writeback_rate".to_owned(),
        value: value.to_owned(),
        expected: "sectors per second, at least 1".to_owned(),
    })
}
