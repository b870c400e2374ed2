//! The memory that a read goes to: its own, or a place that only the cache device can reach.
//!
//! A read to a place does everything that another read does: it is decided on, looked up, pinned
//! and counted alike (R1). Only the step at the cache device differs (R2), and only if the cache
//! has all of the range. A device that can't read to the place says nothing about the data by that,
//! so the same hits are read again, to memory of the engine, and what fails then has failed (R4).

use ubcache_env::local::join_all;
use ubcache_env::{Env, Nanos, Place, SectorRange};

use super::Hit;
use super::miss::Part;
use crate::volume::CachedVolume;

/// The memory that a read goes to.
pub(crate) trait Target: Copy {
    /// The place; none: memory of its own.
    fn place(self) -> Option<Place>;
}

/// Memory of its own, which is the result of the read.
#[derive(Copy, Clone)]
pub(crate) struct OwnMemory;

impl Target for OwnMemory {
    #[inline(always)]
    fn place(self) -> Option<Place> {
        None
    }
}

impl Target for Place {
    #[inline(always)]
    fn place(self) -> Option<Place> {
        Some(self)
    }
}

impl<E: Env> CachedVolume<E> {
    /// R2 for a place in the cache, from `started` on: returns true if its data is at the target.
    pub(crate) async fn hit_is_read_into(&self, hit: &Hit, started: Nanos, place: Place) -> bool {
        let (at, sectors) = (hit.extent.pointer.offset, hit.extent.range.sectors());
        let read = self.context.cache.read_into(started, SectorRange::new(at, sectors), place);
        if read.await.is_err() {
            self.context.env.mark("place_not_read_to");
            return false;
        }
        self.note_cache_latency(started, false);
        self.context.env.mark("read_to_a_place");
        true
    }

    /// R2 for parts that follow one another: returns true if the data of all of them is at the
    /// target. None of it is if one of them is not in the cache.
    pub(super) async fn parts_are_read_into(&self, parts: &[Part], place: Place) -> bool {
        let mut hits = Vec::with_capacity(parts.len());
        let mut place = place;
        for part in parts {
            let Part::Hit(hit) = part else { return false };
            hits.push((hit, place));
            place = place.behind(hit.extent.range.bytes());
        }
        let started = self.context.env.now();
        let reads = hits.into_iter().map(|(hit, place)| self.hit_is_read_into(hit, started, place));
        join_all(reads).await.into_iter().all(|read| read)
    }
}
