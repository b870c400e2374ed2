//! A11: a volume moves to another backing device while it is served.
//!
//! ```text
//!  begin_move          the new device gets a record instead of a superblock; from now on writes go
//!      │               to both devices
//!    copy              everything else is copied, in parts
//!      │
//!   end_move           requests wait; the volume is flushed and ends; what is missing is copied
//!      │               new device: flush, superblock with another run number
//!      ├────────────── cache: that number counts, in one sector: the switch
//!      ▼               old device: a record instead of the superblock; the next volume begins
//! ```
//!
//! Before the switch the old device is of the cache's run (A5), and the new one is not; after it,
//! the other way round. So a crash leaves one device that a start takes.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Durability, Env, IoError, IoVec, Nanos, SectorRange, Volume};
use ubcache_format::{MoveRecord, MoveRole, SECTOR_BYTES, Superblock};

use super::CacheSet;
use super::attach::AttachOptions;
use crate::counted_device::CountedDevice;
use crate::errors::{EngineError, MoveEnd};
use crate::mirror::Mirror;
use crate::rules::Rule;
use crate::superblock::{write_move_record, write_superblock};
use crate::volume::CachedVolume;
use crate::volume::state::Attachment;

/// Parts that are copied at the same time.
const COPIERS: usize = 4;
/// Most pieces of one answer about holes.
const PIECES_MAX: usize = 1024;
/// Bytes that are copied between two flushes: a remote device keeps what is not flushed (L2).
const UNFLUSHED_MAX: u64 = 32 << 20;
/// Time that a copier waits for memory before it asks again.
const MEMORY_RETRY_INTERVAL: Nanos = Nanos::from_millis(10);
const RECORD: &str = "writing the record of the move to the new device";

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
}

/// A move that is under way.
pub struct BackingMove<E: Env> {
    volume: Rc<CachedVolume<E>>,
    new: Rc<CountedDevice<E>>,
    mirror: Rc<Mirror>,
    names: MoveNames,
    /// Bytes that were copied since the last flush of the new device.
    unflushed: Cell<u64>,
}

/// The switch did not come about.
pub struct NotMoved<E: Env> {
    /// The reason.
    pub error: EngineError,
    /// The volume that goes on with the old device, if it is another one now.
    pub volume: Option<Rc<CachedVolume<E>>>,
}

impl<E: Env> CacheSet<E> {
    /// Begins to move a volume to a device without data that anybody needs: what is there is
    /// overwritten. Waits for requests under way; then clients go on.
    ///
    /// # Errors
    /// The volume is not attached to this set, or moves already; the device is too small, has
    /// larger blocks, or fails; the set has failed or is being stopped.
    pub async fn begin_move(
        &self,
        volume: &Rc<CachedVolume<E>>,
        device: E::Device,
        names: MoveNames,
    ) -> Result<BackingMove<E>, EngineError> {
        let set = &self.set;
        let _own = volume.lifecycle.attachment_turn().await;
        let _one = set.attach_lock.lock().await;
        self.may_switch(volume)?;
        if volume.backing.has_successor() {
            return Err(EngineError::Moving);
        }
        let (env, rules) = (set.context.env.clone(), set.context.rules);
        let new = Rc::new(CountedDevice::of_backing(env, device, rules));
        let (limits, whole) = (new.limits(), volume.all_keys());
        if limits.sectors < whole.end.0 {
            return Err(EngineError::TooSmall { found: limits.sectors, expected: whole.end.0 });
        }
        let told = volume.block_sectors() * SECTOR_BYTES;
        let superblock = u64::from(volume.superblock().block_sectors) * SECTOR_BYTES;
        if u64::from(limits.logical_block_bytes) > told.min(superblock) {
            return Err(EngineError::CannotMove(
                "its blocks are larger than those that clients of the volume may use",
            ));
        }
        let record = record(volume, MoveRole::Target, &names.old);
        write_move_record(&new, &record, RECORD).await?;
        let mirror = Rc::new(Mirror::new(whole, set.context.tuning.move_sectors));
        {
            // No write is under way that goes to the old device alone.
            let _paused = volume.pause().await;
            if volume.is_stopping() || set.context.is_ending() {
                return Err(EngineError::Stopping);
            }
            volume.backing.begin_mirror(mirror.clone(), new.clone());
        }
        let unflushed = Cell::new(0);
        Ok(BackingMove { volume: volume.clone(), new, mirror, names, unflushed })
    }

    /// Refuses a volume whose backing device can't be replaced.
    fn may_switch(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let set = &self.set;
        self.is_own(volume)?;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        if volume.is_stopping() || set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        if !matches!(volume.lifecycle.attachment(), Attachment::Attached(_)) {
            return Err(EngineError::CannotMove(
                "the volume is detached, or about to be: the cache decides which of two disks \
                 counts, so attach it first",
            ));
        }
        if volume.run().is_none() {
            return Err(EngineError::CannotMove(
                "the cache has no room for the run number of this volume, by which it would know \
                 the new disk",
            ));
        }
        if !volume.coherence.suspects().is_empty() {
            return Err(EngineError::CannotMove(
                "a flush of the old disk failed, and what it has may change: restart the set, \
                 then move",
            ));
        }
        Ok(())
    }

    /// Ends a move whose copy is complete: switches to the new device. No request of the volume
    /// may be under way; another volume goes on instead of it, also after most errors.
    ///
    /// # Errors
    /// A device fails, the set has failed or is being stopped: the old device goes on.
    pub async fn end_move(
        &self,
        moving: &BackingMove<E>,
    ) -> Result<Rc<CachedVolume<E>>, NotMoved<E>> {
        let set = &self.set;
        let former = &moving.volume;
        let _own = former.lifecycle.attachment_turn().await;
        let _one = set.attach_lock.lock().await;
        if let Err(error) = self.may_switch(former) {
            moving.give_up();
            return Err(NotMoved { error, volume: None });
        }
        let paused = former.pause().await;
        let stopped = match former.stop().await {
            // The next volume owes it.
            Err(EngineError::LossUntold(_)) => Ok(()),
            stopped => stopped,
        };
        drop(paused);
        former.give_up_device().await;
        let is_flushed = stopped.is_ok();
        let switched = match stopped {
            Ok(()) => self.switch(moving).await,
            Err(error) => Err(error),
        };
        former.backing.end_mirror();
        match switched {
            Ok(superblock) => {
                set.context.env.mark("volume_moved");
                let left = record(former, MoveRole::Left, &moving.names.new);
                // It is of an older run in any case. The error is one of the device's, and logged.
                // Clients wait, and the device may be one that answers no more.
                let marked = write_move_record(&former.backing, &left, "marking the old device");
                drop(former.backing.in_time(async { Ok(marked.await) }).await);
                Ok(self.next_volume(former, moving.new.clone(), superblock))
            }
            Err(error) => {
                set.context.env.mark("move_went_back");
                moving.mirror.end(MoveEnd::Cancelled);
                let superblock = former.superblock();
                let volume = self.next_volume(former, former.backing.clone(), superblock);
                if !is_flushed {
                    volume.coherence.take_unflushed(&former.coherence);
                }
                Err(NotMoved { error, volume: Some(volume) })
            }
        }
    }

    /// The volume has ended, and nothing is written to the old device any more.
    async fn switch(&self, moving: &BackingMove<E>) -> Result<Superblock, EngineError> {
        let (set, new) = (&self.set, &moving.new);
        moving.copy_missing(true).await;
        moving.result()?;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        let mut superblock = moving.volume.superblock();
        superblock.last_mount = set.context.env.unix_seconds() as u32;
        superblock.set_run(Some(set.new_run(superblock.run().number())));
        const WRITING: &str = "writing the superblock of the new device";
        if set.context.keeps(Rule::A11FlushedFirst) {
            // Clients wait. One that lands later is of no run that counts.
            let flushed = new.in_time(new.flush()).await;
            flushed.map_err(EngineError::io("flushing the new device"))?;
            let written =
                new.in_time(async { Ok(write_superblock(new, &superblock, WRITING).await) });
            written.await.map_err(EngineError::io(WRITING))??;
        }
        #[cfg(feature = "mutants")]
        if !set.context.keeps(Rule::A11FlushedFirst) {
            crate::mutants::write_superblock_unflushed(new, &superblock, WRITING).await?;
        }
        let inode = moving.volume.inode();
        if set.context.keeps(Rule::A11CacheDecides)
            && let Err(error) = set.confirm_run(inode, &superblock).await
        {
            // The cache may say either: the new device must not be one that fits.
            let record = record(&moving.volume, MoveRole::Target, &moving.names.old);
            let former = moving.volume.superblock();
            let undone = new.in_time(async { Ok(write_move_record(new, &record, RECORD).await) });
            let undone = undone.await.map_err(EngineError::io(RECORD)).flatten();
            if undone.and(set.confirm_run(inode, &former).await).is_err() {
                let why = "it is not known which disk of a volume that was moved the cache takes";
                set.context.fail(format!("{why}: {error}"));
            }
            return Err(error);
        }
        Ok(superblock)
    }

    /// Goes on with a volume that has ended, over this device.
    fn next_volume(
        &self,
        former: &Rc<CachedVolume<E>>,
        device: Rc<CountedDevice<E>>,
        superblock: Superblock,
    ) -> Rc<CachedVolume<E>> {
        let set = &self.set;
        let (info, inode) = (former.info(), former.inode());
        let options =
            AttachOptions { name: info.name, read_only: info.read_only, ..Default::default() };
        let volume = set.volume(device, superblock, inode, options);
        volume.keep_attributes_of(former);
        volume.coherence.take_losses(&former.coherence);
        volume.set_sectors(info.sectors);
        set.volumes.borrow_mut().insert(inode, Rc::downgrade(&volume));
        volume.start();
        volume
    }
}

impl<E: Env> BackingMove<E> {
    /// Copies everything. Takes as long as that; clients go on.
    ///
    /// # Errors
    /// The move has ended: it was cancelled, or a device fails. The volume goes on as before.
    pub async fn copy(&self) -> Result<(), EngineError> {
        self.copy_missing(false).await;
        if self.mirror.ended().is_none() && self.volume.context.keeps(Rule::A11FlushedFirst) {
            // Most of it now: requests wait for the flush of the switch.
            self.flush().await;
        }
        let result = self.result();
        if result.is_err() {
            self.volume.backing.end_mirror();
        }
        result
    }

    /// Ends the move without a switch.
    pub fn give_up(&self) {
        self.mirror.end(MoveEnd::Cancelled);
        self.volume.backing.end_mirror();
    }

    /// The volume that moves.
    pub fn volume(&self) -> &Rc<CachedVolume<E>> {
        &self.volume
    }

    /// Progress so far.
    pub fn progress(&self) -> MoveProgress {
        MoveProgress {
            total_bytes: self.mirror.whole().bytes(),
            left_bytes: self.mirror.missing_sectors() * SECTOR_BYTES,
            copied_bytes: self.mirror.copied_sectors() * SECTOR_BYTES,
        }
    }

    fn result(&self) -> Result<(), EngineError> {
        self.mirror.ended().map_or(Ok(()), |end| Err(EngineError::MoveEnded(end)))
    }

    async fn copy_missing(&self, volume_has_ended: bool) {
        join_all((0..COPIERS).map(|_| self.copy_parts(volume_has_ended))).await;
    }

    async fn copy_parts(&self, volume_has_ended: bool) {
        let context = &self.volume.context;
        while self.mirror.ended().is_none() {
            // Memory first: writes wait for a turn.
            let part = self.mirror.part_sectors();
            let Some(mut memory) = context.env.buffers().for_sectors(part) else {
                context.env.sleep(MEMORY_RETRY_INTERVAL).await;
                continue;
            };
            if !volume_has_ended && (self.volume.is_stopping() || context.is_ending()) {
                return self.mirror.end(MoveEnd::Cancelled);
            }
            let Some((range, turn)) = self.mirror.next_part() else { return };
            memory.truncate(range.bytes() as usize);
            turn.comes().await;
            match self.copy_part(range, memory).await {
                Ok(()) => self.mirror.copied(range),
                Err(end) => {
                    context.env.mark("move_ended_by_device");
                    self.mirror.end(end);
                }
            }
            drop(turn);
            let unflushed = self.unflushed.get() + range.bytes();
            self.unflushed.set(unflushed);
            if unflushed >= UNFLUSHED_MAX {
                self.flush().await;
            }
        }
    }

    /// Makes durable what was copied so far.
    async fn flush(&self) {
        self.unflushed.set(0);
        if let Err(error) = self.new.flush().await {
            self.mirror.end(MoveEnd::NewFails { what: "flushing", error });
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
        memory.truncate(range.bytes() as usize);
        let read = self.volume.backing.read_buffer(range.start, memory).await;
        let data = read.map_err(|error| MoveEnd::OldUnreadable { at: range.start, error })?;
        let data = data.freeze();
        let written = self.new.write(range.start, data.into(), Durability::Volatile);
        let written = self.new.in_time(written).await;
        written.map_err(|error| MoveEnd::NewFails { what: "writing", error })
    }

    /// Makes a range zero, which may be so already.
    async fn copy_hole(&self, range: SectorRange) -> Result<(), MoveEnd> {
        let found = self.new.in_time(self.new.holes(range, PIECES_MAX)).await.unwrap_or_default();
        let end = found.last().map_or(range.start, |(piece, _)| piece.end);
        if end >= range.end && found.iter().all(|(_, hole)| *hole) {
            return Ok(());
        }
        let mut written = self.new.in_time(self.new.write_holes(range)).await;
        if written == Err(IoError::NotSupported) {
            written = self.new.in_time(self.new.write_zeroes(range)).await;
        }
        if written == Err(IoError::NotSupported) {
            let zeroes = IoVec::zeroes(range.bytes() as usize);
            let zeroed = self.new.write(range.start, zeroes, Durability::Volatile);
            written = self.new.in_time(zeroed).await;
        }
        written.map_err(|error| MoveEnd::NewFails { what: "writing zeroes to", error })
    }
}

fn record<E: Env>(volume: &CachedVolume<E>, role: MoveRole, other: &str) -> MoveRecord {
    let time = volume.context.env.unix_seconds();
    MoveRecord { role, uuid: volume.uuid(), time, other: other.to_owned() }
}
