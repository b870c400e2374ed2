//! Bypass or not, writeback or not.

use ubcache_env::{Env, SectorRange, StreamId};
use ubcache_format::CacheMode;

use crate::bypass::BypassLimits;
use crate::bypass::decide::{BypassInput, BypassReason};
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Kind of a request.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Discard,
}

impl<E: Env> CachedVolume<E> {
    /// Decides if the request goes past the cache; it enters the history of its stream, and is
    /// counted if it does. Once a request.
    pub(crate) fn decide_bypass(
        &self,
        stream: StreamId,
        range: SectorRange,
        access: Access,
    ) -> bool {
        let block = u64::from(self.context.geometry.block_sectors);
        let aligned = block == 1
            || (range.start.0.is_multiple_of(block) && range.sectors().is_multiple_of(block));
        let input = BypassInput {
            detaching: self.lifecycle.is_draining(),
            in_use_percent: self.allocator.buckets().in_use_percent(),
            is_discard: access == Access::Discard,
            is_write: access != Access::Read,
            mode: self.mode(),
            aligned,
        };
        let now = self.context.env.now();
        let limits = {
            let settings = self.context.settings();
            BypassLimits {
                sequential_cutoff: self.settings().sequential_cutoff,
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
        reason.is_some()
    }

    /// B6: the volume is to have no dirty data any more: it is being detached, or has another cache
    /// mode.
    pub(crate) fn leaves_writeback(&self) -> bool {
        let leaves = self.lifecycle.is_draining() || self.mode() != CacheMode::Writeback;
        leaves && self.context.keeps(Rule::B6WritesWait)
    }

    /// Returns true if a write that does not bypass goes to the cache only.
    pub(crate) fn wants_writeback(&self, fua: bool) -> bool {
        if self.mode() != CacheMode::Writeback || self.lifecycle.is_draining() {
            return false;
        }
        let settings = self.context.settings();
        let in_use = self.allocator.buckets().in_use_percent();
        let room = in_use <= settings.cutoff_writeback_sync
            && (fua || in_use <= settings.cutoff_writeback);
        if !room {
            self.context.env.mark("writeback_cutoff");
        }
        room
    }
}
