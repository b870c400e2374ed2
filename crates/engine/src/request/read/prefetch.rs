//! Prefetching: filling without reading.

use ubcache_env::{Env, SectorRange, VolumeError};
use ubcache_format::CacheMode;

use super::miss::Part;
use crate::bypass::may_cache::IN_USE_BYPASS_PERCENT;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// Brings what is missing of the range into the cache; what is there is not read. Not a part of
    /// any run of requests: who asks for this wants the data in the cache, however long it is.
    pub(crate) async fn prefetch_keys(&self, range: SectorRange) -> Result<(), VolumeError> {
        let in_use = self.allocator.buckets().in_use_percent();
        let full = in_use > IN_USE_BYPASS_PERCENT;
        let bypass = !self.lifecycle.uses_cache()
            || self.lifecycle.is_draining()
            || self.mode() == CacheMode::None
            || full;
        if bypass || self.index.load_for_read(self.inode(), range).await.is_err() {
            return Ok(());
        }
        let parts = self.look_up_parts(range, !self.is_stopping());
        let Some(me) = self.me.upgrade() else { return Ok(()) };
        for part in parts {
            if let Part::Miss { fill: Some(_), .. } = &part {
                let (read, fill) = self.read_part(part).await;
                // Before the next part is read: what is in memory has been claimed.
                if let Some(fill) = fill {
                    self.context.env.mark("prefetched");
                    me.fill(fill).await;
                }
                read?;
            }
        }
        Ok(())
    }
}
