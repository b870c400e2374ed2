//! One I/O from submission to completion.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use smallvec::{SmallVec, smallvec};
use ubcache_env::{Buf, IoError, IoResult, Nanos, Sector, SectorRange, Slice};

use super::fault::{Class, EIO, ENOSPC, Fate, Outage};
use super::image::{SectorContent, Version};
use super::{Inner, State};
use crate::executor::{Sink, World};
use crate::rng::Rng;

const EINVAL: i32 = 22;
const COMPLETE: u64 = 0xff;
/// An I/O lands in at most this many steps.
const STEPS_MAX: u64 = 3;
/// In `Io::steps`: this sector never lands.
const NEVER: u8 = 0xfe;

pub(super) enum IoKind {
    Read(Buf),
    /// Without data: zeroes.
    Write {
        data: Option<Slice>,
        fua: bool,
    },
    /// `before`: writes that completed before this moment of the disk's clock are covered.
    Flush {
        before: u64,
    },
    Discard,
    /// The blocks get their place on the disk.
    Allocate,
    /// A look for holes, which takes its time as a read does.
    Holes,
}

pub(super) struct Io {
    at: u64,
    sectors: u64,
    kind: IoKind,
    fate: Fate,
    /// For each sector the step in which it lands. Empty: all in step 0.
    steps: SmallVec<[u8; 16]>,
    steps_done: u8,
    completed: Rc<Cell<u64>>,
    result: Option<IoResult>,
    waker: Option<Waker>,
    abandoned: bool,
}

impl Io {
    fn name(&self) -> &'static str {
        match self.kind {
            IoKind::Read(_) => "read",
            IoKind::Write { data: Some(_), fua: false } => "write",
            IoKind::Write { data: Some(_), fua: true } => "write-fua",
            IoKind::Write { data: None, .. } => "write-zeroes",
            IoKind::Flush { .. } => "flush",
            IoKind::Discard => "discard",
            IoKind::Allocate => "allocate",
            IoKind::Holes => "holes",
        }
    }

    fn step_of(&self, index: u64) -> u8 {
        self.steps.get(index as usize).copied().unwrap_or(0)
    }

    /// A device with larger blocks reads and writes a block as a whole or not at all.
    fn keep_blocks_whole(&mut self, sectors_per_block: u64) {
        for index in 1..self.steps.len() {
            if !(self.at + index as u64).is_multiple_of(sectors_per_block) {
                self.steps[index] = self.steps[index - 1];
            }
        }
    }

    fn class(&self) -> Class {
        match self.kind {
            IoKind::Read(_) | IoKind::Holes => Class::Read,
            IoKind::Write { .. } | IoKind::Discard | IoKind::Allocate => Class::Write,
            IoKind::Flush { .. } => Class::Flush,
        }
    }

    fn writes(&self) -> bool {
        matches!(self.kind, IoKind::Write { .. } | IoKind::Discard)
    }

    /// Returns true if some of it may take effect yet.
    pub(super) fn may_land(&self) -> bool {
        self.writes() && self.result.is_none()
    }

    pub(super) fn range(&self) -> SectorRange {
        SectorRange::new(Sector(self.at), self.sectors)
    }

    /// Sector of the disk that one of its sectors is.
    pub(super) fn sector(&self, index: u64) -> u64 {
        self.at + index
    }

    /// Content that it leaves in one of its sectors.
    pub(super) fn content(&self, index: u64) -> SectorContent {
        match &self.kind {
            IoKind::Write { data: Some(slice), .. } => {
                let from = index as usize * 512;
                SectorContent::Data(slice.cut(from, from + 512))
            }
            _ => SectorContent::Zero,
        }
    }

    /// The sectors that have not landed and may, with what they would hold.
    pub(super) fn not_landed(&self) -> impl Iterator<Item = (u64, SectorContent)> {
        (0..self.sectors)
            .filter(|index| self.waits(*index))
            .map(|index| (self.sector(index), self.content(index)))
    }

    fn waits(&self, index: u64) -> bool {
        let step = self.step_of(index);
        step != NEVER && step >= self.steps_done
    }

    /// Draws which of the sectors that have not landed do so at the very end, when the program is
    /// gone.
    pub(super) fn draw_end(&self, per_block: u64, rng: &mut Rng, mut land: impl FnMut(u64)) {
        let share = rng.pick(&[0, 1, 4, 7, 8]);
        let mut lands = false;
        for index in 0..self.sectors {
            if index.is_multiple_of(per_block) {
                lands = rng.chance(share, 8);
            }
            if lands && self.waits(index) {
                land(index);
            }
        }
    }
}

pub(super) struct Wait {
    pub(super) inner: Rc<Inner>,
    pub(super) id: u64,
    pub(super) done: bool,
}

impl Future for Wait {
    type Output = (Option<Buf>, IoResult);
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.inner.clone();
        let mut state = inner.state.borrow_mut();
        // An I/O that a crash has swept away never completes; whoever waits for it is swept away
        // too.
        let Some(io) = state.ios.get_mut(&self.id) else { return Poll::Pending };
        if io.result.is_none() {
            io.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let io = state.ios.remove(&self.id).expect("it was there just now");
        inner.told(&mut state, &io);
        self.done = true;
        let buf = match io.kind {
            IoKind::Read(buf) => Some(buf),
            _ => None,
        };
        Poll::Ready((buf, io.result.expect("it was there just now")))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.inner.state.borrow_mut();
        if let Some(io) = state.ios.get_mut(&self.id) {
            io.waker = None;
            io.abandoned = true;
            if io.result.is_some() {
                let io = state.ios.remove(&self.id).expect("it was there just now");
                self.inner.told(&mut state, &io);
            }
        }
    }
}

impl Sink for Inner {
    fn cares(&self, token: u64) -> bool {
        self.state.borrow().ios.contains_key(&(token >> 8))
    }

    fn fire(&self, token: u64) {
        let (id, step) = (token >> 8, token & 0xff);
        let mut state = self.state.borrow_mut();
        if step != COMPLETE {
            self.land(&mut state, id, step as u8);
            return;
        }
        self.complete(&mut state, id);
        let io = state.ios.get_mut(&id).expect("an event is delivered only while somebody cares");
        let waker = io.waker.take();
        let wrote = io.writes();
        if io.abandoned {
            let io = state.ios.remove(&id).expect("it was there just now");
            self.told(&mut state, &io);
        }
        drop(state);
        if wrote {
            self.world.saw_write(true);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Inner {
    /// Length in sectors; a part of a sector is refused, by every world.
    pub(super) fn whole_sectors(&self, bytes: usize) -> Result<u64, IoError> {
        if !bytes.is_multiple_of(512) {
            self.world.complain(format!("{}: an I/O of {bytes} bytes", self.config.name));
            return Err(IoError::Os(EINVAL));
        }
        Ok(bytes as u64 / 512)
    }

    /// The error of an I/O beyond the end.
    pub(super) fn outside(&self, range: SectorRange, name: &str) -> Option<IoError> {
        let sectors = self.sectors.get();
        (range.end.0 > sectors).then(|| {
            self.world
                .complain(format!("{}: {name} of {range}, which is outside", self.config.name));
            IoError::OutOfRange { range, sectors }
        })
    }

    pub(super) fn submit(self: &Rc<Inner>, at: u64, sectors: u64, kind: IoKind) -> u64 {
        let changes_disk = matches!(kind, IoKind::Write { .. } | IoKind::Discard);
        if changes_disk {
            self.world.saw_write(false);
        }
        let mut rng = self.rng.borrow_mut();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.show_losses(Nanos(self.world.now()));
        let id = state.next_io;
        state.next_io += 1;
        state.clock += 1;
        state.changes += u64::from(changes_disk);
        let range = SectorRange::new(Sector(at), sectors);
        let mut io = Io {
            at,
            sectors,
            kind,
            fate: Fate::Success,
            steps: SmallVec::new(),
            steps_done: 0,
            completed: Rc::new(Cell::new(u64::MAX)),
            result: None,
            waker: None,
            abandoned: false,
        };
        let class = io.class();
        io.fate = state.faults.draw(&mut rng, class, range);
        if let IoKind::Flush { before } = &mut io.kind {
            *before = state.clock;
        }
        let world = &self.world;
        self.trace(world, &io, id);
        world.row(|| format!("{:<10} #{id} {} {range}", self.config.name, io.name()));
        let latency = self.config.profile.draw(&mut rng, class == Class::Write);
        let (now, latency) = (world.now(), latency.max(1));
        if let Some(error) = self.refuse(state, range, &io) {
            io.result = Some(Err(error));
        } else {
            let full = self.is_full(state) && state.lacks_room(range, &io.kind);
            if full {
                io.fate = Fate::NoSpace;
            }
            let moments = draw_landing(&mut io, latency, &mut rng);
            if full && io.writes() {
                // Sectors with a place on the disk may be written all the same.
                let has_room = |sector| state.image.has_room(SectorRange::new(Sector(sector), 1));
                for (sector, step) in (at..).zip(&mut io.steps) {
                    *step = if has_room(sector) { *step } else { NEVER };
                }
            }
            io.keep_blocks_whole(self.config.sectors_per_block());
            for (step, moment) in moments.into_iter().enumerate() {
                world.schedule(now + moment, self.clone(), id << 8 | step as u64);
            }
        }
        world.schedule(now + latency, self.clone(), id << 8 | COMPLETE);
        state.ios.insert(id, io);
        id
    }

    fn trace(&self, world: &World, io: &Io, id: u64) {
        world.trace(self.tag ^ id.rotate_left(40) ^ io.at.rotate_left(8) ^ io.sectors);
        if let IoKind::Write { data: Some(slice), .. } = &io.kind {
            for sector in slice.as_slice().chunks_exact(512) {
                world.trace(sector[..32].chunks_exact(8).fold(io.at, |hash, word| {
                    hash.rotate_left(9) ^ u64::from_le_bytes(word.try_into().expect("eight bytes"))
                }));
            }
        }
    }

    fn refuse(&self, state: &State, range: SectorRange, io: &Io) -> Option<IoError> {
        if let Some(error) =
            state.outage(Nanos(self.world.now())).and_then(|outage| outage.error(io.class()))
        {
            return Some(error);
        }
        if let Some(error) = self.outside(range, io.name()) {
            return Some(error);
        }
        // Reads of single sectors are for the world to sort out, whatever the block is.
        let block = u64::from(self.config.block_bytes / 512);
        let misaligned =
            !range.start.0.is_multiple_of(block) || !range.sectors().is_multiple_of(block);
        if io.writes() && misaligned {
            self.world.complain(format!(
                "{}: {} of {range}, which is not whole blocks",
                self.config.name,
                io.name()
            ));
            return Some(IoError::Os(EINVAL));
        }
        None
    }

    fn is_full(&self, state: &State) -> bool {
        state.outage(Nanos(self.world.now())) == Some(Outage::Full)
    }

    /// One step of an I/O takes effect.
    fn land(&self, state: &mut State, id: u64, step: u8) {
        let Some(mut io) = state.ios.remove(&id) else { return };
        if io.result.is_some() {
            // The disk was pulled out meanwhile.
            state.ios.insert(id, io);
            return;
        }
        io.steps_done = io.steps_done.max(step + 1);
        state.changes += u64::from(io.writes());
        match &mut io.kind {
            IoKind::Read(buf) if io.steps.is_empty() => {
                if step == 0 {
                    state.image.read_run(io.at, buf.as_mut_slice());
                    self.add_noise(&state.noise, io.at, buf.as_mut_slice());
                }
            }
            IoKind::Read(buf) => {
                for (index, into) in (0..).zip(buf.as_mut_slice().chunks_exact_mut(512)) {
                    if io.steps.get(index as usize).copied().unwrap_or(0) == step {
                        state.image.read(io.at + index, into);
                        self.add_noise(&state.noise, io.at + index, into);
                    }
                }
            }
            IoKind::Flush { .. } | IoKind::Allocate | IoKind::Holes => {}
            IoKind::Write { .. } | IoKind::Discard => {
                for index in 0..io.sectors {
                    if io.step_of(index) == step {
                        self.land_sector(state, &io, index);
                    }
                }
            }
        }
        state.ios.insert(id, io);
    }

    fn land_sector(&self, state: &mut State, io: &Io, index: u64) {
        let (sector, content) = (io.sector(index), io.content(index));
        state.bad.remove(&sector);
        if self.config.noise {
            match io.kind {
                IoKind::Discard => state.noise.insert(sector),
                _ => state.noise.remove(&sector),
            };
        }
        if self.config.volatile_cache {
            let version =
                Version { content: content.clone(), completed: io.completed.clone(), lost: false };
            state.versions.landed(sector, version, &state.image);
        }
        state.image.set(sector, &content);
    }

    /// Discarded sectors read as something else every time.
    fn add_noise(&self, noise: &BTreeSet<u64>, at: u64, into: &mut [u8]) {
        let end = at + into.len() as u64 / 512;
        for sector in noise.range(at..end) {
            let from = (sector - at) as usize * 512;
            for word in into[from..from + 512].chunks_exact_mut(8) {
                word.copy_from_slice(&self.rng.borrow_mut().bits().to_le_bytes());
            }
        }
    }

    fn complete(&self, state: &mut State, id: u64) {
        state.clock += 1;
        let clock = state.clock;
        let stops = |outage: &Outage| matches!(outage, Outage::Errors | Outage::Gone);
        let outage = state.outage(Nanos(self.world.now())).filter(stops);
        let io = state.ios.get_mut(&id).expect("an event is delivered only while somebody cares");
        state.changes += u64::from(!matches!(io.kind, IoKind::Read(_) | IoKind::Holes));
        io.completed.set(clock);
        let result = match (io.result.take(), outage.and_then(|outage| outage.error(io.class()))) {
            (Some(result), _) => result,
            (None, Some(error)) => Err(error),
            (None, None) => self.outcome(state, id),
        };
        let counters = &mut state.counters;
        let io = state.ios.get_mut(&id).expect("still there");
        match io.kind {
            IoKind::Read(_) => counters.reads += 1,
            IoKind::Write { .. } => counters.writes += 1,
            IoKind::Flush { .. } => counters.flushes += 1,
            IoKind::Discard => counters.discards += 1,
            IoKind::Allocate | IoKind::Holes => {}
        }
        counters.errors += u64::from(result.is_err());
        if let (IoKind::Read(buf), Err(_)) = (&mut io.kind, &result) {
            buf.as_mut_slice().fill(0xee);
        }
        self.world.row(|| {
            let outcome = result.as_ref().map_or_else(ToString::to_string, |()| "done".to_owned());
            let range = SectorRange::new(Sector(io.at), io.sectors);
            format!("{:<10} #{id} {} {range}: {outcome}", self.config.name, io.name())
        });
        io.result = Some(result);
    }

    fn outcome(&self, state: &mut State, id: u64) -> IoResult {
        let State { ios, versions, bad, image, .. } = state;
        let io = &ios[&id];
        if io.fate == Fate::Latent {
            bad.insert(io.at + self.rng.borrow_mut().below(io.sectors));
        }
        match io.fate {
            Fate::Success => {}
            Fate::NoSpace => return Err(IoError::Os(ENOSPC)),
            Fate::Failure | Fate::Latent => return Err(IoError::Os(EIO)),
        }
        match io.kind {
            IoKind::Read(_) if bad.range(io.at..io.at + io.sectors).next().is_some() => {
                return Err(IoError::Os(EIO));
            }
            IoKind::Flush { before } => versions.flushed(before),
            IoKind::Allocate => image.allocate(io.range()),
            IoKind::Discard if self.config.discard => image.punch(io.range()),
            IoKind::Write { fua: true, .. } => {
                for sector in io.at..io.at + io.sectors {
                    versions.made_durable(sector, &io.completed);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The program is gone: what it wrote last lands or not, and nothing comes after.
    pub(super) fn end_of_instance(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.clock += 1;
        let clock = state.clock;
        let ios = std::mem::take(&mut state.ios);
        for (id, io) in ios {
            self.world.trace(id);
            self.end_io(state, &io);
            io.completed.set(clock);
        }
        state.show_losses(Nanos(u64::MAX));
    }

    /// The program learns how an I/O has ended. A flush that failed loses now and not a moment
    /// earlier: what a device returns between its loss and its report, no program can make good.
    fn told(&self, state: &mut State, io: &Io) {
        if matches!(io.kind, IoKind::Flush { .. }) && matches!(io.result, Some(Err(IoError::Os(_))))
        {
            self.flush_failed(state);
        }
    }

    /// The disk is pulled out: I/Os in flight fail, some of their sectors have landed.
    pub(super) fn cut_off(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut ios = std::mem::take(&mut state.ios);
        for io in ios.values_mut().filter(|io| io.result.is_none()) {
            self.end_io(state, io);
            io.result = Some(Err(IoError::Gone));
        }
        state.ios = ios;
    }

    fn end_io(&self, state: &mut State, io: &Io) {
        if io.may_land() {
            let per_block = self.config.sectors_per_block();
            io.draw_end(per_block, &mut self.rng.borrow_mut(), |index| {
                self.land_sector(state, io, index)
            });
        }
    }
}

/// Decides when each sector lands; returns the moment of each step.
fn draw_landing(io: &mut Io, latency: u64, rng: &mut Rng) -> SmallVec<[u64; 3]> {
    if matches!(io.kind, IoKind::Flush { .. } | IoKind::Allocate | IoKind::Holes) {
        return SmallVec::new();
    }
    let in_steps = io.sectors > 1 && rng.chance(1, 4);
    let mut moments: SmallVec<[u64; 3]> = match (in_steps, rng.below(4)) {
        (true, _) => (0..rng.between(2, STEPS_MAX)).map(|_| rng.below(latency)).collect(),
        (false, 0) => smallvec![0],
        (false, 1) => smallvec![latency - 1],
        (false, _) => smallvec![rng.below(latency)],
    };
    moments.sort_unstable();
    if in_steps {
        let steps = moments.len() as u64;
        io.steps = (0..io.sectors).map(|_| rng.below(steps) as u8).collect();
    }
    if io.writes() && io.fate != Fate::Success {
        let share = rng.pick(&[0, 4, 8]);
        drop_sectors(io, |rng| !rng.chance(share, 8), rng);
    }
    if matches!(io.kind, IoKind::Discard) {
        // The device chooses what becomes of a discarded sector: nothing, or zeroes.
        let share = rng.pick(&[0, 4, 8]);
        drop_sectors(io, |rng| !rng.chance(share, 8), rng);
    }
    moments
}

fn drop_sectors(io: &mut Io, mut lost: impl FnMut(&mut Rng) -> bool, rng: &mut Rng) {
    if io.steps.is_empty() {
        io.steps = smallvec![0; io.sectors as usize];
    }
    for step in &mut io.steps {
        if lost(rng) {
            *step = NEVER;
        }
    }
}
