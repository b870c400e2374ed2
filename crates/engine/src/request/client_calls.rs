//! Calls of frontends, and the path of each: past the cache or not, writeback or not.

use std::rc::Rc;

use ubcache_env::{
    BlockStatus, Env, ForeignMemory, IoVec, Nanos, Place, Sector, SectorRange, StreamEnd, StreamId,
    Volume, VolumeError, VolumeInfo,
};
use ubcache_format::CacheMode;

use super::read::target::{OwnMemory, Target};
use super::write::Payload;
use crate::bypass::BypassLimits;
use crate::bypass::may_cache::{Access, BypassInput};
use crate::rules::Rule;
use crate::stats::histogram::Taken;
use crate::stats::requests::{BypassReason, Path};
use crate::stats::reuse::Use;
use crate::volume::CachedVolume;

/// Zeroing and discarding work on at most this much at once.
const LONG_STEP: u64 = 16 << 11;
/// And prefetching on this much, which is what it has in memory.
const PREFETCH_STEP: u64 = 1 << 11;

impl<E: Env> Volume for CachedVolume<E> {
    fn info(&self) -> VolumeInfo {
        self.volume_info()
    }

    fn read(
        &self,
        stream: StreamId,
        range: SectorRange,
    ) -> impl Future<Output = Result<IoVec, VolumeError>> {
        self.read_to(stream, range, OwnMemory)
    }

    fn read_into(
        &self,
        stream: StreamId,
        range: SectorRange,
        place: Place,
    ) -> impl Future<Output = Result<IoVec, VolumeError>> {
        self.read_to(stream, range, place)
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        assert_eq!(data.sectors(), range.sectors(), "the data fills the range");
        if self.is_paused() {
            self.opens().await;
        }
        let keys = self.key_range(range)?;
        let _request = self.begin_write()?;
        let started = self.context.env.now();
        self.coherence.stream_writes(stream);
        let _turn = match self.coherence.turns.are_taken() {
            true => Box::pin(self.turn(keys)).await,
            false => None,
        };
        self.write_keys((stream, started), keys, Payload::Data(data), fua).await
    }

    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.opens().await;
        let _request = self.begin_write()?;
        self.coherence.stream_writes(stream);
        Box::pin(self.write_part(stream, offset, data, fua)).await
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.write_copied(stream, range, data, fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.opens().await;
        let keys = self.key_range(range)?;
        let _request = self.begin_write()?;
        let started = self.context.env.now();
        self.coherence.stream_writes(stream);
        let mut result = Ok(());
        for step in steps(keys, LONG_STEP) {
            let _turn = Box::pin(self.turn(step)).await;
            result = self.discard_keys(stream, step).await;
            if result.is_err() {
                break;
            }
            self.context.note_discard(self.inode(), step);
        }
        if fua && result.is_ok() {
            result = self.flush_devices().await;
        }
        self.long_request_ended(Path::Discard, BypassReason::Discard, keys, started);
        result
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        self.opens().await;
        let keys = self.key_range(range)?;
        let _request = self.begin_write()?;
        let started = self.context.env.now();
        self.coherence.stream_writes(stream);
        let mut result = Ok(());
        for step in steps(keys, LONG_STEP) {
            let _turn = Box::pin(self.turn(step)).await;
            let zeroes = Payload::Zeroes { unmap: may_unmap };
            result = self.write_rare((stream, started), step, zeroes, fua).await;
            if result.is_err() {
                break;
            }
        }
        self.long_request_ended(Path::BypassWrite, BypassReason::Zeroes, keys, started);
        result
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        self.opens().await;
        let _request = self.begin()?;
        let started = self.context.env.now();
        let result = self.flush_all(stream).await;
        self.request_ended(Path::Flush, None, 0, started);
        result
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        if self.coherence.stream_leaves(stream, end, self.lifecycle.uses_cache()) {
            self.context.env.mark("error_lost_with_a_connection");
        }
    }

    async fn prefetch(&self, _stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        self.opens().await;
        let keys = self.key_range(range)?;
        let _request = self.begin()?;
        for step in steps(keys, PREFETCH_STEP) {
            self.prefetch_keys(step).await?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        self.opens().await;
        let keys = self.key_range(range)?;
        let _request = self.begin()?;
        let parts = Box::pin(self.status_of(keys)).await;
        Ok(parts.into_iter().map(|(part, status)| (self.volume_range(part), status)).collect())
    }
}

impl<E: Env> CachedVolume<E> {
    /// Reads the range: what is not at the target, which is all of it or nothing.
    async fn read_to(
        &self,
        stream: StreamId,
        range: SectorRange,
        target: impl Target,
    ) -> Result<IoVec, VolumeError> {
        if self.is_paused() {
            self.opens().await;
        }
        let keys = self.key_range(range)?;
        let _request = self.begin()?;
        let started = self.context.env.now();
        if !self.lifecycle.uses_cache() {
            return Box::pin(self.read_past(keys, started)).await;
        }
        let (bypass, _) = self.decide_bypass(started, stream, keys, Access::Read);
        match self.index.live_extent_around(self.inode(), keys) {
            // Unpublished copies are newer than what the index has.
            Some(extent) if !self.coherence.has_copy_over(keys) => {
                let hit = self.hit(extent, true);
                if let Some(place) = target.place()
                    && self.hit_is_read_into(&hit, started, place).await
                {
                    match bypass {
                        None => self.hit_ended(keys),
                        Some(_) => self.rare_hit_ended(bypass, keys.bytes(), started),
                    }
                    return Ok(IoVec::new());
                }
                let result = match self.try_hit(&hit, started).await {
                    Ok(slice) if bypass.is_none() => {
                        self.hit_ended(keys);
                        return Ok(IoVec::from(slice));
                    }
                    Ok(slice) => Ok(slice),
                    Err(error) => Box::pin(self.hit_failed(hit, error)).await,
                };
                self.rare_hit_ended(bypass, keys.bytes(), started);
                result.map(IoVec::from)
            }
            // Several parts, or the index has to be read first. What the cache lacks comes from
            // the backing device and, unless the read bypasses, goes to the cache.
            _ => Box::pin(self.read_parts(keys, bypass, started, target.place())).await,
        }
    }

    /// A read of one place in the cache has ended in this step.
    #[inline(always)]
    pub(super) fn hit_ended(&self, keys: SectorRange) {
        // The request has taken the time that the device has.
        let (_, taken) = self.context.cache.latest();
        self.counts.ended(Path::Hit, keys.bytes(), taken);
        self.context.note_use(self.inode(), keys, Use::Read);
    }

    /// Decides if the request goes past the cache; it enters the history of its stream, and its
    /// bytes are counted if it does. Once a request. Returns the share of buckets in use too.
    pub(crate) fn decide_bypass(
        &self,
        now: Nanos,
        stream: StreamId,
        range: SectorRange,
        access: Access,
    ) -> (Option<BypassReason>, u64) {
        let block = u64::from(self.context.geometry.block_sectors);
        let aligned = block == 1
            || (range.start.0.is_multiple_of(block) && range.sectors().is_multiple_of(block));
        let in_use_percent = self.allocator.buckets().in_use_percent();
        let (mode, sequential_cutoff) = {
            let settings = self.settings();
            (settings.cache_mode, settings.sequential_cutoff)
        };
        let input = BypassInput {
            detaching: self.lifecycle.is_draining(),
            in_use_percent,
            is_discard: access == Access::Discard,
            is_write: access != Access::Read,
            mode,
            aligned,
        };
        let limits = {
            let settings = self.context.settings();
            BypassLimits {
                sequential_cutoff,
                congested_read_us: settings.congested_read_threshold_us,
                congested_write_us: settings.congested_write_threshold_us,
            }
        };
        let random = self.context.env.random() as u32;
        let reason = self.bypass.decide(&input, (now, stream, range), limits, random);
        match reason {
            Some(BypassReason::Sequential) => self.context.env.mark("bypass_sequential"),
            Some(BypassReason::Congested) => self.context.env.mark("bypass_congested"),
            Some(BypassReason::CacheFull) => self.context.env.mark("bypass_cache_full"),
            _ => {}
        }
        // The bytes of a discard are no data that went past the cache.
        if reason.is_some() && access != Access::Discard {
            self.count(|counters| counters.bypassed_bytes += range.bytes());
        }
        (reason, in_use_percent)
    }

    /// A request that began at `started` has ended.
    #[cold]
    pub(super) fn request_ended(
        &self,
        path: Path,
        bypass: Option<BypassReason>,
        bytes: u64,
        started: Nanos,
    ) {
        let taken = Taken::new(self.context.env.now().since(started));
        self.counts.ended(path, bytes, taken);
        if let Some(reason) = bypass {
            self.counts.bypassed(reason, path, bytes);
        }
    }

    /// A read of one place in the cache has ended, which bypassed, or has met an error.
    #[cold]
    pub(super) fn rare_hit_ended(&self, bypass: Option<BypassReason>, bytes: u64, started: Nanos) {
        let path = match bypass {
            None => Path::Hit,
            Some(_) => {
                self.count(|counters| counters.cache_bypass_hits += 1);
                Path::BypassRead
            }
        };
        self.request_ended(path, bypass, bytes, started);
    }

    /// A request of many steps has ended, which does not go to the cache.
    fn long_request_ended(
        &self,
        path: Path,
        reason: BypassReason,
        keys: SectorRange,
        started: Nanos,
    ) {
        let reason = if self.lifecycle.uses_cache() { reason } else { BypassReason::NoCache };
        self.request_ended(path, Some(reason), keys.bytes(), started);
    }

    /// B6: the volume is to have no dirty data any more: it is being detached, or has another cache
    /// mode.
    pub(crate) fn leaves_writeback(&self) -> bool {
        let leaves = self.lifecycle.is_draining() || self.mode() != CacheMode::Writeback;
        leaves && self.context.keeps(Rule::B6WritesWait)
    }

    /// Returns true if a write that does not bypass goes to the cache only. So many percent of its
    /// buckets are in use.
    pub(crate) fn wants_writeback(&self, fua: bool, in_use: u64) -> bool {
        if self.mode() != CacheMode::Writeback || self.lifecycle.is_draining() {
            return false;
        }
        let settings = self.context.settings();
        let room = in_use <= settings.cutoff_writeback_sync
            && (fua || in_use <= settings.cutoff_writeback);
        if !room {
            self.context.env.mark("writeback_cutoff");
        }
        room
    }
}

fn steps(range: SectorRange, most: u64) -> impl Iterator<Item = SectorRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = Sector(range.end.0.min(at.0 + most));
        let step = SectorRange::from_bounds(at, end);
        at = end;
        (!step.is_empty()).then_some(step)
    })
}
