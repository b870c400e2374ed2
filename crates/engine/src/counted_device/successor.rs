//! The device that a volume moves to: what is written to the old one goes there as well (A11), and
//! its log says what may differ (A13).
//!
//! ```text
//!   mirrored ──▶ ended: a device failed, or somebody cancelled the move
//!                  │    writes wait until the old device says that the log does not count any more
//!                  ▼
//!                parted: changes are noted in memory, for another attempt in the same run
//! ```

use std::rc::Rc;

use ubcache_env::local::{Either, first, join};
use ubcache_env::{Buf, Durability, Env, IoError, IoResult, Nanos, SectorRange};
use ubcache_format::{MoveRegions, SUPERBLOCK_SECTOR};

use super::{Change, Changes, CountedDevice, Parting, Successor};
use crate::errors::{EngineError, MoveEnd};
use crate::move_log::add;
use crate::rules::Rule;

/// Time that a client waits for the device that its volume moves to.
const SUCCESSOR_PATIENCE: Nanos = Nanos::from_secs(30);
/// Error of a request that takes longer.
const ETIMEDOUT: i32 = 110;
/// Error of a flush whose move has ended.
const ECANCELED: i32 = 125;

impl<E: Env> CountedDevice<E> {
    /// A11: from now on what is written to this device goes to another one as well, as the mirror
    /// says. No write may be under way.
    pub fn begin_mirror(&self, successor: Rc<Successor<E>>) {
        self.changes.take();
        *self.successor.borrow_mut() = Some(successor);
    }

    /// Returns true while its volume moves to another device.
    pub fn has_successor(&self) -> bool {
        self.successor.borrow().is_some()
    }

    /// The volume has moved: nothing is written to this device any more.
    pub fn end_mirror(&self) {
        self.successor.borrow_mut().take();
    }

    /// A13: notes in memory what is written from now on, for another attempt to move. `regions`:
    /// what may differ already, beside what the log says.
    pub fn note_changes(&self, attempt: u64, regions: MoveRegions) {
        *self.changes.borrow_mut() = Some(Changes { attempt, regions });
    }

    /// A13: what has changed is not known any more: another attempt copies everything.
    pub fn forget_changes(&self) {
        self.changes.take();
    }

    /// Regions that have changed since this attempt, if that is known.
    pub fn changes_since(&self, attempt: u64) -> Option<MoveRegions> {
        let changes = self.changes.borrow();
        let changes = changes.as_ref().filter(|changes| changes.attempt == attempt)?;
        Some(changes.regions.clone())
    }

    #[inline(always)]
    pub(super) fn note_change(&self, range: SectorRange) {
        if let Some(changes) = &mut *self.changes.borrow_mut() {
            add(&mut changes.regions, range);
        }
    }

    /// Sets the way to have the superblock of this device not name an attempt any more.
    pub fn set_parting(&self, parting: Parting) {
        *self.parting.borrow_mut() = Some(parting);
    }

    /// A13: before anything is written to this device alone after a move has ended, the device says
    /// that the log of the move does not count any more.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn part(&self) -> IoResult {
        let Some(successor) = self.successor.borrow().clone() else { return Ok(()) };
        let parting = self.parting.borrow().clone();
        if let Some(parting) = parting {
            parting().await?;
        }
        let mut now = self.successor.borrow_mut();
        if now.as_ref().is_some_and(|now| Rc::ptr_eq(now, &successor)) {
            *now = None;
            self.env.mark("move_parted");
            // The new device may have failed before its log said all of it.
            self.note_changes(successor.log.attempt(), successor.log.wanted());
        }
        Ok(())
    }

    /// The device that a volume moves to, if a change of this range concerns it.
    #[inline]
    pub(super) fn successor_for(&self, range: SectorRange) -> Option<Rc<Successor<E>>> {
        let successor = self.successor.borrow();
        let successor = successor.as_ref()?;
        successor.mirror.concerns(range).then(|| successor.clone())
    }

    /// Makes a change on this device and on its successor. This one is the truth: its result is
    /// that of the request, and what it holds after an error is copied.
    #[cold]
    pub(super) async fn change_both(
        &self,
        successor: Rc<Successor<E>>,
        change: Change,
    ) -> IoResult {
        let (mirror, range) = (&successor.mirror, change.range());
        let turn = mirror.turn(range);
        turn.comes().await;
        if mirror.ended().is_none() {
            successor.log_change(range).await;
        }
        if mirror.ended().is_some() {
            self.part().await?;
            return self.change(change).await;
        }
        if matches!(change, Change::Discard(_)) {
            // Nobody knows what it leaves.
            mirror.may_differ(range);
        }
        let goes_there = mirror.has_copied(range) && self.rules.keeps(Rule::A11BothWritten);
        let there = async {
            match goes_there {
                true => {
                    let device = &successor.device;
                    device.in_time(device.change(change.clone().volatile())).await
                }
                false => Ok(()),
            }
        };
        let (here, there) = join(self.change(change.clone()), there).await;
        if here.is_err() {
            mirror.may_differ(range);
        }
        match there {
            Ok(()) => {}
            Err(IoError::NotSupported) => mirror.may_differ(range),
            Err(error) => {
                self.env.mark("move_ended_by_device");
                mirror.end(MoveEnd::NewFails { what: "writing", error });
            }
        }
        here
    }

    /// A request of a move on the new device: others wait for it, so it ends in time, or fails.
    /// A request that was begun may still take effect.
    pub async fn in_time<T>(&self, request: impl Future<Output = IoResult<T>>) -> IoResult<T> {
        match first(request, self.env.sleep(SUCCESSOR_PATIENCE)).await {
            Either::Left(result) => result,
            Either::Right(()) => Err(IoError::Os(ETIMEDOUT)),
        }
    }
}

impl<E: Env> Successor<E> {
    /// Its move goes on.
    ///
    /// # Errors
    /// It has ended.
    pub fn result(&self) -> Result<(), EngineError> {
        self.mirror.ended().map_or(Ok(()), |end| Err(EngineError::MoveEnded(end)))
    }

    /// Flushes the new device, for as long as its move goes on: whoever cancels that does not wait
    /// for a device that hangs. The log says nothing that this flush was to make true (A13).
    ///
    /// # Errors
    /// The device fails, or the move has ended.
    pub async fn flush(&self) -> IoResult {
        match first(self.device.flush(), self.mirror.over()).await {
            Either::Left(flushed) => flushed,
            Either::Right(()) => Err(IoError::Os(ECANCELED)),
        }
    }

    /// These regions may differ as well.
    pub fn may_differ(&self, regions: &MoveRegions) {
        self.log.merge(regions);
        self.mirror.add_missing(regions);
    }

    /// A13: the log says, durably, that a range may differ, before it is written. An error of the
    /// new device ends the move.
    async fn log_change(&self, range: SectorRange) {
        if self.device.rules.keeps(Rule::A13LoggedFirst) {
            while !self.log.touch(range) && self.mirror.ended().is_none() {
                self.catch_up().await;
            }
        }
    }

    /// Writes the log, if it says less than it is to say.
    pub async fn catch_up(&self) {
        let _turn = self.log.writing.lock().await;
        // The one before may have written it for this one as well.
        if self.log.is_behind() && self.mirror.ended().is_none() {
            self.write_log().await;
        }
    }

    async fn write_log(&self) {
        let (bytes, regions) = self.log.write_begins();
        let bytes = Buf::from_bytes(&bytes).into();
        let written = self.device.write(SUPERBLOCK_SECTOR, bytes, Durability::Fua);
        match self.device.in_time(written).await {
            Ok(()) => self.log.written(regions),
            Err(error) => {
                self.device.env.mark("move_ended_by_device");
                self.mirror
                    .end(MoveEnd::NewFails { what: "writing the log of the move to", error });
            }
        }
    }

    /// A13: what was copied so far and is not being written is the same on both devices after they
    /// were flushed, and the log says so. Does nothing while another one does it.
    pub async fn checkpoint(&self, old: &CountedDevice<E>) {
        let Some(_one) = self.log.checkpoint.try_lock() else { return };
        let Some(settled) = self.log.checkpoint_begins(|busy| self.mirror.add_busy(busy)) else {
            return;
        };
        if self.device.rules.keeps(Rule::A13BothFlushed) {
            // A failed one ends the move by itself.
            if old.flush().await.is_err() {
                return;
            }
            if let Err(error) = self.flush().await {
                return self.mirror.end(MoveEnd::NewFails { what: "flushing", error });
            }
        }
        let _turn = self.log.writing.lock().await;
        if self.mirror.ended().is_none() {
            self.log.settle(&settled);
            self.write_log().await;
            self.device.env.mark("move_checkpoint");
        }
    }
}
