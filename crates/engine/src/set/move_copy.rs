//! A11: the copy of a move, while clients go on: what is missing on the new device goes there in
//! parts, no faster than permitted.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::local::{first, join_all};
use ubcache_env::{Buf, Durability, Env, IoError, IoVec, Nanos, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::counted_device::Successor;
use crate::errors::{EngineError, MoveEnd};
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Parts that are copied at the same time.
const COPIERS: usize = 4;
/// Most pieces of one answer about holes.
const PIECES_MAX: usize = 1024;
/// Bytes that are copied between two flushes: a remote device keeps what is not flushed (L2).
const UNFLUSHED_MAX: u64 = 32 << 20;
/// Time that a copier waits for memory before it asks again.
const MEMORY_RETRY_INTERVAL: Nanos = Nanos::from_millis(10);
/// The names of the two devices, which each of them has of the other.
#[derive(Clone, Debug, Default)]
pub struct MoveNames {
    /// The device that the volume has.
    pub old: String,
    /// The device that it moves to.
    pub new: String,
}

/// Progress of a move.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MoveProgress {
    /// Bytes of the volume.
    pub total_bytes: u64,
    /// Bytes that are still to be copied.
    pub left_bytes: u64,
    /// Bytes that were copied, some of them more than once.
    pub copied_bytes: u64,
    /// Bytes that an earlier attempt had copied.
    pub earlier_bytes: u64,
    /// Bytes that another attempt would not copy again after a crash.
    pub kept_bytes: u64,
}

/// A move that is under way.
pub struct BackingMove<E: Env> {
    pub(super) volume: Rc<CachedVolume<E>>,
    pub(super) successor: Rc<Successor<E>>,
    pub(super) names: MoveNames,
    /// Bytes that an earlier attempt has copied.
    earlier_bytes: u64,
    /// Bytes that were copied since the last flush of the new device.
    unflushed: Cell<u64>,
    /// Bytes that were copied since the last checkpoint.
    unlogged: Cell<u64>,
    /// Another run of the set goes on with it.
    suspended: Cell<bool>,
    /// Bytes a second that are copied at most; 0: no limit.
    rate: Cell<u64>,
    /// Moment at which the next part may be copied.
    next_part: Cell<Nanos>,
}

impl<E: Env> BackingMove<E> {
    /// A move that has begun.
    pub(super) fn new(
        volume: Rc<CachedVolume<E>>,
        successor: Rc<Successor<E>>,
        names: MoveNames,
    ) -> BackingMove<E> {
        let mirror = &successor.mirror;
        let earlier = mirror.whole().sectors() - mirror.missing_sectors();
        BackingMove {
            volume,
            successor,
            names,
            earlier_bytes: earlier * SECTOR_BYTES,
            unflushed: Cell::new(0),
            unlogged: Cell::new(0),
            suspended: Cell::new(false),
            rate: Cell::new(0),
            next_part: Cell::default(),
        }
    }

    /// Copies everything. Takes as long as that; clients go on.
    ///
    /// # Errors
    /// The move has ended: it was cancelled, or a device fails. The volume goes on as before. Or it
    /// was suspended.
    pub async fn copy(&self) -> Result<(), EngineError> {
        self.copy_missing(false).await;
        let mirror = &self.successor.mirror;
        if mirror.ended().is_none() && self.suspended.get() {
            self.successor.checkpoint(&self.volume.backing).await;
            return Err(EngineError::MoveEnded(MoveEnd::Suspended));
        }
        if mirror.ended().is_none() && self.volume.context.keeps(Rule::A11FlushedFirst) {
            // Most of it now: requests wait for the flush of the switch.
            self.flush(false).await;
        }
        let result = self.successor.result();
        if result.is_err() {
            self.give_up().await;
        }
        result
    }

    /// Ends the move without a switch.
    pub async fn give_up(&self) {
        self.successor.mirror.end(MoveEnd::Cancelled);
        // After an error the next write tries again.
        drop(self.volume.backing.part().await);
    }

    /// A13: copies nothing more, while changes still go to both devices, for a set that is about to
    /// be stopped. The new device is used until it is.
    pub fn suspend(&self) {
        self.suspended.set(true);
        self.successor.mirror.woken.notify_all();
    }

    /// Sets the bytes a second that are copied at most, holes not counted; 0: no limit. Counts at
    /// once.
    pub fn set_rate(&self, rate: u64) {
        self.rate.set(rate);
        self.next_part.set(Nanos::default());
        self.successor.mirror.woken.notify_all();
    }

    /// Bytes a second that are copied at most; 0: no limit.
    pub fn rate(&self) -> u64 {
        self.rate.get()
    }

    /// The volume that moves.
    pub fn volume(&self) -> &Rc<CachedVolume<E>> {
        &self.volume
    }

    /// Progress so far.
    pub fn progress(&self) -> MoveProgress {
        MoveProgress {
            total_bytes: self.successor.mirror.whole().bytes(),
            left_bytes: self.successor.mirror.missing_sectors() * SECTOR_BYTES,
            copied_bytes: self.successor.mirror.copied_sectors() * SECTOR_BYTES,
            earlier_bytes: self.earlier_bytes,
            kept_bytes: self.successor.log.settled_sectors() * SECTOR_BYTES,
        }
    }

    pub(super) async fn copy_missing(&self, volume_has_ended: bool) {
        join_all((0..COPIERS).map(|_| self.copy_parts(volume_has_ended))).await;
    }

    async fn copy_parts(&self, volume_has_ended: bool) {
        let (context, mirror) = (&self.volume.context, &self.successor.mirror);
        while mirror.ended().is_none() {
            if !volume_has_ended {
                self.keep_rate().await;
            }
            // Memory first: writes wait for a turn.
            let part = mirror.part_sectors();
            let Some(mut memory) = context.env.buffers().for_sectors(part) else {
                context.env.sleep(MEMORY_RETRY_INTERVAL).await;
                continue;
            };
            if !volume_has_ended && context.is_ending() {
                self.suspend();
            } else if !volume_has_ended && self.volume.is_stopping() {
                // Another volume goes on with the device, which does not know of the move.
                return mirror.end(MoveEnd::Cancelled);
            }
            if !volume_has_ended && self.suspended.get() {
                return;
            }
            let Some((range, turn)) = mirror.next_part() else { return };
            memory.truncate(range.bytes() as usize);
            turn.comes().await;
            match self.copy_part(range, memory).await {
                Ok(()) => mirror.copied(range),
                Err(end) => {
                    context.env.mark("move_ended_by_device");
                    mirror.end(end);
                }
            }
            drop(turn);
            self.make_durable(range.bytes(), volume_has_ended).await;
        }
    }

    /// Waits until the rate lets another part through.
    async fn keep_rate(&self) {
        let (env, mirror) = (&self.volume.context.env, &self.successor.mirror);
        loop {
            let woken = mirror.woken.notified();
            let wait = self.next_part.get().since(env.now());
            if wait.0 == 0 || self.suspended.get() || mirror.ended().is_some() {
                return;
            }
            first(woken, env.sleep(wait)).await;
        }
    }

    /// These bytes are being copied. A part may be larger than the limiter of writeback remembers.
    fn pay(&self, bytes: u64) {
        if self.rate.get() > 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
            let cost = Nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            let from = self.next_part.get().max(self.volume.context.env.now());
            self.next_part.set(from.after(cost));
        }
    }

    /// Now and then makes durable what was copied, of which these are some more bytes.
    async fn make_durable(&self, bytes: u64, volume_has_ended: bool) {
        let unflushed = self.unflushed.get() + bytes;
        self.unflushed.set(unflushed);
        if unflushed >= UNFLUSHED_MAX {
            self.flush(volume_has_ended).await;
        }
        let unlogged = self.unlogged.get() + bytes;
        self.unlogged.set(unlogged);
        let interval = self.volume.context.tuning.move_checkpoint_sectors * SECTOR_BYTES;
        if unlogged >= interval && !volume_has_ended {
            self.unlogged.set(0);
            self.successor.checkpoint(&self.volume.backing).await;
        }
    }

    /// Makes durable what was copied so far. `clients_wait`: not for as long as it takes.
    async fn flush(&self, clients_wait: bool) {
        self.unflushed.set(0);
        let flushed = match clients_wait {
            true => self.successor.device.in_time(self.successor.flush()).await,
            false => self.successor.flush().await,
        };
        if let Err(error) = flushed {
            self.successor.mirror.end(MoveEnd::NewFails { what: "flushing", error });
        }
    }

    /// Copies a range; nothing else is written there meanwhile.
    async fn copy_part(&self, range: SectorRange, mut memory: Buf) -> Result<(), MoveEnd> {
        let old = &self.volume.backing;
        let mut at = range.start;
        while at < range.end {
            let rest = SectorRange::from_bounds(at, range.end);
            let pieces = old.holes(rest, PIECES_MAX).await.unwrap_or_default();
            if pieces.is_empty() {
                return self.copy_data(rest, memory).await;
            }
            for (piece, hole) in pieces {
                if hole {
                    self.copy_hole(piece).await?;
                } else if piece == range {
                    return self.copy_data(piece, std::mem::take(&mut memory)).await;
                } else {
                    // A small part of the memory that was asked for.
                    let sectors = piece.sectors();
                    let memory = self.volume.context.env.buffers().for_sectors(sectors);
                    let memory = memory.unwrap_or_else(|| Buf::for_sectors(sectors));
                    self.copy_data(piece, memory).await?;
                }
                at = piece.end;
            }
        }
        Ok(())
    }

    async fn copy_data(&self, range: SectorRange, mut memory: Buf) -> Result<(), MoveEnd> {
        self.pay(range.bytes());
        memory.truncate(range.bytes() as usize);
        let read = self.volume.backing.read_buffer(range.start, memory).await;
        let data = read.map_err(|error| MoveEnd::OldUnreadable { at: range.start, error })?;
        let data = data.freeze();
        let new = &self.successor.device;
        let written = new.write(range.start, data.into(), Durability::Volatile);
        let written = new.in_time(written).await;
        written.map_err(|error| MoveEnd::NewFails { what: "writing", error })
    }

    /// Makes a range zero, which may be so already.
    async fn copy_hole(&self, range: SectorRange) -> Result<(), MoveEnd> {
        let new = &self.successor.device;
        let found = new.in_time(new.holes(range, PIECES_MAX)).await.unwrap_or_default();
        let end = found.last().map_or(range.start, |(piece, _)| piece.end);
        if end >= range.end && found.iter().all(|(_, hole)| *hole) {
            return Ok(());
        }
        let mut written = new.in_time(new.write_holes(range)).await;
        if written == Err(IoError::NotSupported) {
            written = new.in_time(new.write_zeroes(range)).await;
        }
        if written == Err(IoError::NotSupported) {
            let zeroes = IoVec::zeroes(range.bytes() as usize);
            let zeroed = new.write(range.start, zeroes, Durability::Volatile);
            written = new.in_time(zeroed).await;
        }
        written.map_err(|error| MoveEnd::NewFails { what: "writing zeroes to", error })
    }
}
