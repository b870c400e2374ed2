//! Cached blocks that were used again: a bit for every 4 KiB of the cache device (32 KiB of memory
//! per GiB).

use std::ops::Range;

use ubcache_env::Sector;
use ubcache_format::{BucketNr, Geometry};

const BLOCK_SECTORS: u64 = 8;
/// A gap between two reused blocks is kept with them if it is no longer than this: keys cost more.
const GAP_SECTORS: u64 = 2 * BLOCK_SECTORS;

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

    /// The parts of these sectors that were used again, as sectors from the first: runs of blocks,
    /// joined over small gaps.
    pub fn parts(&self, at: Sector, sectors: u64) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        let first = at.0 / BLOCK_SECTORS;
        for (index, (word, bit)) in (first..).zip(Self::places(at, sectors)) {
            if self.bits.get(word).is_none_or(|word| word & bit == 0) {
                continue;
            }
            let start = (index * BLOCK_SECTORS).saturating_sub(at.0);
            let end = ((index + 1) * BLOCK_SECTORS - at.0).min(sectors);
            match parts.last_mut() {
                Some(last) if start - last.end <= GAP_SECTORS => last.end = end,
                _ => parts.push(start..end),
            }
        }
        parts
    }

    /// The words that have bits of these sectors, with those bits.
    fn words(at: Sector, sectors: u64) -> impl Iterator<Item = (usize, u64)> {
        let (first, end) = (at.0 / BLOCK_SECTORS, (at.0 + sectors).div_ceil(BLOCK_SECTORS));
        (first / 64..end.div_ceil(64)).map(move |word| {
            let from = first.max(word * 64) - word * 64;
            let bits = end.min((word + 1) * 64) - word * 64 - from;
            (word as usize, u64::MAX.checked_shr(64 - bits as u32).unwrap_or(0) << from)
        })
    }

    /// Sectors of the bucket that were used again, in whole blocks.
    pub fn sectors(&self, bucket: BucketNr) -> u64 {
        let start = Sector(u64::from(bucket.0) * self.bucket_sectors);
        let used = Self::words(start, self.bucket_sectors)
            .map(|(word, bits)| self.bits.get(word).map_or(0, |word| (word & bits).count_ones()));
        u64::from(used.sum::<u32>()) * BLOCK_SECTORS
    }

    /// Steps that [`Reuse::sectors`] takes.
    pub fn steps(&self) -> usize {
        4 + (self.bucket_sectors / BLOCK_SECTORS / 64) as usize
    }

    /// Forgets the use of these sectors: other data goes there.
    pub fn forget(&mut self, at: Sector, sectors: u64) {
        for (word, bits) in Self::words(at, sectors) {
            if let Some(word) = self.bits.get_mut(word) {
                *word &= !bits;
            }
        }
    }

    /// Other data comes into the bucket.
    pub fn forget_bucket(&mut self, bucket: BucketNr) {
        self.forget(Sector(u64::from(bucket.0) * self.bucket_sectors), self.bucket_sectors);
    }
}

#[cfg(test)]
mod tests {
    use ubcache_format::{Replacement, Superblock, Uuid};

    use super::*;

    fn parts(reuse: &Reuse, at: Sector, sectors: u64) -> Vec<(u64, u64)> {
        reuse.parts(at, sectors).into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn reused_blocks_are_returned_in_ranges() {
        let uuid = Uuid([1; 16]);
        let geometry =
            Superblock::new_cache(uuid, uuid, 8, 1024, 100, Replacement::Lru, false).geometry();
        let mut reuse = Reuse::new(&geometry);
        let start = Sector(1024);
        assert_eq!(parts(&reuse, start, 1024), []);
        reuse.note(Sector(1024 + 64), 8);
        reuse.note(Sector(1024 + 88), 9);
        reuse.note(Sector(1024 + 200), 8);
        assert_eq!(parts(&reuse, start, 1024), [(64, 104), (200, 208)]);
        // The range need not begin or end with a block.
        assert_eq!(parts(&reuse, Sector(1024 + 67), 3), [(0, 3)]);
        assert_eq!(parts(&reuse, Sector(1024 + 61), 4), [(3, 4)]);
        assert_eq!((reuse.sectors(BucketNr(1)), reuse.sectors(BucketNr(2))), (32, 0));
        reuse.forget(Sector(1024 + 200), 8);
        assert_eq!(parts(&reuse, start, 1024), [(64, 104)]);
        reuse.forget_bucket(BucketNr(1));
        assert!(reuse.sectors(BucketNr(1)) == 0 && parts(&reuse, start, 1024).is_empty());
        let mut off = Reuse::default();
        off.note(Sector(0), 8);
        assert_eq!(parts(&off, Sector(0), 8), []);
    }
}
