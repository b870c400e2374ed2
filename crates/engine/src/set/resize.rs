//! Backing devices that become longer or shorter while their volumes are served (A6).

use std::rc::Rc;

use ubcache_env::{Env, SectorRange};

use super::CacheSet;
use crate::errors::EngineError;
use crate::volume::CachedVolume;

/// The size of a volume or a cache before and after, in sectors.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Resized {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

impl<E: Env> CacheSet<E> {
    /// Looks at the size of the backing device again, and gives the volume that size. A volume that
    /// becomes longer goes on meanwhile. A6: one that becomes shorter is paused until its keys
    /// beyond the new end are removed, durably.
    ///
    /// # Errors
    /// The device does not tell its size, or has no room for a volume any more; the volume would
    /// become shorter, and it may not, or the cache has dirty data beyond the end: it keeps its
    /// size then. The set has failed or is being stopped.
    pub async fn resize(
        &self,
        volume: &Rc<CachedVolume<E>>,
        may_shorten: bool,
    ) -> Result<Resized, EngineError> {
        let set = &self.set;
        self.is_own(volume)?;
        let _one = set.attach_lock.lock().await;
        if volume.is_stopping() || set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        if volume.backing.has_successor() {
            return Err(EngineError::Moving);
        }
        let before = volume.volume_info().sectors;
        let device = volume.backing.refresh_size().await;
        let device = device.map_err(EngineError::io("reading the size of the backing device"))?;
        let after = volume.sectors_on(device);
        if after == 0 {
            return Err(EngineError::NoVolumeLeft(device));
        }
        if after != before {
            // A13: of what is beyond one of the ends the log of a move knows nothing.
            volume.backing.forget_changes();
        }
        if after > before {
            volume.set_sectors(after);
            set.context.env.mark("volume_grown");
        }
        if after < before {
            if !may_shorten {
                return Err(EngineError::WouldShorten { before, after });
            }
            let _paused = volume.pause().await;
            if volume.lifecycle.uses_cache() {
                let whole = volume.all_keys();
                let end = whole.start + after;
                volume.coherence.drop_copies(SectorRange::from_bounds(end, whole.end));
                set.fit_to_size(volume.inode(), end.0).await?;
            }
            volume.set_sectors(after);
            set.context.env.mark("volume_shortened");
        }
        Ok(Resized { before, after })
    }
}
