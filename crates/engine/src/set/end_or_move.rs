//! Volumes that end, or move to another set, while the set and its other volumes go on.

use std::rc::Rc;

use ubcache_env::{Env, Volume};
use ubcache_format::SECTOR_BYTES;

use super::CacheSet;
use super::attach::AttachOptions;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::volume::CachedVolume;
use crate::volume::state::{Attachment, Transition};

impl<E: Env> CacheSet<E> {
    /// Returns true if the volume belongs to this set, attached or not.
    pub fn has(&self, volume: &CachedVolume<E>) -> bool {
        Rc::ptr_eq(&self.set.journal, &volume.journal)
    }

    /// Refuses a volume of another set: its slot there is somebody else's here.
    pub(super) fn is_own(&self, volume: &CachedVolume<E>) -> Result<(), EngineError> {
        if self.has(volume) { Ok(()) } else { Err(EngineError::NotOfThisSet(volume.uuid())) }
    }

    /// Writes back everything that only the cache has at this moment, whatever the mode; clients
    /// go on. Takes as long as the writeback.
    ///
    /// # Errors
    /// The set has failed or is being stopped; the backing device does not take the data.
    pub async fn drain(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let _own = volume.lifecycle.attachment_turn().await;
        self.is_own(volume)?;
        if volume.is_stopping() {
            return Err(EngineError::Stopping);
        }
        if !volume.lifecycle.uses_cache() {
            return Ok(());
        }
        volume.enter(Transition::DrainStarts);
        let drained = self.until_clean(volume).await;
        if drained.is_ok() {
            volume.mark_clean_if_so().await;
        }
        if volume.lifecycle.is_draining() {
            volume.enter(Transition::DrainEnds);
        }
        drained
    }

    /// Ends a volume, as a stop does, while others go on; its requests are refused from then on.
    /// Its cached data stays, as of a backing device that is absent. With `drain` everything
    /// dirty is written back before. `Ok` with an error: it has ended, and something of it may not
    /// be durable.
    ///
    /// # Errors
    /// The set is being stopped; with `drain`, the backing device does not take the dirty data. The
    /// volume goes on.
    pub async fn release(
        &self,
        volume: &Rc<CachedVolume<E>>,
        drain: bool,
    ) -> Result<Option<EngineError>, EngineError> {
        let set = &self.set;
        if !drain && self.has(volume) {
            // A drain of a disk that hangs would keep its turn for ever.
            volume.writeback.end_drains();
        }
        let _own = volume.lifecycle.attachment_turn().await;
        self.is_own(volume)?;
        if volume.is_stopping() {
            return Err(EngineError::Stopping);
        }
        let drains = drain && volume.lifecycle.uses_cache();
        if drains {
            volume.enter(Transition::DrainStarts);
        }
        let ready = loop {
            if drains && let Err(error) = self.until_clean(volume).await {
                break Err(error);
            }
            let one = set.attach_lock.lock().await;
            if volume.is_stopping() || set.context.is_ending() {
                break Err(EngineError::Stopping);
            }
            let paused = volume.pause().await;
            if !drains || volume.has_nothing_dirty() || !volume.lifecycle.uses_cache() {
                break Ok((one, paused));
            }
        };
        if ready.is_err() && volume.lifecycle.is_draining() {
            volume.enter(Transition::DrainEnds);
        }
        let _closed = ready?;
        set.context.env.mark("volume_released");
        let mut ended = volume.stop().await;
        volume.give_up_device().await;
        if ended.is_ok() {
            // A9: nothing is written any more.
            let sealed = volume.backing.seal().await;
            ended = sealed.map_err(EngineError::io("noting what is left of the disk"));
        }
        let inode = volume.inode();
        if volume.lifecycle.attachment() != Attachment::Detached {
            set.volumes.borrow_mut().remove(&inode);
        }
        set.detached.borrow_mut().retain(|other| !other.ptr_eq(&Rc::downgrade(volume)));
        Ok(ended.err())
    }

    /// A8: refuses a volume whose blocks are too small for this cache, before anything changes.
    ///
    /// # Errors
    /// See above.
    pub fn can_adopt(&self, former: &CachedVolume<E>) -> Result<(), EngineError> {
        let context = &self.set.context;
        let logical = context.cache.limits().logical_block_bytes / SECTOR_BYTES as u32;
        let cache = context.geometry.block_sectors.max(logical);
        // Clients were told of the block that they may use.
        let told = former.block_sectors() as u32;
        if told < logical {
            return Err(EngineError::BlockTooSmall { backing: told, cache: logical });
        }
        let backing = former.superblock().block_sectors;
        if backing < cache {
            return Err(EngineError::BlockTooSmall { backing, cache });
        }
        Ok(())
    }

    /// A8: takes a volume over from another set, which has failed, or from which it was detached.
    /// Its cache is empty. The former volume ends, and the new one goes on with its settings, and
    /// with what is known of failed flushes. No request may be under way.
    ///
    /// # Errors
    /// The volume still needs its former cache; its blocks are too small; a device fails; a set has
    /// failed or is being stopped. The former volume goes on.
    pub async fn adopt(
        &self,
        former: &Rc<CachedVolume<E>>,
    ) -> Result<Rc<CachedVolume<E>>, EngineError> {
        let set = &self.set;
        let _own = former.lifecycle.attachment_turn().await;
        let _one = set.attach_lock.lock().await;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        if former.is_stopping() || set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        if set.served().iter().any(|volume| volume.uuid() == former.uuid()) {
            return Err(EngineError::AlreadyAttached(former.uuid()));
        }
        self.can_adopt(former)?;
        let paused = former.pause().await;
        former.leave_cache_in_turn().await?;
        let inode = set.put_on(former).await?;
        // Its set may have been stopped meanwhile.
        if !former.is_stopping() {
            former.enter(Transition::Stopping);
        }
        drop(paused);
        former.join_tasks().await;
        former.give_up_device().await;
        let superblock = former.superblock();
        let info = former.info();
        let options =
            AttachOptions { name: info.name, read_only: info.read_only, ..Default::default() };
        let volume = set.volume(former.backing.clone(), superblock, inode, options);
        volume.keep_attributes_of(former);
        if volume.context.keeps(Rule::A8LossesTaken) {
            volume.coherence.take_losses(&former.coherence);
        }
        set.context.env.mark("volume_adopted");
        set.volumes.borrow_mut().insert(inode, Rc::downgrade(&volume));
        volume.start();
        volume.save_soon();
        Ok(volume)
    }
}
