//! Reads (R1–R7).
//!
//! | module | holds |
//! |---|---|
//! | here | a place in the cache: keeping it (R1), reading it (R2) |
//! | [`miss`] | the parts of a read, from the cache and the backing device (R1, R2) |
//! | [`fill`] | what was missed goes to the cache (R3) |
//! | [`fill_queue`] | the fills that wait, and what they hold |
//! | [`mapped`] | reads that lanes carry out (R7) |
//! | [`prefetch`] | filling without reading |
//! | [`ahead`] | reading ahead of streams (R6) |
//! | [`pieces`] | what was read ahead |
//! | [`streams`] | which streams to read ahead of, and how far |
//! | [`target`] | the memory that a read goes to |
//! | [`retry`] | reads that have to look elsewhere, or again (R4, R5) |

use ubcache_env::{Buf, Env, IoError, IoResult, Nanos, Slice, VolumeError};

use crate::alloc::bucket_pins::Pin;
use crate::index::extent::Extent;
use crate::volume::CachedVolume;

mod ahead;
mod fill;
pub(crate) mod fill_queue;
pub(crate) mod mapped;
mod miss;
pub(crate) mod pieces;
mod prefetch;
mod retry;
mod streams;
pub(crate) mod target;

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

    /// R2 for a place in the cache, from `started` on.
    pub(crate) async fn read_hit(&self, hit: Hit, started: Nanos) -> Result<Slice, VolumeError> {
        match self.try_hit(&hit, started).await {
            Ok(slice) => Ok(slice),
            Err(error) => self.hit_failed(hit, error).await,
        }
    }

    /// Reads a place in the cache.
    pub(super) async fn try_hit(&self, hit: &Hit, started: Nanos) -> IoResult<Slice> {
        let (at, sectors) = (hit.extent.pointer.offset, hit.extent.range.sectors());
        let result = self.context.cache.read_for_client(started, at, sectors).await;
        self.note_cache_latency(started, false);
        result.map(Buf::freeze)
    }

    /// A place in the cache can't be read.
    #[cold]
    pub(super) async fn hit_failed(&self, hit: Hit, error: IoError) -> Result<Slice, VolumeError> {
        match error {
            // Says nothing about the data.
            error @ IoError::NoMemory => Err(VolumeError::Io(error)),
            error => {
                self.context.note_cache_error("reading cached data", &error);
                let Hit { extent, published, _pin } = hit;
                // Not part of the future of a hit.
                Box::pin(self.read_around(extent, published)).await
            }
        }
    }
}
