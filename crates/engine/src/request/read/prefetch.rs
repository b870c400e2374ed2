//! Prefetching: filling what nobody has read, for a client that asks, and around a miss.

use ubcache_env::{Env, Priority, Sector, SectorRange, VolumeError};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use super::miss::Part;
use crate::bypass::may_cache::IN_USE_BYPASS_PERCENT;
use crate::volume::CachedVolume;

/// Misses of a volume whose surroundings are being read, at most: others are cached alone.
const AROUND_MAX: usize = 8;

impl<E: Env> CachedVolume<E> {
    /// Caches the rest of the part of the volume in which a read has missed, if the attribute
    /// `readahead` gives it a size. The client does not wait for that.
    pub(super) fn fill_around(&self, range: SectorRange) {
        let unit = self.settings().readahead / SECTOR_BYTES;
        if unit == 0 || self.is_stopping() || self.is_paused() {
            return;
        }
        if self.fills.around.get() >= AROUND_MAX {
            self.context.env.mark("fill_without_surroundings");
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        let keys = self.all_keys();
        let start = Sector(range.start.0 / unit * unit).max(keys.start);
        let end = Sector(range.end.0.next_multiple_of(unit)).min(keys.end);
        self.fills.around.set(self.fills.around.get() + 1);
        self.context.env.spawn(Priority::Fill, async move {
            // A change of the superblock waits for it, as for a client's request (A3).
            if !me.is_paused()
                && let Ok(_request) = me.begin()
            {
                me.context.env.mark("fills_around_a_miss");
                let before = SectorRange::from_bounds(start, range.start);
                let behind = SectorRange::from_bounds(range.end, end);
                for part in [before, behind] {
                    // The backing device counts its errors, and nobody has asked for this.
                    if !part.is_empty() && me.prefetch_keys(part).await.is_err() {
                        break;
                    }
                }
            }
            me.fills.around.set(me.fills.around.get() - 1);
        });
    }

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
