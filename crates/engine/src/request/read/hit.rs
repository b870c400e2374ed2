//! Hits: reading a place in the cache (R2).

use ubcache_env::{Env, IoError, Slice, VolumeError};

use crate::alloc::pins::Pin;
use crate::index::extent::Extent;
use crate::volume::CachedVolume;

/// Data in the cache, and what keeps it there.
pub(crate) struct Hit {
    extent: Extent,
    published: bool,
    _pin: Pin,
}

impl<E: Env> CachedVolume<E> {
    /// Takes note that the extent is used, and keeps its bucket.
    pub(super) fn hit(&self, extent: Extent, published: bool) -> Hit {
        let mut buckets = self.allocator.buckets_mut();
        buckets.touch(extent.pointer, extent.range.sectors());
        let pin = buckets.pins().pin(buckets.bucket_of(extent.pointer));
        Hit { extent, published, _pin: pin }
    }

    pub(crate) async fn read_hit(&self, hit: Hit) -> Result<Slice, VolumeError> {
        let Hit { extent, published, _pin } = hit;
        let started = self.context.env.now();
        let result =
            self.context.cache.read_for_client(extent.pointer.offset, extent.range.sectors()).await;
        self.note_cache_latency(started, false);
        match result {
            Ok(buf) => Ok(buf.freeze()),
            // Says nothing about the data.
            Err(error @ IoError::NoMemory) => Err(VolumeError::Io(error)),
            Err(error) => {
                self.context.note_cache_error("reading cached data", &error);
                // Not part of the future of a hit.
                Box::pin(self.read_around(extent, published)).await
            }
        }
    }
}
