//! Free buckets that are kept: for metadata, for the next start, and ahead of demand.

use super::buckets::{Buckets, Purpose};

impl Buckets {
    /// Free buckets that only metadata may take, and those that only the prio chain may take.
    pub(super) fn reserve(&self, purpose: Purpose) -> usize {
        self.reserve_of(self.end, purpose)
    }

    fn reserve_of(&self, buckets: u32, purpose: Purpose) -> usize {
        let (chain, all) = (self.geometry.prio_buckets() as usize, buckets as usize);
        let urgent = (all / 128).clamp(14, 64);
        let metadata = chain + urgent + (all / 128).clamp(6, 64);
        match purpose {
            Purpose::Prio => 0,
            Purpose::Metadata => chain,
            Purpose::Restructure => chain + urgent,
            Purpose::Move => metadata,
            Purpose::Data => metadata + (all / 256).clamp(2, 256),
        }
    }

    /// [`Buckets::watermarks`] of a cache with so many buckets.
    pub(super) fn watermarks_of(&self, buckets: u32) -> (usize, usize) {
        let all = buckets as usize;
        let low = self.reserve_of(buckets, Purpose::Data) + (all / 64).clamp(4, 1024);
        (low, low + (all / 64).clamp(4, 2048))
    }

    /// Buckets kept free for the next start, of ubcache or of the driver (docs/reference/format.md
    /// §9.5).
    pub(super) fn restart_reserve(&self) -> usize {
        self.geometry.prio_buckets() as usize + 2 * (self.geometry.journal_buckets as usize).max(8)
    }

    pub(super) fn restart_missing(&self) -> usize {
        self.restart_reserve().saturating_sub(self.restart.len())
    }

    /// The allocator starts below the first and stops above the second number of free buckets.
    pub fn watermarks(&self) -> (usize, usize) {
        self.watermarks
    }
}
