//! A disk with everything that disks do: a volatile cache, late and partial landings, tears,
//! errors.
//!
//! ```text
//! submit ──────── lands (per sector, at drawn moments) ──────── completes
//!                  │ reads see it                                 │ a flush submitted from now on covers it
//!                  ▼                                              ▼
//!                live image ── un-flushed versions per sector ── durable content
//! ```
//!
//! * Blocks are whole: where the device's block is larger than a sector, its sectors share their
//!   fate.
//! * *Power failure*: every sector keeps its durable content or any of its un-flushed versions; of
//!   a write in flight every sector has landed or not.
//! * *Host restart*: the live image stays; of a write in flight every sector lands or not, all of
//!   them before the next instance sees the disk.
//! * A write that reports an error has landed in some of its sectors, or in none.
//! * A flush that reports an error makes nothing durable; on a disk with [`FlushLoss`] it loses as
//!   well.
//!
//! A [`SimDisk`] is a handle and survives crashes: the next instance opens the same disk.

mod crash_image;
mod fault;
mod image;
mod io;
mod joined;
mod lossy;
mod snapshot;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ubcache_env::erased::AnyDevice;
use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Distance, Durability, IoError, IoResult, IoVec, Joined,
    Nanos, Place, Sector, SectorRange, Witness,
};

pub use crash_image::CrashImage;
pub use fault::{Faults, Outage, Rates, ZoneFaults};
pub use lossy::FlushLoss;
pub use snapshot::Snapshot;

use crate::executor::{SimWorld, World};
use crate::rng::Rng;
use image::{Image, Versioned};
use io::{Io, IoKind, Wait};

const EFAULT: i32 = 14;
const EINVAL: i32 = 22;

/// Duration of an I/O.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Profile {
    /// 10 to 100 µs: a fast flash device.
    Fast,
    /// 1 to 15 ms: a disk with a head.
    Slow,
    /// 5 µs to 80 ms, all magnitudes alike: nothing completes in order.
    Jitter,
    /// Fast, but one I/O in 64 takes 0.5 to 8 seconds.
    Stall,
    /// Reads are fast, writes take 5 seconds: the device of the race test.
    LateWrites,
}

impl Profile {
    /// All profiles that plans draw from.
    pub const ALL: [Profile; 4] = [Profile::Fast, Profile::Slow, Profile::Jitter, Profile::Stall];

    fn draw(self, rng: &mut Rng, write: bool) -> u64 {
        const US: u64 = 1_000;
        match self {
            Profile::Fast => rng.between(10 * US, 100 * US),
            Profile::Slow => rng.between(1_000 * US, 15_000 * US),
            Profile::Jitter => rng.scale(5 * US, 80_000 * US),
            Profile::Stall if rng.chance(1, 64) => rng.between(500_000 * US, 8_000_000 * US),
            Profile::LateWrites if write => 5_000_000 * US,
            Profile::Stall | Profile::LateWrites => rng.between(20 * US, 200 * US),
        }
    }
}

/// Configuration of a disk.
#[derive(Clone, PartialEq, Debug)]
pub struct DiskConfig {
    /// Name for logs and reports.
    pub name: String,
    /// Size in sectors.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes.
    pub block_bytes: u32,
    /// True if there is a volatile cache.
    pub volatile_cache: bool,
    /// True if `discard` does anything.
    pub discard: bool,
    /// True if discarded sectors read differently every time until they are written. Such a disk
    /// says that it can't discard (D2); asked all the same, it does.
    pub noise: bool,
    /// Duration of an I/O.
    pub profile: Profile,
    /// Cost of a request, by its own word.
    pub distance: Distance,
}

impl DiskConfig {
    /// Sectors in the smallest unit of I/O.
    pub fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_bytes) / ubcache_format::SECTOR_BYTES
    }

    /// A fast disk with a volatile cache, 512-byte blocks and discard.
    pub fn new(name: &str, sectors: u64) -> DiskConfig {
        DiskConfig {
            name: name.to_owned(),
            sectors,
            block_bytes: 512,
            volatile_cache: true,
            discard: true,
            noise: false,
            profile: Profile::Fast,
            distance: Distance::Local,
        }
    }
}

/// Counters of what a disk has done.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Completed reads.
    pub reads: u64,
    /// Completed writes, also of zeroes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Completed discards.
    pub discards: u64,
    /// I/Os that completed with an error.
    pub errors: u64,
    /// Sectors that a power failure took back to an older content.
    pub lost: u64,
}

impl Counters {
    /// All completed I/Os.
    pub fn ios(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.discards
    }
}

pub(crate) struct Inner {
    config: DiskConfig,
    /// Its size now.
    sectors: Cell<u64>,
    world: Rc<World>,
    tag: u64,
    rng: RefCell<Rng>,
    state: RefCell<State>,
    flush_losses: Rc<Cell<u64>>,
}

#[derive(Default)]
struct State {
    image: Image,
    versions: Versioned,
    ios: BTreeMap<u64, Io>,
    next_io: u64,
    /// Orders completions against submissions of flushes.
    clock: u64,
    faults: Faults,
    bad: BTreeSet<u64>,
    /// Sectors that read differently every time.
    noise: BTreeSet<u64>,
    /// Fault of the whole disk, and its end.
    outage: Option<(Outage, Nanos)>,
    counters: Counters,
    changes: u64,
    /// Cost of a flush that fails; none: nothing.
    flush_loss: Option<FlushLoss>,
    /// Sectors that failed flushes have lost and reads still return, and until when they do.
    late_losses: Vec<(Nanos, Vec<u64>)>,
}

impl State {
    fn outage(&self, now: Nanos) -> Option<Outage> {
        self.outage.filter(|(_, until)| now < *until).map(|(outage, _)| outage)
    }

    /// Returns true if a full file system has no room for what an I/O writes.
    fn lacks_room(&self, range: SectorRange, kind: &IoKind) -> bool {
        matches!(kind, IoKind::Write { .. } | IoKind::Allocate) && !self.image.has_room(range)
    }
}

/// A copy of what was on a disk: see [`SimDisk::keep`].
pub struct Kept {
    image: Image,
    sectors: u64,
}

/// A simulated disk. See the module.
#[derive(Clone)]
pub struct SimDisk {
    inner: Rc<Inner>,
    /// The same disk behind a header: see [`SimDisk::behind_header`].
    joined: Option<Rc<Joined<joined::Part>>>,
    /// The same disk over the network: see [`SimDisk::over`].
    remote: Option<AnyDevice>,
}

impl SimDisk {
    /// A disk full of zeroes.
    pub fn new(world: &SimWorld, config: DiskConfig) -> SimDisk {
        let world = world.inner().clone();
        let rng = Rng::fork(world.seed(), &config.name);
        let tag = rng.clone().bits();
        SimDisk {
            inner: Rc::new(Inner {
                sectors: Cell::new(config.sectors),
                config,
                world,
                tag,
                rng: RefCell::new(rng),
                state: RefCell::default(),
                flush_losses: Rc::default(),
            }),
            joined: None,
            remote: None,
        }
    }

    /// The disk as a client of its server sees it.
    pub fn over(&self, client: impl Device) -> SimDisk {
        let remote = Some(AnyDevice::new(client));
        SimDisk { inner: self.inner.clone(), joined: None, remote }
    }

    /// The configuration of the disk.
    pub fn config(&self) -> &DiskConfig {
        &self.inner.config
    }

    /// Counters so far.
    pub fn counters(&self) -> Counters {
        self.inner.state.borrow().counters
    }

    /// Sets which errors are injected from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.inner.state.borrow_mut().faults = faults;
    }

    /// The next flush fails.
    pub fn fail_next_flush(&self) {
        let rates = Rates { flush: 1_000_000, ..Rates::default() };
        let zone = ZoneFaults { zone: None, rates, budget: 1 };
        self.inner.state.borrow_mut().faults.zones.push(zone);
    }

    /// Reads of this range fail until it is written.
    pub fn make_bad(&self, range: SectorRange) {
        self.inner.state.borrow_mut().bad.extend(range.start.0..range.end.0);
    }

    /// Makes unreadable sectors of this range readable again.
    pub fn heal(&self, range: SectorRange) {
        self.inner.state.borrow_mut().bad.retain(|sector| !range.contains(Sector(*sector)));
    }

    /// The disk fails altogether for a span; without one until the program is gone. I/Os in flight
    /// fail; their writes may have landed. A disk that is pulled out loses what was not flushed.
    pub fn fail(&self, outage: Outage, span: Option<Nanos>) {
        let now = Nanos(self.inner.world.now());
        if self.inner.state.borrow().outage(now) == Some(Outage::Gone) {
            // The device returns only after the end of the program, which could not know what was
            // lost.
            return;
        }
        if outage == Outage::Gone {
            self.inner.cut_off();
            self.lose_unflushed();
        }
        let until = span.map_or(Nanos(u64::MAX), |span| now.after(span));
        self.inner.state.borrow_mut().outage = Some((outage, until));
    }

    /// Time until the fault of the whole disk ends; 0 without one.
    pub fn outage_left(&self) -> Nanos {
        let now = self.inner.world.now();
        let outage = self.inner.state.borrow().outage;
        Nanos(outage.map_or(0, |(_, until)| until.0.saturating_sub(now)))
    }

    /// Ends whatever is wrong with the disk as a whole.
    pub fn repair(&self) {
        self.inner.state.borrow_mut().outage = None;
    }

    /// Content as the disk would return it now, without an I/O.
    pub fn peek(&self, range: SectorRange) -> Vec<u8> {
        let mut bytes = vec![0; range.bytes() as usize];
        self.peek_into(range.start, &mut bytes);
        bytes
    }

    /// Reads like [`SimDisk::peek`], into memory that is there: whole sectors.
    pub fn peek_into(&self, at: Sector, into: &mut [u8]) {
        let state = self.inner.state.borrow();
        state.image.read_run(at.0, into);
    }

    /// Sets durable content without an I/O, for preparing a disk.
    pub fn poke(&self, at: Sector, bytes: &[u8]) {
        let mut state = self.inner.state.borrow_mut();
        for (sector, from) in (at.0..).zip(bytes.chunks_exact(512)) {
            state.versions.forget(sector);
            state.image.write(sector, from);
        }
    }

    /// Everything that was written is durable from now on.
    pub fn settle(&self) {
        self.inner.state.borrow_mut().versions = Versioned::default();
    }

    /// A copy of what is on the disk.
    pub fn keep(&self) -> Kept {
        Kept { image: self.inner.state.borrow().image.clone(), sectors: self.inner.sectors.get() }
    }

    /// Makes the disk what it was when the copy was made. Nothing may be in flight.
    pub fn put(&self, kept: &Kept) {
        self.inner.sectors.set(kept.sectors);
        let mut state = self.inner.state.borrow_mut();
        state.image = kept.image.clone();
        state.versions = Versioned::default();
    }

    /// Makes the disk shorter or longer; what it gains reads as zeroes. Nothing may be in flight.
    pub fn resize(&self, sectors: u64) {
        self.inner.sectors.set(sectors);
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        // Versions that are not durable may be beyond the end: all of them are settled.
        state.versions = Versioned::default();
        state.image.cut(sectors);
    }

    /// Makes the disk longer, while it is used; what it gains reads as zeroes.
    pub fn lengthen(&self, sectors: u64) {
        self.inner.sectors.set(self.inner.sectors.get() + sectors);
    }

    /// Cuts the disk after so many sectors; nobody uses what is behind them.
    pub fn cut(&self, sectors: u64) {
        self.inner.sectors.set(self.inner.sectors.get().min(sectors));
    }

    /// Name in reports.
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// Number of sectors whose content a power failure could change.
    pub fn unflushed_sectors(&self) -> usize {
        self.inner.state.borrow().versions.len()
    }

    /// Counts whatever changes what a power failure may leave: submissions, landings, completions.
    pub fn changes(&self) -> u64 {
        self.inner.state.borrow().changes
    }

    /// I/Os in flight.
    pub fn in_flight(&self) -> usize {
        self.inner.state.borrow().ios.len()
    }

    /// The power fails: see the module. Nothing of the disk's past I/Os happens any more.
    pub fn power_failure(&self) {
        self.host_restart();
        self.lose_unflushed();
    }

    fn lose_unflushed(&self) {
        let mut rng = self.inner.rng.borrow_mut();
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        let losses = snapshot::draw_losses(
            state.versions.counts(),
            self.inner.config.sectors_per_block(),
            &mut rng,
        );
        for (sector, choice) in losses {
            state.counters.lost += 1;
            self.inner.world.trace(sector ^ (choice as u64) << 48);
            state.image.set(sector, &state.versions.content(sector, choice));
        }
        state.versions = Versioned::default();
    }

    /// The host restarts without losing power: see the module. A failure without an end has ended:
    /// the operator has mended it. A full file system stays full.
    pub fn host_restart(&self) {
        self.inner.end_of_instance();
        let mut state = self.inner.state.borrow_mut();
        state.outage =
            state.outage.filter(|(outage, until)| until.0 < u64::MAX || *outage == Outage::Full);
    }

    async fn run(&self, at: Sector, sectors: u64, kind: IoKind) -> (Option<Buf>, IoResult) {
        let id = self.inner.submit(at.0, sectors, kind);
        Wait { inner: self.inner.clone(), id, done: false }.await
    }
}

impl Device for SimDisk {
    fn shape(&self) -> DeviceShape {
        if let Some(remote) = &self.remote {
            return remote.shape();
        }
        DeviceShape { distance: self.inner.config.distance, ..DeviceShape::default() }
    }
    fn limits(&self) -> DeviceLimits {
        if let Some(remote) = &self.remote {
            return remote.limits();
        }
        DeviceLimits {
            sectors: self.inner.sectors.get(),
            logical_block_bytes: self.inner.config.block_bytes,
            max_transfer_bytes: 1 << 20,
            volatile_cache: self.inner.config.volatile_cache,
            discard: self.inner.config.discard && !self.inner.config.noise,
        }
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.read(at, into)).await;
        }
        if let Some(joined) = &self.joined {
            return Box::pin(joined.read(at, into)).await;
        }
        let sectors = match self.inner.whole_sectors(into.len()) {
            Ok(0) => return (into, Ok(())),
            Ok(sectors) => sectors,
            Err(error) => return (into, Err(error)),
        };
        let (buf, result) = self.run(at, sectors, IoKind::Read(into)).await;
        (buf.expect("a read gives its buffer back"), result)
    }

    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.read_into(range, place)).await;
        }
        if let Some(joined) = &self.joined {
            return Box::pin(joined.read_into(range, place)).await;
        }
        // Some memory is not what the disk can read to.
        if range.is_empty() || self.inner.rng.borrow_mut().chance(1, 16) {
            return Err(IoError::Os(EINVAL));
        }
        let (start, sectors) = (range.start, range.sectors());
        let (buf, result) = self.run(start, sectors, IoKind::Read(Buf::for_sectors(sectors))).await;
        let mut buf = buf.expect("a read gives its buffer back");
        if result.is_err() {
            // Anything may have arrived.
            buf.as_mut_slice().fill(0xa5);
        }
        match self.inner.world.places.receive(place, buf.as_slice()) {
            true => result,
            false => result.and(Err(IoError::Os(EFAULT))),
        }
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.write(at, from, durability)).await;
        }
        if let Some(joined) = &self.joined {
            return Box::pin(joined.write(at, from, durability)).await;
        }
        let sectors = self.inner.whole_sectors(from.len())?;
        if sectors == 0 {
            return Ok(());
        }
        // A copy: what is not flushed stays here when the program has freed its buffers.
        let slice = from.to_buf().freeze();
        self.run(
            at,
            sectors,
            IoKind::Write { data: Some(slice), fua: durability == Durability::Fua },
        )
        .await
        .1
    }

    async fn flush(&self) -> IoResult {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.flush()).await;
        }
        self.run(Sector(0), 0, IoKind::Flush { before: 0 }).await.1
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.discard(range)).await;
        }
        if let Some(joined) = &self.joined {
            return Box::pin(joined.discard(range)).await;
        }
        if !self.inner.config.discard {
            return Err(self.inner.outside(range, "discard").unwrap_or(IoError::NotSupported));
        }
        self.run(range.start, range.sectors(), IoKind::Discard).await.1
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.write_zeroes(range)).await;
        }
        if let Some(joined) = &self.joined {
            return Box::pin(joined.write_zeroes(range)).await;
        }
        self.run(range.start, range.sectors(), IoKind::Write { data: None, fua: false }).await.1
    }

    async fn write_holes(&self, range: SectorRange) -> IoResult {
        match &self.remote {
            Some(remote) => Box::pin(remote.write_holes(range)).await,
            None => self.write_zeroes(range).await,
        }
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        if let Some(remote) = &self.remote {
            return Box::pin(remote.holes(range, most)).await;
        }
        if let Some(error) = self.inner.outside(range, "a look for holes") {
            return Err(error);
        }
        self.run(range.start, range.sectors(), IoKind::Holes).await.1?;
        let state = self.inner.state.borrow();
        let mut parts: Vec<(SectorRange, bool)> = Vec::new();
        for sector in range.start.0..range.end.0 {
            let sector = SectorRange::new(Sector(sector), 1);
            let hole = !state.image.has_room(sector);
            let full = parts.len() == most;
            match parts.last_mut() {
                Some((part, same)) if *same == hole => part.end = sector.end,
                _ if full => break,
                _ => parts.push((sector, hole)),
            }
        }
        Ok(parts)
    }

    async fn allocate(&self, range: SectorRange) -> IoResult {
        if self.remote.is_some() {
            return Ok(());
        }
        self.run(range.start, range.sectors(), IoKind::Allocate).await.1
    }

    async fn witness(&self) -> IoResult<Witness> {
        match &self.joined {
            Some(joined) => Box::pin(joined.witness()).await,
            None => Ok(Witness::Unneeded),
        }
    }

    async fn seal(&self) -> IoResult {
        match &self.joined {
            Some(joined) => Box::pin(joined.seal()).await,
            None => Ok(()),
        }
    }
}
