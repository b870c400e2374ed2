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
        self.percent_without(self.empty_len() + self.victims.len() as usize)
    }

    /// Percent of buckets that hold data or metadata.
    pub fn filled_percent(&self) -> u64 {
        self.percent_without(self.empty_len())
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

    fn percent_without(&self, buckets: usize) -> u64 {
        // Buckets without room are no part of the cache for now.
        let total = (self.geometry.buckets as usize - self.aside_len()).max(1);
        ((total - buckets.min(total)) * 100 / total) as u64
    }

    /// Number of buckets that can't be evicted or used.
    pub fn unavailable(&self) -> u64 {
        let total = u64::from(self.geometry.buckets);
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
