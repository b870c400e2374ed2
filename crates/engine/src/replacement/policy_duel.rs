//! The replacement policy that would have had most hits of late: lru, scan-resistant and two-queue
//! each have a [`ShadowCache`] of a sample of the traffic, and the one with most hits leads.
//!
//! The sample has all requests to some regions of 64 KiB, chosen by a hash, so that blocks which
//! are used together are in it together. It is an eighth of the traffic for the smallest caches,
//! and as much less for larger ones as the shadow caches have room for: memory and time are
//! bounded, a region that is not in the sample costs a hash and a comparison. Hits are looked at
//! whenever a quarter of the blocks of a shadow cache were used, and count half eleven looks later.
//! Another policy leads if it has more hits by more than their deviation, so that chance alone does
//! not change the order.
//!
//! Measured on five traces (docs/internals/performance.md); the decision about the policy
//! (docs/decisions/0014-adaptive.md) has the variants.

use std::cell::{Cell, RefCell};

use ubcache_env::SectorRange;
use ubcache_format::{Geometry, Inode};

use super::policy::FIRST_LEADER;
use super::shadow_cache::ShadowCache;
use crate::settings::ReplacementPolicy;
use crate::stats::reuse::Use;

/// Logarithms of the sectors of a block and of a region.
const BLOCK_SHIFT: u32 = 3;
const REGION_SHIFT: u32 = 7;
/// Place of the volume's number in that of a block.
const VOLUME_SHIFT: u32 = 44;
/// Blocks in a shadow cache, as near as its buckets allow.
const SHADOW_BLOCKS: u64 = 8192;
/// Blocks in a bucket of a shadow cache, at most.
const BUCKET_BLOCKS_MAX: u64 = 256;
/// Buckets in a shadow cache, at least.
const BUCKETS_MIN: u64 = 24;
/// The sample is at most one in so many regions, as long as that leaves the shadow caches enough
/// buckets.
const SHARE_MAX: u64 = 8;
/// Hits are looked at after this part of the blocks of a shadow cache was used.
const LOOK_PART: u64 = 4;
/// Hits that are forgotten in each look.
const FORGOTTEN: f64 = 1.0 / 16.0;

const CANDIDATES: [ReplacementPolicy; 3] =
    [ReplacementPolicy::Lru, ReplacementPolicy::ScanResistant, ReplacementPolicy::TwoQueue];

/// See the module.
#[derive(Debug)]
pub(crate) struct PolicyDuel {
    /// Regions with a lower hash are in the sample; 0: none is, and nobody wants to know.
    threshold: Cell<u64>,
    leader: Cell<ReplacementPolicy>,
    duel: RefCell<Option<Duel>>,
}

#[derive(Debug)]
struct Duel {
    shadows: [ShadowCache; 3],
    /// By candidate: read hits in blocks, older ones decayed.
    hits: [f64; 3],
    /// Blocks used since the last look.
    used: u64,
    look_after: u64,
}

impl Default for PolicyDuel {
    fn default() -> PolicyDuel {
        PolicyDuel {
            threshold: Cell::new(0),
            leader: Cell::new(FIRST_LEADER),
            duel: RefCell::new(None),
        }
    }
}

impl PolicyDuel {
    /// Begins, or ends, for a cache of this size.
    pub fn switch(&self, is_on: bool, geometry: &Geometry) {
        let was_on = self.threshold.get() > 0;
        if is_on == was_on {
            return;
        }
        self.leader.set(FIRST_LEADER);
        if !is_on {
            self.threshold.set(0);
            *self.duel.borrow_mut() = None;
            return;
        }
        let sectors = u64::from(geometry.bucket_sectors);
        let bucket_blocks = (sectors >> BLOCK_SHIFT).clamp(1, BUCKET_BLOCKS_MAX);
        let blocks = (u64::from(geometry.buckets) * sectors) >> BLOCK_SHIFT;
        let most = (blocks / bucket_blocks / SHARE_MAX).max(BUCKETS_MIN);
        let buckets = (SHADOW_BLOCKS / bucket_blocks).clamp(BUCKETS_MIN, most);
        let size = buckets * bucket_blocks;
        self.threshold.set(u64::MAX / (blocks / size).max(1));
        let shadow = |policy| ShadowCache::new(buckets as u32, bucket_blocks as u32, policy);
        *self.duel.borrow_mut() = Some(Duel {
            shadows: CANDIDATES.map(shadow),
            hits: [0.0; 3],
            used: 0,
            look_after: (size / LOOK_PART).max(1),
        });
    }

    /// The policy with most hits.
    pub fn leader(&self) -> ReplacementPolicy {
        self.leader.get()
    }

    /// A range of a volume is used.
    #[inline(always)]
    pub fn note(&self, inode: Inode, range: SectorRange, how: Use) {
        let threshold = self.threshold.get();
        if threshold == 0 {
            return;
        }
        let volume = u64::from(inode.0) << VOLUME_SHIFT;
        let first = range.start.0 >> REGION_SHIFT;
        if first != (range.end.0 - 1) >> REGION_SHIFT {
            return self.note_long(volume, range, how);
        }
        if hash(first + volume) < threshold {
            self.follow(volume, range, how);
        }
    }

    /// A range in several regions is used.
    #[inline(never)]
    fn note_long(&self, volume: u64, range: SectorRange, how: Use) {
        let mut start = range.start;
        while start < range.end {
            let region = start.0 >> REGION_SHIFT;
            let end = range.end.0.min((region + 1) << REGION_SHIFT);
            if hash(region + volume) < self.threshold.get() {
                self.follow(volume, SectorRange::new(start, end - start.0), how);
            }
            start.0 = end;
        }
    }

    /// A range in a region of the sample is used.
    #[cold]
    #[inline(never)]
    fn follow(&self, volume: u64, range: SectorRange, how: Use) {
        let mut duel = self.duel.borrow_mut();
        let Some(duel) = &mut *duel else { return };
        for block in range.start.0 >> BLOCK_SHIFT..range.end.0.div_ceil(1 << BLOCK_SHIFT) {
            let block = volume + block;
            for (shadow, hits) in duel.shadows.iter_mut().zip(&mut duel.hits) {
                match how {
                    Use::Read => *hits += f64::from(u8::from(shadow.read(block))),
                    Use::Write => shadow.write(block),
                    Use::Drop => shadow.forget(block),
                }
            }
        }
        if how != Use::Drop {
            duel.used += range.sectors().div_ceil(1 << BLOCK_SHIFT);
        }
        if duel.used >= duel.look_after {
            duel.used = 0;
            self.leader.set(duel.look(self.leader.get()));
        }
    }
}

impl Duel {
    /// Compares the hits; says which policy leads from now on.
    fn look(&mut self, leader: ReplacementPolicy) -> ReplacementPolicy {
        let hits_of = |policy| {
            let place = CANDIDATES.iter().position(|candidate| *candidate == policy);
            self.hits[place.expect("a candidate leads")]
        };
        let led = hits_of(leader);
        let best = CANDIDATES.into_iter().max_by(|&a, &b| hits_of(a).total_cmp(&hits_of(b)));
        let best = best.unwrap_or(leader);
        let most = hits_of(best);
        self.hits.iter_mut().for_each(|hits| *hits -= *hits * FORGOTTEN);
        if most - led > (most + 1.0).sqrt() { best } else { leader }
    }
}

/// Multiplication by the golden ratio.
#[inline(always)]
fn hash(region: u64) -> u64 {
    region.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    const BLOCK_SECTORS: u64 = 8;

    /// A cache of 64 MiB in buckets of 64 KiB: 16384 blocks.
    fn geometry() -> Geometry {
        Geometry {
            set_magic: 0,
            bucket_sectors: 128,
            block_sectors: 8,
            buckets: 1024,
            first_bucket: 1,
            journal_buckets: 8,
        }
    }

    fn read(duel: &PolicyDuel, blocks: std::ops::Range<u64>) {
        for block in blocks {
            let range = SectorRange::new(Sector(block * BLOCK_SECTORS), BLOCK_SECTORS);
            duel.note(Inode(1), range, Use::Read);
        }
    }

    /// Each block is used twice, half a cache apart: with two queues the first use is forgotten
    /// before the second comes.
    fn window_that_moves_on(duel: &PolicyDuel) {
        (0..200).for_each(|turn| read(duel, 1_000_000 + turn * 4000..1_008_000 + turn * 4000));
    }

    /// Some blocks are used often, others now and then, wherever they are on the disk.
    fn skewed_load(duel: &PolicyDuel) {
        let mut random = 1_u64;
        let mut below_one = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 11) as f64 / (1_u64 << 53) as f64
        };
        for _ in 0..400_000 {
            let rank = (below_one() * below_one() * below_one() * 200_000.0) as u64;
            let block = rank * 7_919 % 200_003;
            read(duel, block..block + 1);
        }
    }

    #[test]
    fn leader_follows_changes_of_the_load() {
        let duel = PolicyDuel::default();
        duel.switch(true, &geometry());
        for _ in 0..2 {
            window_that_moves_on(&duel);
            assert_ne!(duel.leader(), ReplacementPolicy::TwoQueue);
            skewed_load(&duel);
            assert_eq!(duel.leader(), ReplacementPolicy::TwoQueue);
        }
    }

    #[test]
    fn nothing_is_followed_unless_asked_for() {
        let duel = PolicyDuel::default();
        read(&duel, 0..1000);
        duel.switch(true, &geometry());
        assert!(duel.duel.borrow().is_some());
        duel.switch(false, &geometry());
        read(&duel, 0..1000);
        assert!(duel.duel.borrow().is_none());
        assert_eq!(duel.leader(), FIRST_LEADER);
    }

    #[test]
    fn sample_is_bounded_for_caches_of_any_size() {
        for (buckets, bucket_sectors) in [(30, 16), (1024, 8), (1 << 21, 1024), (1 << 20, 32_768)] {
            let duel = PolicyDuel::default();
            duel.switch(true, &Geometry { buckets, bucket_sectors, ..geometry() });
            let most = duel.duel.borrow().as_ref().map(|it| it.look_after * LOOK_PART);
            assert!(most.is_some_and(|blocks| blocks <= SHADOW_BLOCKS), "{most:?}");
            // Long requests are cut at the regions.
            duel.note(Inode(3), SectorRange::new(Sector(100), 1 << 20), Use::Write);
            duel.note(Inode(3), SectorRange::new(Sector(100), 1 << 20), Use::Drop);
        }
    }
}
