//! Figures of how full the cache is, for attributes, writeback and whoever waits for a bucket.

use super::buckets::{Buckets, Purpose};

impl Buckets {
    /// Returns true if free buckets are so few that metadata could run out.
    pub fn is_urgent(&self) -> bool {
        self.free_len() < self.reserve(Purpose::Move)
    }

    /// Percent of the buckets that have room that are neither free nor evictable (bcache's
    /// `in_use`).
    #[inline]
    pub fn in_use_percent(&self) -> u64 {
        // A12: what is beyond the end has to go below it, if it does not go at all.
        let spare = self.empty_len() + self.victims.len() as usize;
        let all = (self.end as usize).saturating_sub(self.aside_len());
        percent_without(all, spare.saturating_sub(self.left_beyond()))
    }

    /// Percent of buckets that hold data or metadata.
    pub fn filled_percent(&self) -> u64 {
        percent_without(self.in_set().saturating_sub(self.aside_len()), self.empty_len())
    }

    /// Buckets that are part of the cache, if something is in them or not.
    pub fn in_set(&self) -> usize {
        (self.geometry.buckets - self.evacuated) as usize
    }

    /// Buckets that nothing valid is known to be in.
    pub fn empty_len(&self) -> usize {
        self.free_len()
            + self.restart.len()
            + self.pending.len()
            + self.discarding.len()
            + self.dead.len()
            + self.unknown as usize
    }

    /// Number of buckets that can't be evicted or used.
    pub fn unavailable(&self) -> u64 {
        let total = u64::from(self.end);
        total * self.in_use_percent() / 100
    }

    /// Returns true if giving something up could bring free buckets.
    pub fn can_progress(&self) -> bool {
        !self.pending.is_empty()
            || self.pins.has_released()
            || !self.discarding.is_empty()
            || !self.dead.is_empty()
            || !self.victims.is_empty()
    }
}

/// Percent of the buckets that are not these. Buckets without room are no part of the cache for
/// now.
#[inline]
fn percent_without(all: usize, buckets: usize) -> u64 {
    let total = all.max(1);
    ((total - buckets.min(total)) * 100 / total) as u64
}
