//! A device that counts what goes through it.

use std::cell::Cell;

use ubcache_env::{Buf, BufPool, Device, Durability, Geometry, IoResult, IoVec, Sector, SectorRange};

use crate::stats::DeviceCounters;

/// Counts requests and bytes, and skips a flush that has nothing to flush.
#[derive(Debug)]
pub(crate) struct Meter<D> {
    device: D,
    counters: Cell<DeviceCounters>,
    /// Writes completed, and of these how many the last good flush covers.
    completed: Cell<u64>,
    flushed: Cell<u64>,
    pool: BufPool,
}

impl<D: Device> Meter<D> {
    pub fn new(device: D) -> Meter<D> {
        // Somebody else may have written before: the first flush is never skipped.
        Meter {
            device,
            counters: Cell::default(),
            completed: Cell::new(1),
            flushed: Cell::new(0),
            pool: BufPool::default(),
        }
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

    /// Reads `sectors` sectors.
    pub async fn read(&self, at: Sector, sectors: u64) -> IoResult<Buf> {
        self.count(|c| {
            c.reads += 1;
            c.read_bytes += sectors * ubcache_format::SECTOR_BYTES;
        });
        let (buf, result) = self.device.read(at, self.pool.for_sectors(sectors)).await;
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

    /// Flushes, unless every write that completed is covered by an earlier flush.
    pub async fn flush(&self) -> IoResult {
        let completed = self.completed.get();
        if self.flushed.get() >= completed {
            return Ok(());
        }
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

    pub async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.count(|c| c.writes += 1);
        let result = self.device.write_zeroes(range).await;
        self.written();
        result
    }
}
