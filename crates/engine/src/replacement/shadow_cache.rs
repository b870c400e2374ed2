//! A small cache without data, for a sample of the blocks: it shows how many hits a replacement
//! policy would have.
//!
//! Its buckets are filled in the order in which the blocks come, by class of data as those of the
//! cache are, and the policy is the very code that chooses for the cache. In each pass, after a
//! sixteenth of the buckets was filled, it counts, chooses ahead and moves what was used again.

use std::collections::BTreeMap;

use ubcache_format::BucketNr;

use super::data_class::{CLASSES, Class};
use super::look::Look;
use super::policy::Policy;
use super::recent_fills::RecentFills;
use crate::settings::ReplacementPolicy;

/// Sectors of a block.
const BLOCK_SECTORS: u32 = 8;
/// A pass begins when this part of the buckets was filled since the last one.
const PASS_PART: u32 = 16;
/// The next victims are this part of all buckets.
const UPCOMING_PART: usize = 8;

#[derive(Debug)]
pub(super) struct ShadowCache {
    policy: Policy,
    contents: Contents,
    fills: RecentFills,
    /// Place of each block: a bucket, and a number in that.
    places: BTreeMap<u64, (u32, u32)>,
    free: Vec<u32>,
    /// By class: the bucket that is being filled.
    open: [Option<u32>; CLASSES],
    /// Buckets filled since the last pass.
    filled: u32,
    random: u64,
}

/// State of the buckets.
#[derive(Debug)]
struct Contents {
    /// Blocks that were put into each.
    blocks: Vec<Vec<u64>>,
    /// Blocks in each that are still there.
    live: Vec<u32>,
    /// By place, bucket after bucket: used again.
    reused: Vec<bool>,
    bucket_blocks: u32,
}

impl Contents {
    fn is_reused(&self, bucket: u32, place: u32) -> bool {
        self.reused[(bucket * self.bucket_blocks + place) as usize]
    }

    fn note_reuse(&mut self, bucket: u32, place: u32) {
        self.reused[(bucket * self.bucket_blocks + place) as usize] = true;
    }

    fn marks(&mut self, bucket: u32) -> &mut [bool] {
        let start = (bucket * self.bucket_blocks) as usize;
        &mut self.reused[start..start + self.bucket_blocks as usize]
    }
}

impl Look for Contents {
    fn may_take(&self, _bucket: u32) -> bool {
        true
    }

    fn live(&self, bucket: u32) -> u32 {
        self.live[bucket as usize] * BLOCK_SECTORS
    }

    fn reused(&self, bucket: u32) -> u64 {
        let start = (bucket * self.bucket_blocks) as usize;
        let marks = &self.reused[start..start + self.bucket_blocks as usize];
        marks.iter().filter(|&&mark| mark).count() as u64 * u64::from(BLOCK_SECTORS)
    }

    fn bucket_sectors(&self) -> u32 {
        self.bucket_blocks * BLOCK_SECTORS
    }
}

impl ShadowCache {
    /// An empty cache of so many buckets, more than there are classes of data.
    pub fn new(buckets: u32, bucket_blocks: u32, policy: ReplacementPolicy) -> ShadowCache {
        assert!(buckets as usize > CLASSES && bucket_blocks > 0, "room for a bucket of each class");
        let mut members = Policy::new(buckets, ReplacementPolicy::Fifo);
        members.grow(buckets);
        members.set_policy(policy);
        members.learn(buckets as usize, |_| 0);
        let blocks = buckets * bucket_blocks;
        ShadowCache {
            policy: members,
            contents: Contents {
                blocks: vec![Vec::new(); buckets as usize],
                live: vec![0; buckets as usize],
                reused: vec![false; blocks as usize],
                bucket_blocks,
            },
            fills: RecentFills::with_blocks(blocks.into()),
            places: BTreeMap::new(),
            free: (0..buckets).rev().collect(),
            open: [None; CLASSES],
            filled: 0,
            random: 1,
        }
    }

    /// A block is read: says whether that is a hit. It is in the cache then.
    pub fn read(&mut self, block: u64) -> bool {
        if self.touch(block) {
            return true;
        }
        let again = self.fills.note_block(block);
        self.put(block, if again { Class::FilledAgain } else { Class::Filled });
        false
    }

    /// A block is written, and stays in the cache. To be overwritten is no use.
    pub fn write(&mut self, block: u64) {
        self.put(block, Class::Clean);
    }

    /// A block leaves the cache.
    pub fn forget(&mut self, block: u64) {
        if let Some((bucket, _)) = self.places.remove(&block) {
            self.lose_one(bucket);
        }
    }

    fn touch(&mut self, block: u64) -> bool {
        let Some(&(bucket, place)) = self.places.get(&block) else { return false };
        self.policy.touch(BucketNr(bucket), BLOCK_SECTORS.into());
        self.contents.note_reuse(bucket, place);
        true
    }

    fn put(&mut self, block: u64, class: Class) {
        self.append(block, class);
        if self.filled >= (self.contents.live.len() as u32 / PASS_PART).max(1) {
            self.filled = 0;
            self.pass();
        }
    }

    fn append(&mut self, block: u64, class: Class) {
        let bucket = match self.open[class as usize] {
            Some(bucket) => bucket,
            None => {
                let bucket = self.take();
                self.policy.fill(BucketNr(bucket), class as usize);
                self.open[class as usize] = Some(bucket);
                self.filled += 1;
                bucket
            }
        };
        let blocks = &mut self.contents.blocks[bucket as usize];
        let place = blocks.len() as u32;
        blocks.push(block);
        self.contents.live[bucket as usize] += 1;
        if place + 1 == self.contents.bucket_blocks {
            self.open[class as usize] = None;
            self.policy.insert(BucketNr(bucket));
        }
        if let Some((former, _)) = self.places.insert(block, (bucket, place)) {
            self.lose_one(former);
        }
    }

    /// One of the blocks of a bucket is there no more.
    fn lose_one(&mut self, bucket: u32) {
        self.contents.live[bucket as usize] -= 1;
        if self.contents.live[bucket as usize] == 0 && !self.open.contains(&Some(bucket)) {
            self.policy.remove(BucketNr(bucket));
            self.empty(bucket);
        }
    }

    /// Takes a free bucket, evicting one if there is none.
    fn take(&mut self) -> u32 {
        loop {
            if let Some(bucket) = self.free.pop() {
                return bucket;
            }
            let random = &mut self.random;
            let victim = self.policy.pick(|| draw(random), &self.contents);
            self.spend_stayed();
            // There are more buckets than open ones.
            let victim = victim.expect("a closed bucket is a member");
            self.empty(victim.0);
        }
    }

    fn spend_stayed(&mut self) {
        for bucket in self.policy.take_stayed() {
            self.contents.marks(bucket.0).fill(false);
        }
    }

    fn empty(&mut self, bucket: u32) {
        let blocks = std::mem::take(&mut self.contents.blocks[bucket as usize]);
        for (place, block) in (0..).zip(blocks) {
            if self.places.get(&block) == Some(&(bucket, place)) {
                self.places.remove(&block);
            }
        }
        self.contents.live[bucket as usize] = 0;
        self.contents.marks(bucket).fill(false);
        self.free.push(bucket);
    }

    /// Counts, chooses the next victims, and moves what was used again out of them.
    fn pass(&mut self) {
        let (buckets, sectors) = (self.contents.live.len(), self.contents.bucket_sectors());
        if self.policy.census_begins() {
            let live = (0..).map(BucketNr).zip(self.contents.live.iter());
            self.policy.census(live.map(|(bucket, live)| (bucket, live * BLOCK_SECTORS)));
            self.policy.census_ends(sectors);
        }
        let count = (buckets / UPCOMING_PART).saturating_sub(self.free.len());
        let random = &mut self.random;
        while !self.policy.choose(count, buckets, || draw(random), &self.contents) {}
        self.spend_stayed();
        let mut saving = self.policy.saving_begins(sectors);
        if let Some(saving) = &mut saving {
            while !self.policy.save(saving, buckets, &self.contents) {}
        }
        let saved = self.policy.worth_saving(saving);
        for bucket in (0..buckets as u32).filter(|&bucket| saved.contains(BucketNr(bucket))) {
            self.move_out(bucket);
        }
    }

    fn move_out(&mut self, bucket: u32) {
        let reused: Vec<u64> = (0..)
            .zip(&self.contents.blocks[bucket as usize])
            .filter(|&(place, block)| {
                self.contents.is_reused(bucket, place)
                    && self.places.get(block) == Some(&(bucket, place))
            })
            .map(|(_, &block)| block)
            .collect();
        for block in reused {
            // Room for the first ones may have taken the bucket.
            if self.places.get(&block).is_some_and(|&(place, _)| place == bucket) {
                self.append(block, Class::MovedClean);
            }
        }
    }
}

fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [ReplacementPolicy; 3] =
        [ReplacementPolicy::Lru, ReplacementPolicy::ScanResistant, ReplacementPolicy::TwoQueue];

    /// Says how many of the reads hit.
    fn read(cache: &mut ShadowCache, blocks: impl Iterator<Item = u64>) -> usize {
        blocks.filter(|&block| cache.read(block)).count()
    }

    #[test]
    fn all_blocks_of_a_load_that_fits_are_hits() {
        for policy in POLICIES {
            let mut cache = ShadowCache::new(100, 16, policy);
            assert_eq!(read(&mut cache, 0..1200), 0);
            assert_eq!(read(&mut cache, 0..1200), 1200, "{policy:?}");
        }
    }

    #[test]
    fn lru_keeps_little_of_a_loop_that_does_not_fit() {
        let hits = POLICIES.map(|policy| {
            let mut cache = ShadowCache::new(100, 16, policy);
            (0..40).for_each(|_| {
                read(&mut cache, 0..2000);
            });
            (0..10).map(|_| read(&mut cache, 0..2000)).sum::<usize>()
        });
        assert!(hits[0] < 400 && hits[1] > 4000, "{hits:?} of 20000");
    }

    #[test]
    fn written_blocks_are_hits_and_forgotten_ones_are_not() {
        for policy in POLICIES {
            let mut cache = ShadowCache::new(20, 4, policy);
            for round in 0..100 {
                (0..40).for_each(|block| cache.write(block));
                (0..40).filter(|block| block % 2 == 0).for_each(|block| cache.forget(block));
                let odd = (0..40).filter(|block| block % 2 == 1);
                assert_eq!(read(&mut cache, odd), 20, "{policy:?}, round {round}");
                assert!(!cache.read(2));
            }
        }
    }

    /// Random reads, writes and discards leave the books right, whatever the policy.
    #[test]
    fn books_agree_with_the_places() {
        for policy in POLICIES {
            let (mut cache, mut random) = (ShadowCache::new(16, 4, policy), 7);
            for _ in 0..20_000 {
                let (what, block) = (draw(&mut random) % 8, draw(&mut random) % 150);
                match what {
                    0 => cache.forget(block),
                    1..=3 => cache.write(block),
                    _ => {
                        cache.read(block);
                    }
                }
            }
            for (bucket, &live) in cache.contents.live.iter().enumerate() {
                let here = cache.places.values().filter(|it| it.0 as usize == bucket).count();
                assert_eq!(here, live as usize, "{policy:?}, bucket {bucket}");
            }
            assert!(cache.places.len() <= 64);
        }
    }
}
