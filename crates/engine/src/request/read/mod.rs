//! Reads (R1–R5).
//!
//! | module | holds |
//! |---|---|
//! | here | the look-up, which finds the path of a read; a place in the cache is read (R2) |
//! | [`miss`] | the parts of a read, from the cache and the backing device (R1, R2) |
//! | [`fill`] | what was missed goes to the cache (R3) |
//! | [`fill_queue`] | the fills that wait, and what they hold |
//! | [`prefetch`] | filling without reading |
//! | [`retry`] | reads that have to look elsewhere, or again (R4, R5) |

use ubcache_env::{Env, IoError, SectorRange, Slice, StreamId, VolumeError};

use super::bypass_or_cache::Access;
use crate::alloc::bucket_pins::Pin;
use crate::index::extent::Extent;
use crate::volume::CachedVolume;

mod fill;
pub(crate) mod fill_queue;
mod miss;
mod prefetch;
mod retry;

/// Path of a read.
pub(crate) enum ReadPath {
    /// One place of the cache has all of the range.
    Hit(Hit),
    /// The range has several parts, or the index has to be read first. What the cache lacks comes
    /// from the backing device and, unless the read bypasses, goes to the cache.
    Miss { bypass: bool },
    /// The cache is not used: it has failed, or is detached.
    Passthrough,
}

/// Data in the cache, and what keeps it there.
pub(crate) struct Hit {
    extent: Extent,
    published: bool,
    _pin: Pin,
}

impl<E: Env> CachedVolume<E> {
    /// Finds the path of a client's read, in one step (R1). Most are hits.
    pub(crate) fn look_up(&self, stream: StreamId, range: SectorRange) -> ReadPath {
        if !self.lifecycle.uses_cache() {
            return ReadPath::Passthrough;
        }
        let bypass = self.decide_bypass(stream, range, Access::Read);
        match self.index.live_extent_around(self.inode(), range) {
            // Unpublished copies are newer than what the index has.
            Some(extent) if !self.coherence.has_copy_over(range) => {
                self.count_read(bypass, false);
                ReadPath::Hit(self.hit(extent, true))
            }
            _ => ReadPath::Miss { bypass },
        }
    }

    /// Takes note that the extent is used, and keeps its bucket.
    fn hit(&self, extent: Extent, published: bool) -> Hit {
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

    fn count_read(&self, bypass: bool, missed: bool) {
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
