//! The hit ratio that a cache of any other size would have, from live traffic.
//!
//! Sampling in space (SHARDS, Waldspurger et al., FAST 2015): a share of all blocks is followed,
//! chosen by a hash, and their reuse distances are scaled up by that share. Their number has a
//! limit: beyond it the blocks with the greatest hashes are forgotten, and the share falls. Memory
//! has a bound, and a request that is not followed costs a hash and a comparison.
//!
//! Blocks of 4 KiB are used by reads and writes that do not bypass the cache; those that do, forget
//! what they write. The hash is a multiplication, which spreads neighbours more evenly than chance:
//! of a disk's places the sample is a better likeness so. What the sample lacks or has too much of
//! the traffic is counted as hits of the smallest cache (SHARDS-adj, ibid.).
//!
//! The sample ages, so that it shows the load of late: a period ends when followed blocks were used
//! four times as often as there are such blocks. Counts are halved then, and blocks that were not
//! used in the last periods are forgotten, as are blocks that are discarded. Periods are counted in
//! uses and not in hours: a quiet night forgets nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ubcache_env::SectorRange;
use ubcache_format::Inode;

use super::distance::Distances;

/// Bytes in a block.
const BLOCK_BYTES: u64 = 4096;
/// Logarithm of the sectors in a block.
const BLOCK_SHIFT: u32 = 3;
/// Place of the volume's number in that of a block.
const VOLUME_SHIFT: u32 = 44;
/// Most blocks that are followed: bounds the memory to less than a MiB.
const FOLLOWED_MAX: u64 = 8192;
/// One of so many blocks is followed at first: to follow one costs some hundred instructions.
const FIRST_SHARE: u64 = 128;
/// With fewer blocks followed there is no estimate.
const FOLLOWED_MIN: u64 = 200;
/// Distances in classes: four to a power of two.
const CLASSES: usize = 4 * 48;

/// Uses of followed blocks in a period, for each of them.
const PERIOD_ROUNDS: u64 = 4;
/// Uses of followed blocks in a period, at least.
const PERIOD_USES_MIN: u64 = 16_384;
/// Blocks that were not used in so many periods are forgotten. Such that are used less often have a
/// sixteenth of all uses at most, and would count as misses.
const PERIODS_KEPT: u32 = 4;

/// Use of a range.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// A read that may be answered by the cache, or fills it.
    Read,
    /// A write that ends in the cache, or leaves a copy there.
    Write,
    /// A write past the cache, which drops what is there.
    Drop,
}

/// The sample of a set.
#[derive(Debug)]
pub(crate) struct Reuse {
    /// Blocks with a lower hash are followed.
    threshold: Cell<u64>,
    /// Sectors that were used, by kind of use.
    sectors: [Cell<u64>; 3],
    sample: RefCell<Sample>,
}

#[derive(Default, Debug)]
struct Sample {
    distances: Distances,
    /// Blocks that are followed, behind their hashes, with the period of their last use.
    followed: BTreeMap<(u64, u64), u32>,
    /// Number of the period, and the uses in it.
    period: u32,
    uses: u64,
    tallies: [Tally; 2],
}

/// Uses of one kind, in sectors, scaled up.
#[derive(Clone, Debug)]
struct Tally {
    /// Followed, and by class of distance those that were used before.
    all: f64,
    by_distance: Vec<f64>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { all: 0.0, by_distance: vec![0.0; CLASSES] }
    }
}

/// Multiplication by the golden ratio.
#[inline(always)]
fn hash(block: u64) -> u64 {
    block.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Default for Reuse {
    fn default() -> Reuse {
        Reuse {
            threshold: Cell::new(u64::MAX / FIRST_SHARE),
            sectors: Default::default(),
            sample: RefCell::default(),
        }
    }
}

impl Reuse {
    /// A range of a volume is used.
    #[inline(always)]
    pub fn note(&self, inode: Inode, range: SectorRange, how: Use) {
        let sectors = &self.sectors[how as usize];
        sectors.set(sectors.get() + range.sectors());
        let volume = u64::from(inode.0) << VOLUME_SHIFT;
        let first = range.start.0 >> BLOCK_SHIFT;
        if first != (range.end.0 - 1) >> BLOCK_SHIFT {
            return self.note_long(volume, range, how);
        }
        if hash(first + volume) < self.threshold.get() {
            self.follow(first + volume, range.sectors(), how);
        }
    }

    /// A range in several blocks is used.
    #[inline(never)]
    fn note_long(&self, volume: u64, range: SectorRange, how: Use) {
        for block in range.start.0 >> BLOCK_SHIFT..=(range.end.0 - 1) >> BLOCK_SHIFT {
            if hash(block + volume) < self.threshold.get() {
                let start = (block << BLOCK_SHIFT).max(range.start.0);
                let end = ((block + 1) << BLOCK_SHIFT).min(range.end.0);
                self.follow(block + volume, end - start, how);
            }
        }
    }

    /// So many sectors of a block that is followed are used.
    #[cold]
    #[inline(never)]
    fn follow(&self, block: u64, sectors: u64, how: Use) {
        let share = self.share();
        let sample = &mut *self.sample.borrow_mut();
        if how == Use::Drop {
            sample.distances.remove(block);
            sample.followed.remove(&(hash(block), block));
            return;
        }
        let distance = sample.distances.access(block);
        sample.followed.insert((hash(block), block), sample.period);
        sample.tallies[how as usize].count(distance, sectors as f64 / share, share);
        if sample.distances.blocks() > FOLLOWED_MAX
            && let Some(((hash, last), _)) = sample.followed.pop_last()
        {
            sample.distances.remove(last);
            self.threshold.set(hash);
        }
        sample.uses += 1;
        if sample.uses >= PERIOD_USES_MIN.max(sample.distances.blocks() * PERIOD_ROUNDS) {
            self.end_period(sample);
        }
    }

    /// Halves what was counted, and forgets blocks that were not used of late.
    fn end_period(&self, sample: &mut Sample) {
        for sectors in &self.sectors {
            sectors.set(sectors.get() / 2);
        }
        sample.tallies.iter_mut().for_each(Tally::halve);
        sample.uses = 0;
        sample.period += 1;
        let oldest = sample.period.saturating_sub(PERIODS_KEPT);
        let Sample { distances, followed, .. } = sample;
        followed.retain(|(_, block), period| {
            let stays = *period >= oldest;
            if !stays {
                distances.remove(*block);
            }
            stays
        });
        // The footprint has become smaller: more of its blocks can be followed.
        if distances.blocks() < FOLLOWED_MAX / 4 {
            let share = u64::MAX / FIRST_SHARE;
            self.threshold.set(self.threshold.get().saturating_mul(2).min(share));
        }
    }

    /// A range of a volume is discarded: its blocks are in no cache. Those that are discarded in
    /// part count as they are.
    pub fn note_discard(&self, inode: Inode, range: SectorRange) {
        let volume = u64::from(inode.0) << VOLUME_SHIFT;
        let first = range.start.0.div_ceil(1 << BLOCK_SHIFT) + volume;
        let end = (range.end.0 >> BLOCK_SHIFT) + volume;
        let Sample { distances, followed, .. } = &mut *self.sample.borrow_mut();
        // A long range has more blocks than are followed.
        if end.saturating_sub(first) > followed.len() as u64 {
            followed.retain(|(_, block), _| {
                let stays = !(first..end).contains(block);
                if !stays {
                    distances.remove(*block);
                }
                stays
            });
            return;
        }
        for block in first..end {
            if followed.remove(&(hash(block), block)).is_some() {
                distances.remove(block);
            }
        }
    }

    /// The share of all blocks that are followed.
    fn share(&self) -> f64 {
        self.threshold.get() as f64 / u64::MAX as f64
    }

    /// Hit ratios of what was noted so far.
    pub fn curve(&self) -> ReuseCurve {
        let sample = self.sample.borrow();
        let side = |kind: Use| {
            let tally = &sample.tallies[kind as usize];
            let all = self.sectors[kind as usize].get() as f64;
            Side { all, sampled: tally.all, by_distance: tally.by_distance.clone() }
        };
        ReuseCurve {
            share: self.share(),
            followed_blocks: sample.distances.blocks(),
            reads: side(Use::Read),
            writes: side(Use::Write),
        }
    }
}

impl Tally {
    fn halve(&mut self) {
        self.all /= 2.0;
        self.by_distance.iter_mut().for_each(|uses| *uses /= 2.0);
    }

    /// A block is used that stands for so many sectors.
    fn count(&mut self, distance: Option<u64>, sectors: f64, share: f64) {
        self.all += sectors;
        if let Some(distance) = distance {
            // The middle of the blocks that are not followed.
            self.by_distance[class((distance as f64 + 0.5) / share)] += sectors;
        }
    }
}

/// Class of a distance: four to a power of two.
fn class(blocks: f64) -> usize {
    ((blocks.max(1.0).log2() * 4.0) as usize).min(CLASSES - 1)
}

/// Uses of one kind, in sectors.
#[derive(Clone, PartialEq, Debug, Default)]
struct Side {
    /// All that there were.
    all: f64,
    /// Their number by the sample.
    sampled: f64,
    by_distance: Vec<f64>,
}

impl Side {
    /// Share of the uses that a cache of so many blocks answers.
    fn hits(&self, blocks: f64) -> Option<f64> {
        if self.sampled == 0.0 {
            return None;
        }
        let size = blocks.max(1.0).log2() * 4.0;
        let whole = (size as usize).min(CLASSES);
        let below: f64 = self.by_distance[..whole].iter().sum();
        let part = self.by_distance.get(whole).map_or(0.0, |it| it * (size - whole as f64));
        let adjusted = below + part + self.all - self.sampled;
        Some((adjusted / self.all.max(1.0)).clamp(0.0, 1.0))
    }
}

/// Hit ratios by size of the cache, of what was read and written of late.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReuseCurve {
    /// Share of all blocks that are followed.
    pub share: f64,
    /// Blocks that are followed.
    pub followed_blocks: u64,
    reads: Side,
    writes: Side,
}

impl ReuseCurve {
    /// Bytes that were used, and are different, as far as the sample knows.
    pub fn footprint_bytes(&self) -> u64 {
        (self.followed_blocks as f64 / self.share.max(f64::MIN_POSITIVE)) as u64 * BLOCK_BYTES
    }

    /// Share of the bytes read that a cache of this size answers; none: few blocks are followed.
    pub fn read_hits(&self, cache_bytes: u64) -> Option<f64> {
        self.hits(&self.reads, cache_bytes)
    }

    /// Share of the bytes written whose blocks such a cache has already.
    pub fn write_hits(&self, cache_bytes: u64) -> Option<f64> {
        self.hits(&self.writes, cache_bytes)
    }

    fn hits(&self, side: &Side, cache_bytes: u64) -> Option<f64> {
        let enough = self.followed_blocks >= FOLLOWED_MIN;
        enough.then(|| side.hits(cache_bytes as f64 / BLOCK_BYTES as f64)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    const BLOCK_SECTORS: u64 = 8;

    fn use_blocks(reuse: &Reuse, blocks: std::ops::Range<u64>, how: Use) {
        for block in blocks {
            reuse.note(
                Inode(1),
                SectorRange::new(Sector(block * BLOCK_SECTORS), BLOCK_SECTORS),
                how,
            );
        }
    }

    #[test]
    fn a_loop_hits_in_a_cache_that_holds_it_and_never_in_a_smaller_one() {
        let reuse = Reuse::default();
        (0..10).for_each(|_| use_blocks(&reuse, 0..100_000, Use::Read));
        let curve = reuse.curve();
        let ratio = |blocks: u64| curve.read_hits(blocks * BLOCK_BYTES).expect("a ratio");
        assert!(ratio(60_000) < 0.01, "{}", ratio(60_000));
        assert!((ratio(130_000) - 0.9).abs() < 0.01, "{}", ratio(130_000));
        assert_eq!(curve.write_hits(1 << 40), None, "nothing was written");
        let footprint = curve.footprint_bytes() / BLOCK_BYTES;
        assert!((95_000..105_000).contains(&footprint), "{footprint}");
    }

    #[test]
    fn the_sample_has_a_limit_and_its_share_falls() {
        let reuse = Reuse::default();
        (0..3).for_each(|_| use_blocks(&reuse, 0..3_000_000, Use::Write));
        let curve = reuse.curve();
        assert_eq!(curve.followed_blocks, FOLLOWED_MAX);
        assert!(curve.share < 1.0 / 300.0, "{}", curve.share);
        let ratio = curve.write_hits(4_000_000 * BLOCK_BYTES).expect("a ratio");
        assert!((ratio - 2.0 / 3.0).abs() < 0.02, "{ratio}");
    }

    /// Without ageing the curve was that of everything since the start: a load that has ended long
    /// ago stayed in it.
    #[test]
    fn the_curve_follows_a_change_of_the_load() {
        let reuse = Reuse::default();
        (0..20).for_each(|_| use_blocks(&reuse, 0..100_000, Use::Read));
        let hits = |blocks: u64| reuse.curve().read_hits(blocks * BLOCK_BYTES).expect("a ratio");
        assert!(hits(60_000) < 0.05, "{}", hits(60_000));
        (0..400).for_each(|_| use_blocks(&reuse, 1_000_000..1_040_000, Use::Read));
        assert!(hits(60_000) > 0.95, "{}", hits(60_000));
        (0..400).for_each(|_| use_blocks(&reuse, 1_000_000..1_040_000, Use::Read));
        let footprint = reuse.curve().footprint_bytes() / BLOCK_BYTES;
        assert!((38_000..42_000).contains(&footprint), "the old blocks are forgotten: {footprint}");
        // And back: the larger load needs a larger cache again.
        (0..120).for_each(|_| use_blocks(&reuse, 0..100_000, Use::Read));
        assert!(hits(60_000) < 0.1, "{}", hits(60_000));
        assert!(hits(130_000) > 0.9, "{}", hits(130_000));
    }

    #[test]
    fn the_share_rises_again_when_the_load_has_become_small() {
        let reuse = Reuse::default();
        use_blocks(&reuse, 0..3_000_000, Use::Write);
        assert!(reuse.share() < 1.0 / 300.0, "{}", reuse.share());
        (0..1_200).for_each(|_| use_blocks(&reuse, 0..100_000, Use::Write));
        let curve = reuse.curve();
        assert!((curve.share * FIRST_SHARE as f64 - 1.0).abs() < 0.01, "{}", curve.share);
        let ratio = curve.write_hits(130_000 * BLOCK_BYTES).expect("a ratio");
        assert!(ratio > 0.95, "{ratio}");
    }

    #[test]
    fn discarded_blocks_are_forgotten_whole_and_at_any_length() {
        let reuse = Reuse::default();
        use_blocks(&reuse, 0..100_000, Use::Write);
        let followed = reuse.curve().followed_blocks;
        let discard = |start: u64, sectors: u64| {
            reuse.note_discard(Inode(1), SectorRange::new(Sector(start), sectors));
        };
        // Parts of blocks: nothing is forgotten.
        (0..1000).for_each(|block| discard(block * BLOCK_SECTORS + 1, BLOCK_SECTORS));
        assert_eq!(reuse.curve().followed_blocks, followed);
        (0..50_000).for_each(|block| discard(block * BLOCK_SECTORS, BLOCK_SECTORS));
        let left = reuse.curve().followed_blocks;
        assert!((followed * 2 / 5..followed * 3 / 5).contains(&left), "{left} of {followed}");
        reuse.note_discard(Inode(2), SectorRange::new(Sector(0), 1 << 40));
        assert_eq!(reuse.curve().followed_blocks, left, "another volume");
        discard(0, 1 << 40);
        assert_eq!(reuse.curve().followed_blocks, 0);
    }

    #[test]
    fn long_requests_count_as_their_blocks_do_and_writes_past_the_cache_drop_them() {
        let reuse = Reuse::default();
        let long = SectorRange::new(Sector(4), 100_000 * BLOCK_SECTORS);
        reuse.note(Inode(1), long, Use::Read);
        reuse.note(Inode(1), long, Use::Read);
        let ratio = reuse.curve().read_hits(1 << 40).expect("a ratio");
        assert!((ratio - 0.5).abs() < 0.01, "{ratio}");
        reuse.note(Inode(1), long, Use::Drop);
        assert_eq!(reuse.curve().followed_blocks, 0);
        // Another volume has other blocks.
        reuse.note(Inode(2), long, Use::Read);
        let ratio = reuse.curve().read_hits(1 << 40).expect("a ratio");
        assert!((ratio - 1.0 / 3.0).abs() < 0.01, "{ratio}");
    }
}
