//! Counts of the live and dirty sectors in each bucket.

use std::ops::Range;

use ubcache_format::Pointer;

use super::buckets::{Buckets, Role};
use crate::errors::EngineError;

impl Buckets {
    /// Sectors of live data in these buckets that the backing devices have as well.
    pub fn clean_sectors(&self, buckets: Range<usize>) -> u64 {
        let counts = self.live[buckets.clone()].iter().zip(&self.dirty[buckets]);
        counts.map(|(&live, &dirty)| u64::from(live - dirty)).sum()
    }

    /// Checks that an extent found on the device is possible. A bucket has either a node or data,
    /// and no more data than it has room for. Here that limit is only the range of the count; the
    /// offline tools find the rest.
    pub fn check_extent(&self, pointer: Pointer, sectors: u64) -> Result<(), EngineError> {
        let bucket = self.bucket_of(pointer);
        let live = self.live(bucket);
        let detail = match self.role(bucket) {
            _ if !self.is_live(pointer) => return Ok(()),
            Role::Metadata => format!("an extent is in bucket {bucket}, which has metadata"),
            _ if live.checked_add(sectors as u32).is_none() => {
                format!("more than {live} sectors of extents are in bucket {bucket}")
            }
            _ => return Ok(()),
        };
        Err(EngineError::Damaged { what: "index", detail })
    }

    /// An extent came to point into the bucket.
    pub fn add_live(&mut self, pointer: Pointer, sectors: u64, dirty: bool) {
        let bucket = self.bucket_of(pointer);
        let index = bucket.0 as usize;
        self.live[index] += sectors as u32;
        self.dirty[index] += if dirty { sectors as u32 } else { 0 };
        if self.role[index] == Role::Unknown {
            self.set_role(bucket, Role::Data);
        }
        self.settle(bucket);
    }

    /// An extent that was live ceased to point into the bucket.
    pub fn remove_live(&mut self, pointer: Pointer, sectors: u64, dirty: bool) {
        let bucket = self.bucket_of(pointer);
        let index = bucket.0 as usize;
        self.live[index] =
            self.live[index].checked_sub(sectors as u32).expect("live sectors are counted exactly");
        if dirty {
            self.dirty[index] = self.dirty[index]
                .checked_sub(sectors as u32)
                .expect("dirty sectors are counted exactly");
        }
        self.settle(bucket);
    }

    /// Returns true if counting has to begin again, which it can: all generations are known now.
    pub fn counts_are_void(&self) -> bool {
        self.recount
    }

    /// Nothing of these is counted.
    pub fn forget_counts(&mut self, buckets: Range<usize>) {
        self.recount = false;
        self.live[buckets.clone()].fill(0);
        self.dirty[buckets].fill(0);
    }

    pub fn is_counted(&self) -> bool {
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Work;
    use ubcache_format::{Generation, Geometry, PrioEntry, Sector};

    use super::*;
    use crate::rules::Rules;
    use crate::tuning::Generations;

    /// Bug: extents of a damaged set that overlap in one bucket made the count of its live sectors
    /// wrap, and a later change end in a panic. Fix: the extent that is too much is refused.
    #[test]
    fn extent_beyond_the_range_of_the_count_is_refused() {
        let geometry = Geometry {
            set_magic: 1,
            bucket_sectors: 1 << 15,
            block_sectors: 1,
            buckets: 1024,
            first_bucket: 1,
            journal_buckets: 8,
        };
        let (tuning, work) = (Generations::default(), Work::default());
        let mut buckets = Buckets::new(geometry, tuning, Rules::default(), work);
        let entry = PrioEntry { priority: 1, generation: Generation(0) };
        buckets.learn(&[entry; 1024]);
        let offset = Sector(100 << 15);
        let pointer = Pointer { device: 0, offset, generation: Generation(0) };
        for _ in 0..131_071 {
            buckets.check_extent(pointer, 1 << 15).expect("there is room to count");
            buckets.add_live(pointer, 1 << 15, true);
        }
        let refused = buckets.check_extent(pointer, 1 << 15).expect_err("it is too much");
        assert!(refused.to_string().contains("sectors of extents are in bucket 100"), "{refused}");
        for _ in 0..131_071 {
            buckets.remove_live(pointer, 1 << 15, true);
        }
    }
}
