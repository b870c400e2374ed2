//! A device that counts what goes through it, and knows what its failed flushes may have cost.

mod successor;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;

use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Durability, Env, IoError, IoResult, IoVec, Nanos,
    Place, ReadEnd, Sector, SectorRange, Witness,
};
use ubcache_format::MoveRegions;

use crate::errors::MoveEnd;
use crate::events::{DeviceFault, Events, FaultyDevice, Operation, SetEvent};
use crate::lost_by_failed_flush::LostPlaces;
use crate::mirror::Mirror;
use crate::move_log::MoveLog;
use crate::rules::{Rule, Rules};
use crate::stats::histogram::{Histogram, Taken};
use crate::stats::{DeviceCounters, DeviceHistograms, DeviceLatencies};

/// Counts requests and bytes, and skips a flush that has nothing to flush.
///
/// Nothing else asks the device for a flush, so what a failed one means is settled here, whoever
/// called it: who is responsible for the device is told in the same step (F4, J3), and of the cache
/// device nothing is read that may be gone.
pub(crate) struct CountedDevice<E: Env> {
    env: E,
    device: E::Device,
    counters: Cell<DeviceCounters>,
    histograms: DeviceHistograms,
    /// The latest read or write that has ended: its end, and its time.
    latest: Cell<(Nanos, Taken)>,
    /// Writes completed, and of these how many the last good flush covers.
    completed: Cell<u64>,
    flushed: Cell<u64>,
    /// Flushes that failed.
    failed_flushes: Cell<u64>,
    when_flush_fails: RefCell<Option<FlushFailed>>,
    /// The cache device only. Of a backing device the volume knows better.
    lost: Option<RefCell<LostPlaces>>,
    /// True if there are lost places.
    any_lost: Cell<bool>,
    /// The place where its errors are reported, and its name there.
    reports: RefCell<Option<(Rc<Events>, FaultyDevice)>>,
    /// The device that its volume moves to.
    successor: RefCell<Option<Rc<Successor<E>>>>,
    /// Changes since an attempt to move ended.
    changes: RefCell<Option<Changes>>,
    /// Removes the number of that attempt from the superblock.
    parting: RefCell<Option<Parting>>,
    rules: Rules,
}

/// Writes a superblock that does not name an attempt any more.
pub(crate) type Parting = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = IoResult>>>>;

/// The device that a volume moves to, and what it does not have yet.
pub(crate) struct Successor<E: Env> {
    pub mirror: Mirror,
    pub log: MoveLog,
    pub device: Rc<CountedDevice<E>>,
}

/// Changes of a device since an attempt to move its volume ended.
pub(crate) struct Changes {
    attempt: u64,
    regions: MoveRegions,
}

/// A request that changes the content of a device.
#[derive(Clone)]
enum Change {
    Write(Sector, IoVec, Durability),
    Discard(SectorRange),
    Zeroes(SectorRange),
    Holes(SectorRange),
}

impl Change {
    /// The same, to be made durable by a flush.
    fn volatile(self) -> Change {
        match self {
            Change::Write(at, from, _) => Change::Write(at, from, Durability::Volatile),
            other => other,
        }
    }

    fn range(&self) -> SectorRange {
        match self {
            Change::Write(at, from, _) => SectorRange::new(*at, from.sectors()),
            Change::Discard(range) | Change::Zeroes(range) | Change::Holes(range) => *range,
        }
    }
}

type FlushFailed = Rc<dyn Fn(&IoError)>;

/// Time that a task waits for memory before it asks again.
const MEMORY_RETRY_INTERVAL: Nanos = Nanos::from_millis(10);
/// Error of a read of a lost place, and of a flush after a failed one.
const EIO: i32 = 5;

impl<E: Env> CountedDevice<E> {
    /// A backing device.
    pub fn new(env: E, device: E::Device) -> CountedDevice<E> {
        CountedDevice {
            env,
            device,
            counters: Cell::default(),
            histograms: DeviceHistograms::default(),
            latest: Cell::default(),
            // Somebody else may have written before: the first flush is never skipped.
            completed: Cell::new(1),
            flushed: Cell::new(0),
            failed_flushes: Cell::new(0),
            when_flush_fails: RefCell::default(),
            lost: None,
            any_lost: Cell::new(false),
            reports: RefCell::default(),
            successor: RefCell::default(),
            changes: RefCell::default(),
            parting: RefCell::default(),
            rules: Rules::default(),
        }
    }

    /// The same, with rules that may be switched off.
    pub fn of_backing(env: E, device: E::Device, rules: Rules) -> CountedDevice<E> {
        CountedDevice { rules, ..CountedDevice::new(env, device) }
    }

    /// The cache device.
    pub fn of_cache(env: E, device: E::Device, rules: Rules) -> CountedDevice<E> {
        let lost = rules.keeps(Rule::J3LostPlacesUnread).then(RefCell::default);
        CountedDevice { lost, rules, ..CountedDevice::new(env, device) }
    }

    /// From now on its errors are events of this set: a volume may have moved to it from another
    /// one (A8). Those before the first call are errors of opening the device.
    pub fn report_faults(&self, events: Rc<Events>, device: FaultyDevice) {
        *self.reports.borrow_mut() = Some((events, device));
    }

    #[cold]
    fn failed(&self, operation: Operation, range: SectorRange, error: &IoError) {
        self.count(|c| c.errors += 1);
        if let Some((events, device)) = &*self.reports.borrow() {
            let (device, error) = (*device, error.clone());
            let fault = DeviceFault { device, operation, range, error, count: 1 };
            events.push(SetEvent::Fault(fault));
        }
    }

    /// Has somebody told of each flush that fails, in the same step.
    pub fn when_flush_fails(&self, tell: impl Fn(&IoError) + 'static) {
        *self.when_flush_fails.borrow_mut() = Some(Rc::new(tell));
    }

    /// Returns true if a failed flush may have cost any of the range.
    pub fn is_lost(&self, range: SectorRange) -> bool {
        self.any_lost.get() && self.lost.as_ref().is_some_and(|lost| lost.borrow().overlap(range))
    }

    pub fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }

    pub fn latencies(&self) -> DeviceLatencies {
        self.histograms.latencies()
    }

    fn count(&self, change: impl FnOnce(&mut DeviceCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn written(&self, range: SectorRange) {
        let number = self.completed.get() + 1;
        self.completed.set(number);
        if let Some(lost) = &self.lost {
            lost.borrow_mut().written(number, range);
        }
    }

    pub fn limits(&self) -> DeviceLimits {
        self.device.limits()
    }

    pub fn shape(&self) -> DeviceShape {
        self.device.shape()
    }

    /// Reads `sectors` sectors for a client, who gets an error if there is no memory for them.
    /// Begun at `started`.
    pub async fn read_for_client(&self, started: Nanos, at: Sector, sectors: u64) -> IoResult<Buf> {
        let Some(into) = self.env.buffers().for_sectors(sectors) else {
            self.env.mark("no_memory_for_client");
            return Err(IoError::NoMemory);
        };
        self.count_read(sectors);
        let (buf, result) = self.device.read(at, into).await;
        self.ended(&self.histograms.read, started);
        self.read_ended(SectorRange::new(at, sectors), buf, result)
    }

    /// Reads a range to a place, for a client. Begun at `started`. An error says nothing about the
    /// device, and is not counted: [`CountedDevice::read_for_client`] finds out.
    pub async fn read_into(&self, started: Nanos, range: SectorRange, place: Place) -> IoResult {
        self.device.read_into(range, place).await?;
        if self.is_lost(range) {
            return Err(IoError::Os(EIO));
        }
        self.count_read(range.sectors());
        self.ended(&self.histograms.read, started);
        Ok(())
    }

    /// Reads `sectors` sectors, of metadata or in the background. Waits until there is memory for
    /// them: who needs these has no better way to go on.
    pub async fn read(&self, at: Sector, sectors: u64) -> IoResult<Buf> {
        let into = loop {
            match self.env.buffers().for_sectors(sectors) {
                Some(into) => break into,
                None => {
                    self.env.mark("waits_for_memory");
                    self.env.sleep(MEMORY_RETRY_INTERVAL).await;
                }
            }
        };
        self.count_read(sectors);
        let started = self.env.now();
        let (buf, result) = self.device.read(at, into).await;
        self.ended(&self.histograms.read, started);
        self.read_ended(SectorRange::new(at, sectors), buf, result)
    }

    #[inline(always)]
    fn ended(&self, histogram: &Histogram, started: Nanos) {
        let now = self.env.now();
        let taken = Taken::new(now.since(started));
        histogram.record(taken);
        self.latest.set((now, taken));
    }

    /// A lane's read of a range has ended. Returns its time if what was read may be used: not if a
    /// failed flush may have cost some of it.
    pub fn lane_read(&self, range: SectorRange, end: ReadEnd) -> Option<Nanos> {
        let took = match end {
            ReadEnd::Read(took) => took,
            ReadEnd::Failed(error) => {
                self.failed(Operation::Read, range, &error);
                return None;
            }
            ReadEnd::GivenUp => return None,
        };
        if self.is_lost(range) {
            self.env.mark("lost_place_read");
            return None;
        }
        self.count_read(range.sectors());
        let taken = Taken::new(took);
        self.histograms.read.record(taken);
        self.latest.set((self.env.now(), taken));
        Some(took)
    }

    /// The request that has ended last: its end, and its time. In the step in which a request
    /// ends, it is that one.
    #[inline(always)]
    pub fn latest(&self) -> (Nanos, Taken) {
        self.latest.get()
    }

    /// Reads a range into memory that is there already, of its length.
    pub async fn read_buffer(&self, at: Sector, into: Buf) -> IoResult<Buf> {
        let range = SectorRange::new(at, into.len() as u64 / ubcache_format::SECTOR_BYTES);
        self.count_read(range.sectors());
        let started = self.env.now();
        let (buf, result) = self.device.read(at, into).await;
        self.ended(&self.histograms.read, started);
        self.read_ended(range, buf, result)
    }

    fn count_read(&self, sectors: u64) {
        self.count(|c| {
            c.reads += 1;
            c.read_bytes += sectors * ubcache_format::SECTOR_BYTES;
        });
    }

    fn read_ended(&self, range: SectorRange, buf: Buf, mut result: IoResult) -> IoResult<Buf> {
        if self.is_lost(range) {
            self.env.mark("lost_place_read");
            result = result.and(Err(IoError::Os(EIO)));
        }
        if let Err(error) = &result {
            self.failed(Operation::Read, range, error);
        }
        result.map(|()| buf)
    }

    async fn change(&self, change: Change) -> IoResult {
        match change {
            Change::Write(at, from, durability) => self.write_here(at, from, durability).await,
            Change::Discard(range) => self.discard_here(range).await,
            Change::Zeroes(range) => self.write_zeroes_here(range).await,
            Change::Holes(range) => self.write_holes_here(range).await,
        }
    }

    pub async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        let range = SectorRange::new(at, from.sectors());
        if let Some(successor) = self.successor_for(range) {
            let change = Change::Write(at, from, durability);
            return Box::pin(self.change_both(successor, change)).await;
        }
        // The same as `write_here`: every write comes through here, and a future in another costs.
        let started = self.write_begins(range);
        let result = self.device.write(at, from, durability).await;
        self.write_ended(range, durability, started, &result);
        result
    }

    async fn write_here(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        let range = SectorRange::new(at, from.sectors());
        let started = self.write_begins(range);
        let result = self.device.write(at, from, durability).await;
        self.write_ended(range, durability, started, &result);
        result
    }

    #[inline(always)]
    fn write_begins(&self, range: SectorRange) -> Nanos {
        self.note_change(range);
        self.count(|c| {
            c.writes += 1;
            c.written_bytes += range.bytes();
        });
        self.env.now()
    }

    #[inline(always)]
    fn write_ended(
        &self,
        range: SectorRange,
        durability: Durability,
        started: Nanos,
        result: &IoResult,
    ) {
        self.ended(&self.histograms.write, started);
        // A FUA write needs no flush, and a failed one may have landed.
        if durability == Durability::Volatile || result.is_err() {
            self.written(range);
        }
        if let Err(error) = result {
            self.failed(Operation::Write, range, error);
        }
    }

    /// Returns true if every write that completed is covered by an earlier flush.
    pub fn is_flushed(&self) -> bool {
        self.flushed.get() >= self.completed.get()
    }

    /// Flushes, unless every write that completed is covered by an earlier flush.
    pub async fn flush(&self) -> IoResult {
        if self.is_flushed() {
            return Ok(());
        }
        let (completed, failed_before) = (self.completed.get(), self.failed_flushes.get());
        if let Some(lost) = &self.lost {
            if self.any_lost.get() {
                return Err(IoError::Os(EIO));
            }
            lost.borrow_mut().flush_begins(completed);
        }
        self.count(|c| c.flushes += 1);
        let started = self.env.now();
        let result = self.device.flush().await;
        self.ended(&self.histograms.flush, started);
        match &result {
            Ok(()) if self.failed_flushes.get() > failed_before => {
                // Another one failed meanwhile, and an error is reported once.
                self.env.mark("flush_beside_a_failed_one");
                return Err(IoError::Os(EIO));
            }
            Ok(()) => {
                self.flushed.set(self.flushed.get().max(completed));
                if let Some(lost) = &self.lost {
                    lost.borrow_mut().flushed(completed);
                }
            }
            Err(error) => {
                self.failed(Operation::Flush, SectorRange::new(Sector(0), 0), error);
                self.flush_failed(error);
            }
        }
        result
    }

    /// The device may have dropped whatever it had not made durable, and the next flush succeeds
    /// over the loss.
    fn flush_failed(&self, error: &IoError) {
        self.failed_flushes.set(self.failed_flushes.get() + 1);
        if let Some(successor) = &*self.successor.borrow() {
            successor.mirror.end(MoveEnd::OldLoses(error.clone()));
        }
        self.changes.take();
        let tell = self.when_flush_fails.borrow().clone();
        // Nobody is told while a device is being opened: whoever opens it gives up.
        let Some(tell) = tell else { return };
        if let Some(lost) = &self.lost {
            lost.borrow_mut().flush_failed();
            self.any_lost.set(true);
        }
        tell(error);
    }

    pub async fn discard(&self, range: SectorRange) -> IoResult {
        match self.successor_for(range) {
            None => self.discard_here(range).await,
            Some(successor) => Box::pin(self.change_both(successor, Change::Discard(range))).await,
        }
    }

    async fn discard_here(&self, range: SectorRange) -> IoResult {
        self.note_change(range);
        self.count(|c| c.discards += 1);
        let result = self.device.discard(range).await;
        self.written(range);
        if let Err(error) = &result
            && *error != IoError::NotSupported
        {
            self.failed(Operation::Discard, range, error);
        }
        result
    }

    /// Sees to it that writes to the range find room.
    pub async fn allocate(&self, range: SectorRange) -> IoResult {
        self.device.allocate(range).await
    }

    pub async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        match self.successor_for(range) {
            None => self.write_zeroes_here(range).await,
            Some(successor) => Box::pin(self.change_both(successor, Change::Zeroes(range))).await,
        }
    }

    async fn write_zeroes_here(&self, range: SectorRange) -> IoResult {
        self.note_change(range);
        self.count(|c| c.writes += 1);
        let started = self.env.now();
        let result = self.device.write_zeroes(range).await;
        self.ended(&self.histograms.write, started);
        self.written(range);
        if let Err(error) = &result {
            self.failed(Operation::WriteZeroes, range, error);
        }
        result
    }

    /// Writes zeroes, and lets the device give the room back.
    pub async fn write_holes(&self, range: SectorRange) -> IoResult {
        match self.successor_for(range) {
            None => self.write_holes_here(range).await,
            Some(successor) => Box::pin(self.change_both(successor, Change::Holes(range))).await,
        }
    }

    async fn write_holes_here(&self, range: SectorRange) -> IoResult {
        self.note_change(range);
        self.count(|c| c.writes += 1);
        let started = self.env.now();
        let result = self.device.write_holes(range).await;
        self.ended(&self.histograms.write, started);
        self.written(range);
        if let Err(error) = &result {
            self.failed(Operation::WriteZeroes, range, error);
        }
        result
    }

    /// Compares the device with what was left of it (A9).
    pub async fn witness(&self) -> IoResult<Witness> {
        self.device.witness().await
    }

    /// Looks at the size again: see [`Device::refresh_size`].
    pub async fn refresh_size(&self) -> IoResult<u64> {
        self.device.refresh_size().await
    }

    /// Notes what is left of the device, which is not written any more (A9).
    pub async fn seal(&self) -> IoResult {
        self.device.seal().await
    }

    /// The holes of the device: see [`Device::holes`].
    pub async fn holes(
        &self,
        range: SectorRange,
        most: usize,
    ) -> IoResult<Vec<(SectorRange, bool)>> {
        self.device.holes(range, most).await
    }
}
