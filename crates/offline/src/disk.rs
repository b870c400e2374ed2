//! Reading from devices: bounds, errors in words, progress.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use ubcache_env::local::join_all;
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

/// Memory to read into that was used before: asking for it, clearing it and touching it for the first time takes as long
/// as reading into it does.
pub(crate) struct Spare {
    free: RefCell<Vec<Buf>>,
    bytes_max: u64,
}

impl Spare {
    /// A place that keeps so many bytes at most.
    pub fn new(bytes_max: u64) -> Spare {
        Spare { free: RefCell::default(), bytes_max }
    }

    fn take(&self, bytes: usize) -> Buf {
        let mut free = self.free.borrow_mut();
        match free.iter().position(|buf| buf.len() == bytes) {
            Some(index) => free.swap_remove(index),
            None => {
                // That of other lengths makes room: all together it does not become more.
                let mut room = 0;
                while room < bytes
                    && let Some(other) = free.pop()
                {
                    room += other.len();
                }
                Buf::zeroed(bytes)
            }
        }
    }

    /// Keeps memory for the next one, if there is room. Of other lengths, what was kept makes room.
    pub fn give(&self, buf: Buf) {
        let mut free = self.free.borrow_mut();
        let mut kept: u64 = free.iter().map(|buf| buf.len() as u64).sum();
        while kept + buf.len() as u64 > self.bytes_max
            && let Some(index) = free.iter().position(|other| other.len() != buf.len())
        {
            kept -= free.swap_remove(index).len() as u64;
        }
        if kept + buf.len() as u64 <= self.bytes_max {
            free.push(buf);
        }
    }
}

/// What was read before anybody asked for it.
#[derive(Default)]
pub(crate) struct Early {
    read: RefCell<Vec<(SectorRange, Result<Buf, String>)>>,
}

impl Early {
    /// Reads ranges that were not read yet, all at once.
    pub async fn read_all<D: Device>(&self, device: &D, mut ranges: Vec<SectorRange>) {
        ranges.retain(|range| self.read.borrow().iter().all(|(there, _)| there != range));
        let all = join_all(ranges.iter().map(|range| read(device, range.start, range.sectors()))).await;
        self.read.borrow_mut().extend(ranges.into_iter().zip(all));
    }

    /// What was read of this range, once.
    pub fn take(&self, range: SectorRange) -> Option<Result<Buf, String>> {
        let mut read = self.read.borrow_mut();
        let index = read.iter().position(|(there, _)| *there == range)?;
        Some(read.swap_remove(index).1)
    }

    /// As [`read`], if it was not read already.
    pub async fn read<D: Device>(&self, device: &D, at: Sector, sectors: u64) -> Result<Buf, String> {
        let there = self.take(SectorRange::new(at, sectors));
        match there {
            Some(result) => result,
            None => read(device, at, sectors).await,
        }
    }
}

/// Reads `sectors` sectors; the error is in words.
pub(crate) async fn read<D: Device>(device: &D, at: Sector, sectors: u64) -> Result<Buf, String> {
    read_into(device, at, sectors, &Spare::new(0)).await
}

/// The same, into spare memory if there is any.
pub(crate) async fn read_into<D: Device>(
    device: &D,
    at: Sector,
    sectors: u64,
    spare: &Spare,
) -> Result<Buf, String> {
    let all = device.geometry().sectors;
    let range = SectorRange::new(at, sectors);
    if range.end.0 > all || sectors > u64::from(u32::MAX) {
        return Err(format!("sectors {range} are not on the device, which has {all}"));
    }
    let (buf, result) = device.read(at, spare.take((sectors * SECTOR_BYTES) as usize)).await;
    match result {
        Ok(()) => Ok(buf),
        Err(error) => {
            spare.give(buf);
            Err(format!("reading sectors {range}: {error}"))
        }
    }
}

/// The longest read around holes, in sectors: longer than any part of a set.
const MOST_AROUND: u64 = 1 << 20;

/// Reads what can be read. Where nothing can be, there are zeroes; these holes are listed, in bytes from the start, in
/// order. What is beyond the end of the device can't be read.
pub(crate) async fn read_around<D: Device>(
    device: &D,
    at: Sector,
    sectors: u64,
) -> Result<(Buf, Vec<Range<u64>>), String> {
    let geometry = device.geometry();
    if sectors > MOST_AROUND {
        return read(device, at, sectors).await.map(|bytes| (bytes, Vec::new()));
    }
    let block = u64::from(geometry.logical_block_bytes).div_ceil(SECTOR_BYTES).max(1);
    let mut buf = Buf::zeroed((sectors * SECTOR_BYTES) as usize);
    let mut holes: Vec<Range<u64>> = Vec::new();
    let mut parts = vec![(0, sectors)];
    while let Some((from, count)) = parts.pop() {
        let bytes = from * SECTOR_BYTES..(from + count) * SECTOR_BYTES;
        match read(device, at + from, count).await {
            Ok(part) => {
                if let Some(into) = buf.as_mut_slice().get_mut(bytes.start as usize..bytes.end as usize) {
                    into.copy_from_slice(part.as_slice());
                }
            }
            Err(_) if count <= block => match holes.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => holes.push(bytes),
            },
            Err(_) => {
                let half = (count / 2).next_multiple_of(block).min(count - 1).max(1);
                parts.push((from + half, count - half));
                parts.push((from, half));
            }
        }
    }
    Ok((buf, holes))
}
