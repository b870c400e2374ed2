//! The device over a volume.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use ubcache_env::local::{Lock, join_all};
use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Distance, Durability, Env, IoError, IoResult, IoVec,
    Priority, Sector, SectorRange,
};
use ubcache_format::SECTOR_BYTES;

use crate::ahead::{Found, PIECE_MAX, ReadAhead};
use crate::attach::OpenOptions;
use crate::buffers::Buffers;
use crate::lease::{Held, LeaseFailure, RENEWAL};
use crate::manifest::{Root, Shape};
use crate::map::ObjectMap;
use crate::names::{Version, data_key};
use crate::retry::{Patient, StoreEvent};
use crate::store::{Store, StoreError};

/// EIO, EROFS, ESTALE.
const EIO: i32 = 5;
const EROFS: i32 = 30;
const ESTALE: i32 = 116;

/// The last root that this writer knows to be in the store.
pub struct Committed {
    /// Its content.
    pub root: Root,
    /// Its tag.
    pub etag: String,
}

/// An attached volume. Cheap to clone.
pub struct ObjectDisk<E: Env, S: Store>(pub(crate) Rc<Inner<E, S>>);

impl<E: Env, S: Store> Clone for ObjectDisk<E, S> {
    fn clone(&self) -> Self {
        ObjectDisk(self.0.clone())
    }
}

pub(crate) struct Inner<E: Env, S: Store> {
    pub(crate) env: E,
    pub(crate) store: Patient<E, S>,
    pub(crate) options: OpenOptions,
    pub(crate) shape: Cell<Shape>,
    pub(crate) epoch: u64,
    pub(crate) committed: RefCell<Committed>,
    pub(crate) map: RefCell<ObjectMap>,
    pub(crate) buffers: RefCell<Buffers>,
    pub(crate) ahead: RefCell<ReadAhead>,
    pub(crate) next_serial: Cell<u64>,
    pub(crate) next_turn: Cell<u64>,
    pub(crate) flushing: Lock,
    pub(crate) flush_began: Cell<u64>,
    pub(crate) flush_done: Cell<u64>,
    /// PUTs that run beside the writes.
    pub(crate) uploads: Cell<u64>,
    lease: RefCell<Option<Held>>,
    lease_turn: Lock,
    /// Reason why nothing is read or written any more.
    lost: RefCell<Option<String>>,
}

/// A part of a request that is within one object.
pub(crate) struct Part {
    pub(crate) index: u64,
    /// In sectors from the start of the object.
    pub(crate) range: SectorRange,
}

impl<E: Env, S: Store> ObjectDisk<E, S> {
    pub(crate) fn new(
        env: &E,
        store: Patient<E, S>,
        options: &OpenOptions,
        committed: Committed,
        map: ObjectMap,
        lease: Option<Held>,
    ) -> ObjectDisk<E, S> {
        let shape = committed.root.shape();
        ObjectDisk(Rc::new(Inner {
            env: env.clone(),
            store,
            shape: Cell::new(shape),
            epoch: committed.root.epoch,
            buffers: RefCell::new(Buffers::new(shape.object_bytes)),
            ahead: RefCell::new(ReadAhead::new(options.read_memory_bytes)),
            options: options.clone(),
            committed: RefCell::new(committed),
            map: RefCell::new(map),
            next_serial: Cell::new(1),
            next_turn: Cell::new(1),
            flushing: Lock::default(),
            flush_began: Cell::new(0),
            flush_done: Cell::new(0),
            uploads: Cell::new(0),
            lease: RefCell::new(lease),
            lease_turn: Lock::default(),
            lost: RefCell::new(None),
        }))
    }

    /// Starts the renewal of the lease and the search for objects that nothing names.
    pub(crate) fn start(&self) {
        let (env, disk) = (self.0.env.clone(), Rc::downgrade(&self.0));
        self.0.env.spawn(Priority::Background, async move {
            loop {
                env.sleep(RENEWAL).await;
                let Some(disk) = disk.upgrade() else { return };
                if !disk.renew().await {
                    return;
                }
            }
        });
        let sweep = self.0.clone();
        self.0.env.spawn(Priority::Background, async move { sweep.sweep().await });
    }

    /// Sizes of the volume.
    pub fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// Random name of the volume.
    pub fn volume(&self) -> String {
        self.0.committed.borrow().root.volume.clone()
    }

    /// Memory that written data takes.
    pub fn memory_bytes(&self) -> u64 {
        self.0.buffers.borrow().memory_bytes()
    }

    /// Number of objects and of pages that the volume has in the store.
    pub fn named(&self) -> (usize, usize) {
        let pages = self.0.committed.borrow().root.pages.iter().flatten().count();
        (self.0.map.borrow().objects(), pages)
    }

    /// Makes everything durable and gives the lease back. Later requests fail.
    pub async fn close(&self) -> IoResult {
        let inner = &self.0;
        let flushed = inner.flush().await;
        let _turn = inner.lease_turn.lock().await;
        let held = inner.lease.take();
        if let Some(mut held) = held
            && inner.lost.borrow().is_none()
        {
            // Without it, the next one has to wait.
            let _ = held.release(&inner.store).await;
        }
        inner.lost.borrow_mut().get_or_insert_with(|| "it is closed".to_owned());
        flushed
    }
}

impl<E: Env, S: Store> Inner<E, S> {
    pub(crate) fn shape(&self) -> Shape {
        self.shape.get()
    }

    pub(crate) fn version(&self) -> Version {
        let serial = self.next_serial.get();
        self.next_serial.set(serial + 1);
        let epoch = if self.options.rules.names_without_epoch { 0 } else { self.epoch };
        Version(epoch, serial)
    }

    /// Another writer has the volume.
    pub(crate) fn lose(&self, reason: String) -> IoError {
        if self.lost.borrow().is_none() {
            *self.lost.borrow_mut() = Some(reason.clone());
            (self.options.events)(StoreEvent::Lost { reason });
        }
        IoError::Os(ESTALE)
    }

    /// Fails if nothing may be read any more.
    pub(crate) fn check(&self) -> IoResult {
        if self.lost.borrow().is_some() { Err(IoError::Os(ESTALE)) } else { Ok(()) }
    }

    pub(crate) fn check_write(&self) -> IoResult {
        if self.options.read_only { Err(IoError::Os(EROFS)) } else { self.check() }
    }

    fn check_range(&self, at: Sector, bytes: usize) -> IoResult {
        let sectors = self.shape().size_bytes / SECTOR_BYTES;
        let count = bytes as u64 / SECTOR_BYTES;
        if !(bytes as u64).is_multiple_of(SECTOR_BYTES) {
            return Err(IoError::Os(22));
        }
        if at.0 > sectors || count > sectors - at.0 {
            let range = SectorRange::new(at, count.min(u64::MAX - at.0));
            return Err(IoError::OutOfRange { range, sectors });
        }
        Ok(())
    }

    pub(crate) fn parts(&self, range: SectorRange) -> impl Iterator<Item = Part> + use<E, S> {
        let object = self.shape().object_bytes / SECTOR_BYTES;
        let mut at = range.start.0;
        std::iter::from_fn(move || {
            let index = at / object;
            let start = index * object;
            let end = range.end.0.min(start + object);
            let here = Sector(at - start);
            (at < end).then(|| {
                at = end;
                Part { index, range: SectorRange::from_bounds(here, Sector(end - start)) }
            })
        })
    }

    /// Renews the lease. Returns false if there is none any more.
    async fn renew(&self) -> bool {
        let _turn = self.lease_turn.lock().await;
        let held = self.lease.take();
        let Some(mut held) = held else { return false };
        let renewed = held.renew(&self.store).await;
        *self.lease.borrow_mut() = Some(held);
        // A store that is away is no reason: nobody else can write then either.
        if let Err(LeaseFailure::InUse(other)) = renewed {
            self.lose(format!("the lease was taken by {other}"));
        }
        self.lost.borrow().is_none()
    }

    /// Reads a part of an object: what is in memory lies over what is in the store.
    async fn read_part(self: &Rc<Self>, part: &Part, into: &mut [u8]) -> IoResult {
        loop {
            let version = self.map.borrow().get(part.index);
            let slot = self.buffers.borrow().get(part.index);
            let [upper, lower] = slot.map(|slot| slot.layers()).unwrap_or_default();
            let mut gaps = vec![part.range];
            for layer in [&upper, &lower].into_iter().flatten() {
                let layer = layer.borrow();
                gaps = gaps.into_iter().flat_map(|gap| layer.gaps(gap)).collect();
            }
            if let (Some(first), Some(last)) = (gaps.first(), gaps.last()) {
                let gap = SectorRange::from_bounds(first.start, last.end);
                let from = ((gap.start.0 - part.range.start.0) * SECTOR_BYTES) as usize;
                let target = &mut into[from..from + gap.bytes() as usize];
                match version {
                    None => target.fill(0),
                    Some(version) => match self.fetch(part.index, version, gap, target).await {
                        Ok(()) => {}
                        Err(StoreError::NotFound(_))
                            if self.map.borrow().get(part.index) != Some(version) =>
                        {
                            continue;
                        }
                        Err(error) => return Err(self.failure(error)),
                    },
                }
            }
            for layer in [lower, upper].into_iter().flatten() {
                layer.borrow().copy_to(part.range, into);
            }
            return self.check();
        }
    }

    /// Reads bytes of an object in the store.
    async fn fetch(
        self: &Rc<Self>,
        index: u64,
        version: Version,
        range: SectorRange,
        into: &mut [u8],
    ) -> Result<(), StoreError> {
        let (mut at, end) = (range.start.0 * SECTOR_BYTES, range.end.0 * SECTOR_BYTES);
        let start = index * self.shape().object_bytes;
        let more = self.ahead.borrow_mut().note(&(start + at..start + end));
        self.fetch_ahead(more);
        let (mut into, mut may_wait) = (into, true);
        while at < end {
            let found = self.ahead.borrow().look(index, version, &(at..end));
            let bytes = match found {
                Found::Here(bytes) => bytes,
                Found::Coming(event) if may_wait => {
                    event.wait().await;
                    // If it has failed, this request finds out why.
                    may_wait = false;
                    continue;
                }
                Found::Coming(_) => self.get_exactly(index, version, at..end).await?,
                Found::Nothing(until) => self.get_exactly(index, version, at..until).await?,
            };
            let (part, rest) = into.split_at_mut(bytes.len());
            part.copy_from_slice(&bytes);
            (into, may_wait) = (rest, true);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Begins to fetch these bytes of the volume, in pieces.
    fn fetch_ahead(self: &Rc<Self>, range: Range<u64>) {
        let sectors = |byte: u64| byte.min(self.shape().size_bytes) / SECTOR_BYTES;
        let range =
            SectorRange::from_bounds(Sector(sectors(range.start)), Sector(sectors(range.end)));
        for part in self.parts(range) {
            // Holes are not read.
            let Some(version) = self.map.borrow().get(part.index) else { continue };
            let (start, end) = (part.range.start.0 * SECTOR_BYTES, part.range.end.0 * SECTOR_BYTES);
            for from in (start..end).step_by(PIECE_MAX as usize) {
                let piece = from..end.min(from + PIECE_MAX);
                // Another stream may have it, or its end.
                let found = self.ahead.borrow().look(part.index, version, &piece);
                let Found::Nothing(until) = found else { continue };
                let piece = from..until;
                let number = self.ahead.borrow_mut().begin(part.index, version, piece.clone());
                let inner = self.clone();
                self.env.spawn(Priority::Background, async move {
                    let got = inner.get_exactly(part.index, version, piece).await;
                    inner.ahead.borrow_mut().end(number, got.ok());
                });
            }
        }
    }

    pub(crate) async fn get_exactly(
        &self,
        index: u64,
        version: Version,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let key = data_key(index, version);
        let bytes = self.store.get(&key, Some(range.clone())).await?.bytes;
        if bytes.len() as u64 != range.end - range.start {
            let (found, expected) = (bytes.len(), range.end - range.start);
            return Err(StoreError::Other(format!("{key}: {found} bytes instead of {expected}")));
        }
        Ok(bytes)
    }

    /// The failure of a request, for the cache. What the repetition did not report is reported.
    pub(crate) fn failure(&self, error: StoreError) -> IoError {
        let errno = error.errno();
        if !error.is_passing() {
            (self.options.events)(StoreEvent::GivenUp { error });
        }
        IoError::Os(errno)
    }
}

impl<E: Env, S: Store> Device for ObjectDisk<E, S> {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.0.shape().size_bytes / SECTOR_BYTES,
            logical_block_bytes: 512,
            max_transfer_bytes: self.0.shape().object_bytes as u32,
            volatile_cache: true,
            discard: true,
        }
    }

    fn shape(&self) -> DeviceShape {
        let optimal_bytes = self.0.shape().object_bytes as u32;
        DeviceShape { optimal_bytes, distance: Distance::Remote }
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        let check = self.0.check().and_then(|()| self.0.check_range(at, into.len()));
        if check.is_err() {
            return (into, check);
        }
        let range = SectorRange::new(at, into.len() as u64 / SECTOR_BYTES);
        let mut rest = into.as_mut_slice();
        let mut reads = Vec::new();
        for part in self.0.parts(range) {
            let (bytes, others) = rest.split_at_mut(part.range.bytes() as usize);
            rest = others;
            reads.push(async move { self.0.read_part(&part, bytes).await });
        }
        let results = join_all(reads).await;
        (into, results.into_iter().collect())
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.0.check_write()?;
        self.0.check_range(at, from.len())?;
        let mut done = 0;
        for part in self.0.parts(SectorRange::new(at, from.sectors())) {
            let len = part.range.bytes() as usize;
            self.0.write_part(&part, &from.cut(done, done + len)).await?;
            done += len;
        }
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Fua => self.0.flush().await,
        }
    }

    async fn flush(&self) -> IoResult {
        if self.0.options.read_only { Ok(()) } else { self.0.flush().await }
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        self.0.check_write()?;
        self.0.check_range(range.start, range.bytes() as usize)?;
        let object = self.0.shape().object_bytes;
        for part in self.0.parts(range).filter(|part| part.range.bytes() == object) {
            self.0.zero_part(&part).await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.0.check_write()?;
        self.0.check_range(range.start, range.bytes() as usize)?;
        for part in self.0.parts(range) {
            self.0.zero_part(&part).await?;
        }
        Ok(())
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        self.0.check_range(range.start, range.bytes() as usize)?;
        let (map, buffers) = (self.0.map.borrow(), self.0.buffers.borrow());
        let mut found: Vec<(SectorRange, bool)> = Vec::new();
        let mut at = range.start;
        for part in self.0.parts(range) {
            let hole = map.get(part.index).is_none() && buffers.get(part.index).is_none();
            let here = SectorRange::new(at, part.range.sectors());
            at = here.end;
            let full = found.len() == most.max(1);
            match found.last_mut() {
                Some((last, state)) if *state == hole => last.end = here.end,
                _ if full => break,
                _ => found.push((here, hole)),
            }
        }
        Ok(found)
    }
}

/// Errno of a failure that has none.
pub(crate) fn eio() -> IoError {
    IoError::Os(EIO)
}
