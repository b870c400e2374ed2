//! The superblock of the backing device.

use ubcache_env::{Env, IoError, IoResult, Priority};
use ubcache_format::{BackingState, MoveRole, RunNumber, Superblock, Uuid};

use super::CachedVolume;
use super::state::{DirtyFlag, MarkingTurn, Transition};
use crate::errors::EngineError;
use crate::superblock::write_superblock;

impl<E: Env> CachedVolume<E> {
    /// FI12: the backing superblock says dirty, durably, before the first dirty key exists. A
    /// writer that begins in the same step keeps it so.
    pub(crate) async fn mark_dirty(&self) -> Result<(), EngineError> {
        let turn = self.lifecycle.marking_turn().await;
        match self.lifecycle.is_marked_dirty() {
            true => Ok(()),
            false => self.save_state(&turn, (BackingState::Dirty, Transition::MarkedDirty)).await,
        }
    }

    /// No dirty key, none on its way, and that is known for sure.
    pub(crate) fn has_nothing_dirty(&self) -> bool {
        self.allocator.buckets().is_counted()
            && self.index.dirty_sectors(self.inode()) == 0
            && self.dirty_writers.are_none()
    }

    /// The backing superblock says clean when every dirty key is durably clean and no new one is
    /// on its way.
    pub(crate) async fn mark_clean_if_so(&self) {
        let marked = || self.lifecycle.dirty_flag().is_some_and(|flag| flag != DirtyFlag::Clean);
        let clean = || marked() && self.has_nothing_dirty();
        if !clean() || self.context.failure().is_some() {
            return;
        }
        let turn = self.lifecycle.marking_turn().await;
        if self.journal.flush().await.is_err() || !clean() {
            self.context.env.mark("marking_clean_overtaken");
            return;
        }
        // From here on a writer waits for its turn and marks it dirty again. After an error the
        // next scan tries again.
        drop(self.save_state(&turn, (BackingState::Clean, Transition::MarkedClean)).await);
    }

    /// Has the backing superblock say, durably, what the cache is to it, and makes the transition.
    /// After an error it may say either, and memory has the former state.
    pub(crate) async fn save_state(
        &self,
        _turn: &MarkingTurn,
        (state, durable): (BackingState, Transition),
    ) -> Result<(), EngineError> {
        self.enter(Transition::MarkingStarts);
        let former = {
            let mut superblock = self.superblock.borrow_mut();
            let former = (superblock.state(), superblock.set_uuid);
            superblock.set_state(state);
            if state == BackingState::None {
                superblock.set_uuid = Uuid([0; 16]);
            }
            former
        };
        let result = self.write_backing_superblock().await;
        if result.is_err() {
            let mut superblock = self.superblock.borrow_mut();
            superblock.set_state(former.0);
            superblock.set_uuid = former.1;
        }
        self.enter(if result.is_ok() { durable } else { Transition::MarkingFailed });
        result
    }

    /// Sectors of a block by the superblock of the backing device: blocks of a cache must not be
    /// larger.
    pub fn backing_block_sectors(&self) -> u32 {
        self.superblock.borrow().block_sectors
    }

    /// The superblock as it is to be on the device.
    pub(crate) fn superblock(&self) -> Superblock {
        self.superblock.borrow().clone()
    }

    /// Takes what an attach changes from another state of the superblock: set, state and run.
    /// Attributes stay, which may have been set since.
    pub(crate) fn set_membership(&self, of: &Superblock) {
        let mut superblock = self.superblock.borrow_mut();
        superblock.set_uuid = of.set_uuid;
        superblock.set_state(of.state());
        superblock.last_mount = of.last_mount;
        superblock.set_run(of.run().number());
    }

    /// Number of the run that the superblock is of (A5).
    pub fn run(&self) -> Option<RunNumber> {
        self.superblock.borrow().run().number()
    }

    pub(crate) fn set_run(&self, run: RunNumber) {
        self.superblock.borrow_mut().set_run(Some(run));
    }

    /// Has a task save the superblock. There is one at most that has not begun, however often it
    /// changes.
    pub(crate) fn save_soon(&self) {
        let Some(me) = self.me.upgrade() else { return };
        if self.saving.replace(true) {
            return;
        }
        let task = self.context.env.spawn(Priority::Background, async move {
            me.saving.set(false);
            // An error shows in the counters; the setting is in force for this run.
            drop(me.save_attributes().await);
        });
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Waits until the attributes that survive a restart are on the backing device, durably.
    pub async fn save_attributes(&self) -> Result<(), EngineError> {
        let saved = self.saved_superblock.borrow().as_ref() == Some(&*self.superblock.borrow());
        if saved { Ok(()) } else { self.write_backing_superblock().await }
    }

    /// Writes the superblock of the backing device as it is now. Whoever waits for his turn here is
    /// served by the one before if that wrote what he wants.
    pub(crate) async fn write_backing_superblock(&self) -> Result<(), EngineError> {
        let _one = self.superblock_lock.lock().await;
        if self.gave_up_device.get() {
            return Err(EngineError::Stopping);
        }
        let superblock = {
            let mut superblock = self.superblock.borrow_mut();
            superblock.set_attempt(self.attempt.get().map(|it| (MoveRole::Left, it)));
            superblock.clone()
        };
        if self.saved_superblock.borrow().as_ref() == Some(&superblock) {
            return Ok(());
        }
        *self.saved_superblock.borrow_mut() = None;
        let result =
            write_superblock(&self.backing, &superblock, "writing the backing superblock").await;
        if result.is_ok() {
            *self.saved_superblock.borrow_mut() = Some(superblock);
        }
        result
    }

    /// A13: the superblock says, durably, that all changes of the device are in the log of this
    /// attempt to move, or that they are in no log.
    pub(crate) async fn save_attempt(&self, attempt: Option<u64>) -> Result<(), EngineError> {
        self.attempt.set(attempt);
        self.write_backing_superblock().await
    }

    /// A13: the superblock names no attempt to move any more, durably.
    pub(super) async fn part_from_attempt(&self) -> IoResult {
        self.save_attempt(None).await.map_err(|error| match error {
            EngineError::Io { source, .. } => source,
            _ => IoError::Gone,
        })
    }

    /// A5: another volume over the same backing device is about to begin. This one writes no
    /// superblock any more: an attribute that is set late would take the new run number back.
    pub(crate) async fn give_up_device(&self) {
        let _one = self.superblock_lock.lock().await;
        self.gave_up_device.set(true);
    }
}
