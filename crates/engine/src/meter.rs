//! A device that counts what goes through it.

use std::cell::Cell;

use ubcache_env::{
    Buf, Device, Durability, Env, Geometry, IoError, IoResult, IoVec, Nanos, Sector, SectorRange,
};

use crate::stats::DeviceCounters;

/// Counts requests and bytes, and skips a flush that has nothing to flush.
pub(crate) struct Meter<E: Env> {
    env: E,
    device: E::Device,
    counters: Cell<DeviceCounters>,
    /// Writes completed, and of these how many the last good flush covers.
    completed: Cell<u64>,
    flushed: Cell<u64>,
}

/// How long somebody who can wait for memory waits before asking again.
const MEMORY_PATIENCE: Nanos = Nanos::from_millis(10);

impl<E: Env> Meter<E> {
    pub fn new(env: E, device: E::Device) -> Meter<E> {
        // Somebody else may have written before: the first flush is never skipped.
        Meter { env, device, counters: Cell::default(), completed: Cell::new(1), flushed: Cell::new(0) }
    }

    pub fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut DeviceCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn written(&self) {
        self.completed.set(self.completed.get() + 1);
    }

    pub fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Reads `sectors` sectors for a client, who is told if there is no memory for them.
    pub async fn read_for_client(&self, at: Sector, sectors: u64) -> IoResult<Buf> {
        let Some(into) = self.env.buffers().for_sectors(sectors) else {
            self.env.mark("no_memory_for_client");
            return Err(IoError::NoMemory);
        };
        self.count_read(sectors);
        let (buf, result) = self.device.read(at, into).await;
        self.read_ended(buf, result)
    }

    /// Reads `sectors` sectors, of metadata or in the background. Waits until there is memory for them: who needs these
    /// has no better way to go on.
    pub async fn read(&self, at: Sector, sectors: u64) -> IoResult<Buf> {
        let into = loop {
            match self.env.buffers().for_sectors(sectors) {
                Some(into) => break into,
                None => {
                    self.env.mark("waits_for_memory");
                    self.env.sleep(MEMORY_PATIENCE).await;
                }
            }
        };
        self.count_read(sectors);
        let (buf, result) = self.device.read(at, into).await;
        self.read_ended(buf, result)
    }

    fn count_read(&self, sectors: u64) {
        self.count(|c| {
            c.reads += 1;
            c.read_bytes += sectors * ubcache_format::SECTOR_BYTES;
        });
    }

    fn read_ended(&self, buf: Buf, result: IoResult) -> IoResult<Buf> {
        if result.is_err() {
            self.count(|c| c.errors += 1);
        }
        result.map(|()| buf)
    }

    pub async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.count(|c| {
            c.writes += 1;
            c.written_bytes += from.len() as u64;
        });
        let result = self.device.write(at, from, durability).await;
        // A FUA write needs no flush, and a failed one may have landed.
        if durability == Durability::Volatile || result.is_err() {
            self.written();
        }
        if result.is_err() {
            self.count(|c| c.errors += 1);
        }
        result
    }

    /// Whether every write that completed is covered by an earlier flush.
    pub fn is_flushed(&self) -> bool {
        self.flushed.get() >= self.completed.get()
    }

    /// Flushes, unless every write that completed is covered by an earlier flush.
    pub async fn flush(&self) -> IoResult {
        if self.is_flushed() {
            return Ok(());
        }
        let completed = self.completed.get();
        self.count(|c| c.flushes += 1);
        let result = self.device.flush().await;
        match result {
            Ok(()) => self.flushed.set(self.flushed.get().max(completed)),
            Err(_) => self.count(|c| c.errors += 1),
        }
        result
    }

    pub async fn discard(&self, range: SectorRange) -> IoResult {
        self.count(|c| c.discards += 1);
        let result = self.device.discard(range).await;
        self.written();
        result
    }

    /// Sees to it that writes to the range find room.
    pub async fn allocate(&self, range: SectorRange) -> IoResult {
        self.device.allocate(range).await
    }

    pub async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.count(|c| c.writes += 1);
        let result = self.device.write_zeroes(range).await;
        self.written();
        result
    }
}
