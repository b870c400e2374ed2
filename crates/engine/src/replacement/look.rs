//! Facts about buckets that the choice of a victim depends on.

/// Knowledge of all buckets.
pub(crate) trait Look {
    /// Returns true if it can be given up now.
    fn may_take(&self, bucket: u32) -> bool;
    /// Live sectors in it.
    fn live(&self, bucket: u32) -> u32;
    /// Sectors in it that were used again.
    fn reused(&self, bucket: u32) -> u64;
    /// Sectors of a bucket.
    fn bucket_sectors(&self) -> u32;
}
