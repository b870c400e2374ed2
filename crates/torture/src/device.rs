//! Devices in memory. Copies are cheap: pages are shared until one of them is written.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, IoError, IoResult, IoVec, Sector, SectorRange,
};
use ubcache_sim::Rng;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Page = Rc<[u8; PAGE]>;

/// The bytes of a device, and which of its sectors can't be read.
#[derive(Clone)]
pub struct Image {
    pages: Vec<Page>,
    bad: BTreeSet<u64>,
}

impl Image {
    /// An image with these bytes; the last page is filled up with zeroes.
    pub fn new(bytes: &[u8]) -> Image {
        let mut image = Image::zeroed(bytes.len());
        image.put(0, bytes);
        image
    }

    /// Zeroes of this length, in whole pages.
    pub fn zeroed(bytes: usize) -> Image {
        let zero: Page = Rc::new([0; PAGE]);
        Image { pages: vec![zero; bytes.div_ceil(PAGE)], bad: BTreeSet::new() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Returns true if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Copies bytes out, as many as there is room for.
    pub fn get_into(&self, at: usize, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let (page, offset) = ((at + done) / PAGE, (at + done) % PAGE);
            let count = (PAGE - offset).min(into.len() - done);
            into[done..done + count].copy_from_slice(&self.pages[page][offset..offset + count]);
            done += count;
        }
    }

    /// The bytes of a range.
    pub fn get(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        self.get_into(range.start, &mut bytes);
        bytes
    }

    /// Puts bytes in.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (page, offset) = ((at + done) / PAGE, (at + done) % PAGE);
            let count = (PAGE - offset).min(bytes.len() - done);
            let from = &bytes[done..done + count];
            if self.pages[page][offset..offset + count] != *from {
                Rc::make_mut(&mut self.pages[page])[offset..offset + count].copy_from_slice(from);
            }
            done += count;
        }
    }

    /// Changes one byte.
    pub fn change(&mut self, at: usize, change: impl FnOnce(u8) -> u8) {
        let page = Rc::make_mut(&mut self.pages[at / PAGE]);
        page[at % PAGE] = change(page[at % PAGE]);
    }

    /// Zeroes a range.
    pub fn zero(&mut self, range: Range<usize>) {
        self.put(range.start, &vec![0; range.len()]);
    }

    /// Sectors that can't be read until they are written.
    pub fn make_bad(&mut self, sectors: Range<u64>) {
        self.bad.extend(sectors);
    }

    /// Returns true if a range is unreadable, in whole or in part.
    pub fn is_bad(&self, sectors: Range<u64>) -> bool {
        self.bad.range(sectors).next().is_some()
    }
}

/// An operation on a device.
#[derive(Clone)]
pub enum Op {
    /// A write: where, what, and whether it is durable when it completes.
    Write(usize, Vec<u8>, bool),
    /// A flush.
    Flush,
}

/// A device in memory. Clones are handles of the same one.
#[derive(Clone)]
pub struct MemDevice {
    image: Rc<RefCell<Image>>,
    log: Rc<RefCell<Vec<Op>>>,
    reads: Rc<Cell<u64>>,
    block: u32,
}

impl MemDevice {
    /// A device with blocks of so many bytes.
    pub fn new(image: Image, block: u32) -> MemDevice {
        MemDevice {
            image: Rc::new(RefCell::new(image)),
            log: Rc::default(),
            reads: Rc::default(),
            block,
        }
    }

    /// Present content of the device.
    pub fn image(&self) -> Image {
        self.image.borrow().clone()
    }

    /// Operations on the device, in order.
    pub fn log(&self) -> Vec<Op> {
        self.log.borrow().clone()
    }

    /// Number of reads so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl Device for MemDevice {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.image.borrow().len() as u64 / SECTOR as u64,
            logical_block_bytes: self.block,
            max_transfer_bytes: 1 << 20,
            volatile_cache: true,
            discard: false,
        }
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        self.reads.set(self.reads.get() + 1);
        let image = self.image.borrow();
        let (from, end) = (at.bytes() as usize, at.bytes() as usize + into.len());
        assert!(end <= image.len(), "a read past the end of the device, of {from} to {end}");
        if image.is_bad(at.0..(end / SECTOR) as u64) {
            return (into, Err(IoError::Os(5)));
        }
        image.get_into(from, into.as_mut_slice());
        (into, Ok(()))
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        let bytes = from.to_buf().as_slice().to_vec();
        let mut image = self.image.borrow_mut();
        let block = self.block as usize;
        assert!(
            (at.bytes() as usize).is_multiple_of(block),
            "a write begins inside of a block: sector {at}"
        );
        assert!(
            bytes.len().is_multiple_of(block),
            "a write of {} bytes, which is no whole block",
            bytes.len()
        );
        image.put(at.bytes() as usize, &bytes);
        for sector in at.0..at.0 + (bytes.len() / SECTOR) as u64 {
            image.bad.remove(&sector);
        }
        self.log.borrow_mut().push(Op::Write(
            at.bytes() as usize,
            bytes,
            matches!(durability, Durability::Fua),
        ));
        Ok(())
    }

    async fn flush(&self) -> IoResult {
        self.log.borrow_mut().push(Op::Flush);
        Ok(())
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.write(range.start, IoVec::zeroes(range.bytes() as usize), Durability::Volatile).await
    }
}

/// Runs what never waits.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("devices in memory never let anybody wait"),
    }
}

/// Calls `found` with the possible contents of a device after a power cut: before each operation,
/// and after the last. Flushed data stays; of everything else each block has landed in one of its
/// versions or not, and of the operation under way any block. All of it, none, and some that are
/// drawn.
pub fn power_cuts(
    before: &Image,
    log: &[Op],
    block: usize,
    drawn: usize,
    rng: &mut Rng,
    mut found: impl FnMut(usize, &Image),
) {
    let mut durable = before.clone();
    // Earlier versions of each block that is not durable, oldest first.
    let mut open: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
    for moment in 0..=log.len() {
        let mut under_way = open.clone();
        if let Some(Op::Write(at, bytes, _)) = log.get(moment) {
            add(&mut under_way, *at, bytes, block);
        }
        let choices = under_way.values().map(|versions| versions.len() as u64 + 1);
        let all: u64 = choices.fold(1, |all, one| all.saturating_mul(one));
        let every = all <= drawn as u64 + 2;
        for outcome in 0..if every { all } else { drawn as u64 + 2 } {
            let (mut image, mut rest) = (durable.clone(), outcome);
            for (at, versions) in &under_way {
                let count = versions.len() as u64 + 1;
                let version = match (every, outcome) {
                    (true, _) => rest % count,
                    (false, 0) => 0,
                    (false, 1) => count - 1,
                    _ => rng.below(count),
                };
                rest /= count;
                if version > 0 {
                    land(&mut image, *at, &versions[version as usize - 1]);
                }
            }
            found(moment, &image);
        }
        match log.get(moment) {
            Some(Op::Write(at, bytes, true)) => {
                for (index, part) in bytes.chunks(block).enumerate() {
                    open.remove(&(at + index * block));
                    land(&mut durable, at + index * block, part);
                }
            }
            Some(Op::Write(at, bytes, false)) => add(&mut open, *at, bytes, block),
            Some(Op::Flush) => {
                for (at, versions) in std::mem::take(&mut open) {
                    if let Some(newest) = versions.last() {
                        land(&mut durable, at, newest);
                    }
                }
            }
            None => {}
        }
    }
}

fn add(open: &mut BTreeMap<usize, Vec<Vec<u8>>>, at: usize, bytes: &[u8], block: usize) {
    for (index, part) in bytes.chunks(block).enumerate() {
        open.entry(at + index * block).or_default().push(part.to_vec());
    }
}

fn land(image: &mut Image, at: usize, bytes: &[u8]) {
    image.put(at, bytes);
    for sector in at / SECTOR..(at + bytes.len()) / SECTOR {
        image.bad.remove(&(sector as u64));
    }
}
