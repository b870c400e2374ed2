//! Blocks that were read into the cache of late: one that is missed again so soon was evicted too
//! early.
//!
//! A table with a byte for every two blocks of the cache (128 KiB of memory per GiB at blocks of
//! 4 KiB). A block has one place in it, with eight bits of its hash, until a later block takes that
//! place: after as many fills as there are places a third of them is still known. One in 255 blocks
//! that were not read is taken for one that was.

use ubcache_env::SectorRange;
use ubcache_format::{Geometry, Inode};

/// Logarithm of the sectors of a block.
const BLOCK_SHIFT: u32 = 3;
/// Place of the volume's number in that of a block.
const VOLUME_SHIFT: u32 = 44;
/// Blocks of the cache for a place.
const BLOCKS_PER_PLACE: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct RecentFills {
    /// Empty: nobody wants to know.
    places: Vec<u8>,
}

impl RecentFills {
    pub fn new(geometry: &Geometry) -> RecentFills {
        let sectors = u64::from(geometry.buckets) * u64::from(geometry.bucket_sectors);
        RecentFills::with_blocks(sectors >> BLOCK_SHIFT)
    }

    /// For a cache of so many blocks.
    pub fn with_blocks(blocks: u64) -> RecentFills {
        RecentFills { places: vec![0; (blocks / BLOCKS_PER_PLACE).max(1) as usize] }
    }

    pub fn is_on(&self) -> bool {
        !self.places.is_empty()
    }

    /// The range of a volume is read into the cache. Says whether half of its blocks were before,
    /// not long ago.
    pub fn note(&mut self, inode: Inode, range: SectorRange) -> bool {
        let volume = u64::from(inode.0) << VOLUME_SHIFT;
        let blocks = range.start.0 >> BLOCK_SHIFT..range.end.0.div_ceil(1 << BLOCK_SHIFT);
        let count = blocks.end - blocks.start;
        let known = blocks.filter(|block| self.note_block(volume + block)).count() as u64;
        self.is_on() && known * 2 >= count
    }

    /// The same for a block, named by any number.
    pub fn note_block(&mut self, block: u64) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let hash = hash(block);
        let place = ((u128::from(hash >> 8) * self.places.len() as u128) >> 56) as usize;
        // 0 is an empty place.
        let mark = (hash as u8).max(1);
        std::mem::replace(&mut self.places[place], mark) == mark
    }
}

/// Mixes all bits of the number (the finalizer of splitmix64).
fn hash(block: u64) -> u64 {
    let mut hash = block.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    #[test]
    fn blocks_are_known_until_as_many_others_were_filled() {
        let mut fills = RecentFills::with_blocks(20_000);
        let known = |fills: &mut RecentFills, blocks: std::ops::Range<u64>| {
            blocks.filter(|&block| fills.note_block(block)).count()
        };
        let strangers = known(&mut fills, 0..1000);
        assert!(strangers < 20, "{strangers} of 1000 were never filled");
        let kept = known(&mut fills, 0..1000);
        assert!(kept > 850, "{kept} of the last 1000");
        known(&mut fills, 100_000..200_000);
        let kept = known(&mut fills, 0..1000);
        assert!(kept < 30, "{kept} of 1000, after ten times as many fills as there are places");
    }

    #[test]
    fn half_of_a_range_makes_it_known_and_volumes_differ() {
        let mut fills = RecentFills::with_blocks(1 << 20);
        let note = |fills: &mut RecentFills, inode: u32, start: u64| {
            fills.note(Inode(inode), SectorRange::new(Sector(start), 64))
        };
        assert!(!note(&mut fills, 1, 0));
        assert!(note(&mut fills, 1, 32) && !note(&mut fills, 1, 32 + 64));
        assert!(!note(&mut fills, 2, 0), "another volume");
        assert!(!RecentFills::default().note(Inode(1), SectorRange::new(Sector(0), 8)));
    }
}
