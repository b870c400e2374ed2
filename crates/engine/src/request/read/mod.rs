//! Reads (R1–R5).
//!
//! | module | holds |
//! |---|---|
//! | here | a place in the cache: keeping it (R1), reading it (R2) |
//! | [`miss`] | the parts of a read, from the cache and the backing device (R1, R2) |
//! | [`fill`] | what was missed goes to the cache (R3) |
//! | [`fill_queue`] | the fills that wait, and what they hold |
//! | [`prefetch`] | filling without reading |
//! | [`retry`] | reads that have to look elsewhere, or again (R4, R5) |

use ubcache_env::{Env, IoError, Slice, VolumeError};

use crate::alloc::bucket_pins::Pin;
use crate::index::extent::Extent;
use crate::volume::CachedVolume;

mod fill;
pub(crate) mod fill_queue;
mod miss;
mod prefetch;
mod retry;

/// Data in the cache, and what keeps it there.
pub(crate) struct Hit {
    extent: Extent,
    published: bool,
    _pin: Pin,
}

impl<E: Env> CachedVolume<E> {
    /// R1 for a place in the cache: takes note that it is used, and keeps its bucket.
    pub(super) fn hit(&self, extent: Extent, published: bool) -> Hit {
        let mut buckets = self.allocator.buckets_mut();
        buckets.touch(extent.pointer, extent.range.sectors());
        let pin = buckets.pins().pin(buckets.bucket_of(extent.pointer));
        Hit { extent, published, _pin: pin }
    }

    /// R2 for a place in the cache.
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

    pub(super) fn count_read(&self, bypass: bool, missed: bool) {
        self.count(|counters| {
            *match (bypass, missed) {
                (false, false) => &mut counters.cache_hits,
                (false, true) => &mut counters.cache_misses,
                (true, false) => &mut counters.cache_bypass_hits,
                (true, true) => &mut counters.cache_bypass_misses,
            } += 1;
        });
    }
}
