//! Reading from devices: bounds, errors in words, progress.

use std::cell::Cell;

use ubcache_env::{Buf, Device};
use ubcache_format::{SECTOR_BYTES, Sector, SectorRange};

/// What a long piece of work is at.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is being done, in words: "journal", "tree", …
    pub phase: &'static str,
    /// Bytes done in this phase.
    pub done: u64,
    /// Bytes to do in this phase, as far as is known.
    pub total: u64,
}

/// Somebody who is told how far the work is. A function is one.
pub trait Watcher {
    /// Called often; has to be quick.
    fn watch(&self, progress: Progress);
}

impl Watcher for () {
    fn watch(&self, _: Progress) {}
}

impl<F: Fn(Progress)> Watcher for F {
    fn watch(&self, progress: Progress) {
        self(progress);
    }
}

/// A phase of work: counts, and tells the watcher.
pub(crate) struct Phase<'a> {
    watcher: &'a dyn Watcher,
    name: &'static str,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Phase<'a> {
    pub fn new(watcher: &'a dyn Watcher, name: &'static str, total: u64) -> Phase<'a> {
        watcher.watch(Progress { phase: name, done: 0, total });
        Phase { watcher, name, done: Cell::new(0), total }
    }

    pub fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        let done = self.done.get();
        self.watcher.watch(Progress { phase: self.name, done, total: self.total.max(done) });
    }
}

/// Reads `sectors` sectors; the error is in words.
pub(crate) async fn read<D: Device>(device: &D, at: Sector, sectors: u64) -> Result<Buf, String> {
    let all = device.geometry().sectors;
    let range = SectorRange::new(at, sectors);
    if range.end.0 > all || sectors > u64::from(u32::MAX) {
        return Err(format!("sectors {range} are not on the device, which has {all}"));
    }
    let (buf, result) = device.read(at, Buf::zeroed((sectors * SECTOR_BYTES) as usize)).await;
    match result {
        Ok(()) => Ok(buf),
        Err(error) => Err(format!("reading sectors {range}: {error}")),
    }
}
