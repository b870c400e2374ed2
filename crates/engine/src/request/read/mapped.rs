//! Reads that a lane carries out (R7): the owner looks up, somebody else reads the data.
//!
//! A hit of an ordinary read has two steps, one before and one after the read of the device; here
//! each of them is a call. Neither waits, starts a task or does I/O: in production they are made
//! from the threads of lanes, while the owner's thread is kept out.

use std::rc::Rc;

use ubcache_env::{Env, Nanos, ReadEnd, SectorRange, StreamId};
use ubcache_format::{Sector, Uuid};

use super::Hit;
use crate::bypass::may_cache::Access;
use crate::index::extent::Extent;
#[cfg(feature = "mutants")]
use crate::rules::Rule;
use crate::stats::requests::BypassReason;
use crate::volume::CachedVolume;

/// A read that is under way in a lane.
pub(crate) struct Mapped<E: Env> {
    volume: Rc<CachedVolume<E>>,
    keys: SectorRange,
    bypass: Option<BypassReason>,
    /// The data, as sectors of the cache device.
    place: SectorRange,
    /// `None`: a mutant does not keep it.
    hit: Option<Hit>,
}

impl<E: Env> CachedVolume<E> {
    /// R1 of a read whose data is in one place in the cache of this set. It counts as a request
    /// until it is ended. `None`: it is no such read, or has to wait; nothing was noted of it.
    pub(crate) fn map_read(
        self: &Rc<Self>,
        set: Uuid,
        stream: StreamId,
        range: SectorRange,
    ) -> Option<Mapped<E>> {
        if self.is_paused() || !self.lifecycle.uses_cache() || self.set_uuid() != set {
            return None;
        }
        let keys = self.key_range(range).ok()?;
        let (extent, published) = self.one_place(keys)?;
        self.begin().ok()?.put_aside();
        self.context.env.mark("read_mapped");
        let (bypass, _) = self.decide_bypass(self.context.env.now(), stream, keys, Access::Read);
        let place = SectorRange::new(extent.pointer.offset, extent.range.sectors());
        let hit = Some(self.hit(extent, published));
        #[cfg(feature = "mutants")]
        let hit = hit.filter(|_| self.context.keeps(Rule::R7MappedStays));
        Some(Mapped { volume: self.clone(), keys, bypass, place, hit })
    }

    /// The place in the cache that has all of the range, and true if it has a key.
    fn one_place(&self, range: SectorRange) -> Option<(Extent, bool)> {
        if !self.coherence.has_copy_over(range) {
            let extent = self.index.live_extent_around(self.inode(), range)?;
            return Some((extent, true));
        }
        // Unpublished copies are newer than what the index has.
        let (of, pointer) = self.coherence.copies_over(range).into_iter().next()?;
        let extent = Extent { inode: self.inode(), range, dirty: false, pointer };
        (of == range).then_some((extent, false))
    }
}

impl<E: Env> Mapped<E> {
    /// First sector of the data on the cache device.
    pub(crate) fn at(&self) -> Sector {
        self.place.start
    }

    /// R2 is over. Returns true if the data was read, and may be used.
    pub(crate) fn end(self, end: ReadEnd) -> bool {
        let Mapped { volume, keys, bypass, place, hit } = self;
        let _request = volume.begun_before();
        drop(hit);
        let Some(took) = volume.context.cache.lane_read(place, end) else {
            volume.context.env.mark("mapped_read_failed");
            return false;
        };
        let started = Nanos(volume.context.env.now().0.saturating_sub(took.0));
        volume.note_cache_latency(started, false);
        match bypass {
            None => volume.hit_ended(keys),
            Some(_) => volume.rare_hit_ended(bypass, keys.bytes(), started),
        }
        true
    }
}
