//! Parting a volume from its set while clients use it, and taking it up again (A1, A2, A3).

use std::rc::Rc;

use ubcache_env::Env;
use ubcache_env::local::first;
use ubcache_format::{BackingState, Inode};

use super::{CacheSet, Set};
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::volume::CachedVolume;
use crate::volume::state::{Attachment, Transition};

/// After this many failed writes of dirty data, or failed reads of it, a detach gives up.
const ERRORS_MAX: u64 = 8;

impl<E: Env> CacheSet<E> {
    /// Writes back everything that only the cache has, and parts the volume from the set, durably.
    /// It stays in use all the time; afterwards requests go to the backing device, which any
    /// program can use on its own once this set is stopped. Takes as long as the writeback.
    ///
    /// # Errors
    /// The volume is not attached; the set has failed or is being stopped; the cache device does
    /// not return the dirty data, or the backing device does not take it. The volume stays attached
    /// then.
    pub async fn detach(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let set = &self.set;
        let _own = volume.lifecycle.attachment_turn().await;
        self.is_own(volume)?;
        if volume.is_stopping() {
            return Err(EngineError::Stopping);
        }
        if volume.backing.has_successor() {
            return Err(EngineError::Moving);
        }
        match volume.lifecycle.attachment() {
            Attachment::Detached => return Err(EngineError::NotAttached),
            Attachment::Disowned => {
                return Err(EngineError::Failed(set.context.failure().unwrap_or_default()));
            }
            Attachment::Attached(_) | Attachment::Draining(_) => {}
        }
        volume.enter(Transition::DrainStarts);
        let drains = set.context.keeps(Rule::A3DrainsFirst);
        let parted = loop {
            // Other volumes come and go meanwhile: a slow disk may take hours for what is dirty.
            if drains && let Err(error) = self.until_clean(volume).await {
                break Err(error);
            }
            let one = set.attach_lock.lock().await;
            let _paused = volume.pause().await;
            if volume.has_nothing_dirty() || !drains {
                break self.part(volume).await.map(|()| one);
            }
        };
        if volume.lifecycle.is_draining() {
            volume.enter(Transition::DrainEnds);
        }
        let _one = parted?;
        // From here on the keys are dead, whatever becomes of the table: the next attach takes
        // another slot.
        let inode = volume.inode();
        set.volumes.borrow_mut().remove(&inode);
        set.detached.borrow_mut().push(Rc::downgrade(volume));
        set.table.invalidate(inode).await?;
        set.gc.request();
        Ok(())
    }

    /// The volume is paused and nothing in it is dirty. Ends without its background tasks if it
    /// succeeds.
    async fn part(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let turn = volume.lifecycle.marking_turn().await;
        if volume.is_stopping() || self.set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        if !volume.lifecycle.is_draining() {
            // The cache failed, and a write disowned it, before the volume was paused.
            return Err(EngineError::Failed(self.set.context.failure().unwrap_or_default()));
        }
        // A3: the records that dirty keys are clean, what they were written for, and then the
        // superblock. No request is under way.
        self.set.journal.flush().await?;
        volume.backing.flush().await.map_err(EngineError::io("flushing the backing device"))?;
        // After an error it may say either. Attached is what memory goes on with; a start that
        // finds it detached voids the keys, and there are no dirty ones but those that come after
        // the superblock says dirty again.
        volume.save_state(&turn, (BackingState::None, Transition::Detached)).await?;
        volume.drop_unpublished();
        volume.coherence.was_flushed();
        // The writeback task may be waiting for it, and finds that there is nothing to mark any
        // more.
        drop(turn);
        volume.join_tasks().await;
        Ok(())
    }

    /// Waits until nothing is dirty.
    pub(super) async fn until_clean(
        &self,
        volume: &Rc<CachedVolume<E>>,
    ) -> Result<(), EngineError> {
        let errors_before = volume.backing_errors();
        let unreadable_before = volume.writeback.unreadable();
        volume.writeback.wake();
        self.set.wait_until_counted().await?;
        loop {
            let progress = first(volume.writeback.progress(), volume.dirty_writers.all_end());
            if let Some(reason) = self.set.context.failure() {
                return Err(EngineError::Failed(reason));
            }
            if volume.is_stopping() || self.set.context.is_ending() {
                return Err(EngineError::Stopping);
            }
            if volume.has_nothing_dirty() {
                return Ok(());
            }
            if volume.writeback.ends_drains() {
                return Err(EngineError::Removed(volume.uuid()));
            }
            let errors = volume.backing_errors() - errors_before;
            if errors >= ERRORS_MAX {
                return Err(EngineError::BackingFails(errors));
            }
            let unreadable = volume.writeback.unreadable() - unreadable_before;
            if unreadable >= ERRORS_MAX {
                return Err(EngineError::DirtyUnreadable(unreadable));
            }
            progress.await;
        }
    }

    /// Gives a detached volume its cache again, empty, while clients use it.
    ///
    /// # Errors
    /// The volume is attached; the set has failed, is being stopped or has no slot left; a device
    /// fails.
    pub async fn attach_again(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let set = &self.set;
        let _own = volume.lifecycle.attachment_turn().await;
        self.is_own(volume)?;
        let _one = set.attach_lock.lock().await;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        if volume.lifecycle.attachment() != Attachment::Detached {
            return Err(EngineError::AlreadyAttached(volume.uuid()));
        }
        let _paused = volume.pause().await;
        self.take_up(volume).await
    }

    async fn take_up(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let set = &self.set;
        if volume.is_stopping() || set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        let inode = set.put_on(volume).await?;
        volume.set_inode(inode);
        volume.enter(Transition::AttachedAgain);
        set.detached.borrow_mut().retain(|parted| !parted.ptr_eq(&Rc::downgrade(volume)));
        set.volumes.borrow_mut().insert(inode, Rc::downgrade(volume));
        volume.start();
        Ok(())
    }
}

impl<E: Env> Set<E> {
    /// Gives a volume without a cache a slot of this set, empty, and has its superblock say so. No
    /// request is under way.
    pub(super) async fn put_on(
        self: &Rc<Self>,
        volume: &CachedVolume<E>,
    ) -> Result<Inode, EngineError> {
        // A1: writes went past the table of what is un-flushed.
        volume.backing.flush().await.map_err(EngineError::io("flushing the backing device"))?;
        let former = volume.superblock();
        let slot = self.table.slot_of(former.uuid);
        let mut attached = former.clone();
        let inode = self.take_slot(slot, &mut attached).await?;
        attached.set_uuid = self.superblock.borrow().set_uuid;
        attached.set_state(BackingState::Clean);
        volume.set_membership(&attached);
        let written = match volume.write_backing_superblock().await {
            Ok(()) => self.confirm_run(inode, &attached).await,
            failed => failed,
        };
        match written {
            Ok(()) => Ok(inode),
            Err(error) => {
                // It may say either now. Nothing is cached in the slot.
                volume.set_membership(&former);
                Err(error)
            }
        }
    }
}
