//! Which cached blocks were used again: a bit for every 4 KiB of the cache device (32 KiB of memory per GiB).

use ubcache_env::Sector;
use ubcache_format::{BucketNr, Geometry};

const BLOCK_SECTORS: u64 = 8;

#[derive(Debug, Default)]
pub(crate) struct Reuse {
    /// Empty: nobody wants to know.
    bits: Vec<u64>,
    bucket_sectors: u64,
}

impl Reuse {
    pub fn new(geometry: &Geometry) -> Reuse {
        let bucket_sectors = u64::from(geometry.bucket_sectors);
        let blocks = (u64::from(geometry.buckets) * bucket_sectors).div_ceil(BLOCK_SECTORS);
        Reuse { bits: vec![0; blocks.div_ceil(64) as usize], bucket_sectors }
    }

    pub fn is_on(&self) -> bool {
        !self.bits.is_empty()
    }

    /// Places in the bits, one for each block that the sectors touch.
    fn places(at: Sector, sectors: u64) -> impl Iterator<Item = (usize, u64)> {
        let blocks = at.0 / BLOCK_SECTORS..(at.0 + sectors).div_ceil(BLOCK_SECTORS);
        blocks.map(|block| ((block / 64) as usize, 1 << (block % 64)))
    }

    /// These sectors of the cache device were used again.
    pub fn note(&mut self, at: Sector, sectors: u64) {
        for (word, bit) in Self::places(at, sectors) {
            if let Some(word) = self.bits.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Whether at least a quarter of these sectors was used again, in whole blocks.
    pub fn has(&self, at: Sector, sectors: u64) -> bool {
        let (mut used, mut all) = (0, 0);
        for (word, bit) in Self::places(at, sectors) {
            all += 1;
            used += usize::from(self.bits.get(word).is_some_and(|word| word & bit != 0));
        }
        used > 0 && used * 4 >= all
    }

    /// Whether anything of the bucket was.
    pub fn has_any(&self, bucket: BucketNr) -> bool {
        let start = Sector(u64::from(bucket.0) * self.bucket_sectors);
        Self::places(start, self.bucket_sectors)
            .any(|(word, bit)| self.bits.get(word).is_some_and(|word| word & bit != 0))
    }

    /// Other data comes into the bucket.
    pub fn forget(&mut self, bucket: BucketNr) {
        let start = Sector(u64::from(bucket.0) * self.bucket_sectors);
        for (word, bit) in Self::places(start, self.bucket_sectors) {
            if let Some(word) = self.bits.get_mut(word) {
                *word &= !bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ubcache_format::{Replacement, Superblock, Uuid};

    use super::*;

    #[test]
    fn a_quarter_used_again_is_worth_keeping() {
        let uuid = Uuid([1; 16]);
        let geometry = Superblock::new_cache(uuid, uuid, 8, 1024, 100, Replacement::Lru, false).geometry();
        let mut reuse = Reuse::new(&geometry);
        reuse.note(Sector(1024 + 64), 8);
        assert!(reuse.has(Sector(1024 + 64), 8) && reuse.has(Sector(1024 + 56), 32));
        assert!(!reuse.has(Sector(1024 + 56), 40) && !reuse.has(Sector(1024 + 72), 8));
        assert!(reuse.has_any(BucketNr(1)) && !reuse.has_any(BucketNr(2)));
        reuse.forget(BucketNr(1));
        assert!(!reuse.has_any(BucketNr(1)));
        let mut off = Reuse::default();
        off.note(Sector(0), 8);
        assert!(!off.has(Sector(0), 8));
    }
}
