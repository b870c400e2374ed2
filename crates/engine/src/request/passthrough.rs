//! Requests without a cache: it has failed (A4), or the volume was detached (A3).

use ubcache_env::{Env, IoVec, Nanos, SectorRange, VolumeError};
use ubcache_format::{BackingState, SECTOR_BYTES};

use super::write::Payload;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::stats::requests::{BypassReason, Path};
use crate::volume::CachedVolume;
use crate::volume::state::Transition;

impl<E: Env> CachedVolume<E> {
    /// The cache has failed and this volume has no dirty data: from now on the backing device
    /// alone is the volume. Its superblock says so, durably, before the first write goes past the
    /// cache: should the cache come back, nothing on it is used.
    async fn ensure_passthrough(&self) -> Result<(), EngineError> {
        if !self.lifecycle.uses_cache() {
            return Ok(());
        }
        let turn = self.lifecycle.marking_turn().await;
        if !self.lifecycle.uses_cache() {
            return Ok(());
        }
        if self.context.keeps(Rule::A4StampedFirst) {
            self.save_state(&turn, (BackingState::Stale, Transition::Disowned)).await?;
        }
        #[cfg(feature = "mutants")]
        self.disown_in_memory();
        self.drop_unpublished();
        Ok(())
    }

    fn may_go_without_cache(&self) -> bool {
        self.context.failure().is_some() && self.has_nothing_dirty()
    }

    /// The volume needs nothing of its cache: it has none, or the cache failed and had nothing
    /// dirty of it.
    pub fn needs_no_cache(&self) -> bool {
        !self.lifecycle.uses_cache() || self.may_go_without_cache()
    }

    /// A8: the volume leaves its cache, which has failed, for good: its superblock says so,
    /// durably. Does nothing if it has none.
    ///
    /// # Errors
    /// It needs the cache; the backing device fails.
    pub async fn leave_cache(&self) -> Result<(), EngineError> {
        // An attach that is under way would name the cache again.
        let _own = self.lifecycle.attachment_turn().await;
        self.leave_cache_in_turn().await
    }

    /// [`CachedVolume::leave_cache`] for a caller that has the turn of the attachment.
    pub(crate) async fn leave_cache_in_turn(&self) -> Result<(), EngineError> {
        if !self.needs_no_cache() {
            return Err(match self.context.failure() {
                None => EngineError::AlreadyAttached(self.uuid()),
                Some(_) if self.allocator.buckets().is_counted() => {
                    let sectors = self.index.dirty_sectors(self.inode());
                    EngineError::HasDirty(sectors * SECTOR_BYTES)
                }
                Some(_) => EngineError::WouldLose(
                    "the former cache failed before it was known what only it has",
                ),
            });
        }
        self.ensure_passthrough().await
    }

    /// A write that can't be recorded. Without dirty data it goes to the backing device all the
    /// same, after the backing superblock disowned the cache; with dirty data it fails.
    pub(crate) async fn write_without_cache(
        &self,
        range: SectorRange,
        payload: &Payload,
        fua: bool,
        error: EngineError,
    ) -> Result<(), VolumeError> {
        if self.may_go_without_cache() {
            match self.ensure_passthrough().await {
                Ok(()) => self.write_past(range, payload, fua).await,
                Err(error) => Err(error.into()),
            }
        } else {
            self.context.env.mark("write_refused_without_cache");
            Err(error.into())
        }
    }

    /// A read with nothing but the backing device.
    pub(crate) async fn read_past(
        &self,
        range: SectorRange,
        started: Nanos,
    ) -> Result<IoVec, VolumeError> {
        let result = self.read_backing(range).await.map(IoVec::from);
        let (path, reason) = (Path::BypassRead, Some(BypassReason::NoCache));
        self.request_ended(path, reason, range.bytes(), started);
        result
    }

    /// A write with nothing but the backing device.
    pub(crate) async fn write_past(
        &self,
        range: SectorRange,
        payload: &Payload,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.write_backing(range, payload, fua).await.map_err(VolumeError::Io)?;
        if fua && !payload.is_data() {
            self.backing.flush().await.map_err(VolumeError::Io)?;
            self.nothing_was_lost(range)?;
        }
        Ok(())
    }
}
