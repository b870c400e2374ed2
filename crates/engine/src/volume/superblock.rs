//! The superblock of the backing device.

use ubcache_env::{Env, Priority};
use ubcache_format::BackingState;

use super::CachedVolume;
use crate::errors::EngineError;
use crate::superblock::write_superblock;

impl<E: Env> CachedVolume<E> {
    /// I12: the backing superblock says dirty, durably, before the first dirty key exists.
    pub(crate) async fn ensure_marked_dirty(&self) -> Result<(), EngineError> {
        if self.marked_dirty.get() {
            return Ok(());
        }
        let _one = self.state_lock.lock().await;
        if !self.marked_dirty.get() {
            self.superblock.borrow_mut().set_state(BackingState::Dirty);
            self.write_backing_superblock().await?;
            self.marked_dirty.set(true);
            self.context.env.mark("marked_dirty");
        }
        Ok(())
    }

    /// No dirty key, none on its way, and that is known for sure.
    pub(crate) fn has_nothing_dirty(&self) -> bool {
        self.allocator.buckets().is_counted()
            && self.index.dirty_sectors(self.inode()) == 0
            && self.dirty_writers.get() == 0
    }

    /// The backing superblock says clean when every dirty key is durably clean and no new one is
    /// on its way.
    pub(crate) async fn mark_clean_if_so(&self) {
        let clean =
            || self.superblock.borrow().state() == BackingState::Dirty && self.has_nothing_dirty();
        if !clean() || self.context.failure().is_some() {
            return;
        }
        let _one = self.state_lock.lock().await;
        if self.journal.flush().await.is_err() || !clean() {
            self.context.env.mark("marking_clean_overtaken");
            return;
        }
        // From here on a writer waits for the lock and marks it dirty again.
        self.marked_dirty.set(false);
        self.superblock.borrow_mut().set_state(BackingState::Clean);
        self.context.env.mark("marked_clean");
        if self.write_backing_superblock().await.is_err() {
            self.superblock.borrow_mut().set_state(BackingState::Dirty);
        }
    }

    /// Has a task save the superblock. There is one at most that has not begun, however often it
    /// changes.
    pub(super) fn save_soon(&self) {
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
        let superblock = self.superblock.borrow().clone();
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
}
