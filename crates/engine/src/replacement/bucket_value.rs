//! The worth of keeping a bucket, learnt from the hits that buckets like it had.
//!
//! Buckets are alike if the same class of data was put into them equally long ago, in buckets
//! filled since. For each kind the hits are counted, and a census now and then counts the live
//! sectors that were there to be hit. Their ratio is how often a sector of that kind is used. A
//! bucket is worth what it will have been used at best, on average from now to some later age: the
//! index of Gittins (1979). So data goes first that nobody wants at any age, like a scan's; where
//! data comes back after a long while, as in a loop larger than the cache, a bucket gains worth the
//! nearer that is.

use ubcache_format::BucketNr;

use super::data_class::CLASSES;

/// Kinds of age: this many for each turn of the cache ...
const AGES_PER_TURN: u64 = 8;
/// ... and this many in all; the last has everything that is older.
const AGES: usize = 16;
/// The count of filled buckets wraps here: it shares a number with the class.
const FILLED_END: u32 = 1 << (32 - CLASS_BITS);
const CLASS_BITS: u32 = 3;
const _: () = assert!(CLASSES <= 1 << CLASS_BITS);
/// At each census old counts lose this part.
const DECAY_PART: u64 = 10;
/// A kind of which less is known than of this part of the cache, for as long as an age lasts,
/// counts as half of average.
const DOUBT_PART: u64 = 512;
/// Worth is counted in this part of a hit for each live sector and bucket filled.
const SCALE: u128 = 1 << 32;

#[derive(Debug)]
pub(crate) struct BucketValue {
    /// Buckets filled so far; wraps around at [`FILLED_END`].
    filled: u32,
    /// By bucket: how many had been filled when it was taken for data, times 8, and the class of
    /// that. As long as not all buckets are known, the first ones.
    began: Vec<u32>,
    buckets: u32,
    /// By kind, with older counts decayed: sectors hit.
    hits: Vec<u64>,
    /// By kind, with older counts decayed: live sectors, times the buckets filled while they were
    /// there.
    seen: Vec<u64>,
    /// By kind: what one sector is worth.
    worth: Vec<u64>,
    /// `filled` at the last census.
    counted_at: u32,
}

impl BucketValue {
    /// Nothing is known yet; [`BucketValue::learn`] has to tell of so many buckets.
    pub fn new(buckets: u32) -> BucketValue {
        let filled = FILLED_END / 2;
        let kinds = CLASSES * AGES;
        BucketValue {
            filled,
            began: Vec::with_capacity(buckets as usize),
            buckets,
            hits: vec![0; kinds],
            seen: vec![0; kinds],
            worth: vec![0; kinds],
            counted_at: filled,
        }
    }

    /// Number of buckets that are known.
    pub fn known(&self) -> u32 {
        self.began.len() as u32
    }

    /// The next bucket was filled so long ago, in buckets filled since.
    pub fn learn(&mut self, age: u32) {
        self.began.push((self.filled - age.min(self.filled)) << CLASS_BITS);
    }

    /// The bucket was taken for data of this class.
    pub fn fill(&mut self, bucket: BucketNr, class: usize) {
        self.filled = (self.filled + 1) % FILLED_END;
        // Buckets that are not known yet will be found to be young.
        if let Some(began) = self.began.get_mut(bucket.0 as usize) {
            *began = self.filled << CLASS_BITS | class as u32;
        }
    }

    fn kind(&self, bucket: BucketNr) -> usize {
        let began = self.began[bucket.0 as usize];
        let age = u64::from(self.filled.wrapping_sub(began >> CLASS_BITS) % FILLED_END);
        let age = (age * AGES_PER_TURN / u64::from(self.buckets)).min(AGES as u64 - 1);
        (began % (1 << CLASS_BITS)) as usize * AGES + age as usize
    }

    /// Class of the data that the bucket was taken for.
    pub fn class(&self, bucket: BucketNr) -> usize {
        (self.began[bucket.0 as usize] % (1 << CLASS_BITS)) as usize
    }

    /// So many sectors of the bucket were used again.
    pub fn hit(&mut self, bucket: BucketNr, sectors: u64) {
        let kind = self.kind(bucket);
        self.hits[kind] += sectors;
    }

    /// BucketValue of a live sector of the bucket.
    pub fn of(&self, bucket: BucketNr) -> u64 {
        self.worth[self.kind(bucket)]
    }

    /// BucketValue of a sector that is put into a bucket of this class now.
    pub fn of_new(&self, class: usize) -> u64 {
        self.worth[class * AGES]
    }

    /// Number of buckets that were filled since the last census.
    pub fn filled_since(&self) -> u32 {
        self.filled.wrapping_sub(self.counted_at) % FILLED_END
    }

    /// A census begins: says how many buckets were filled since the last one; `None` if there is
    /// nothing to learn.
    pub fn census_begins(&mut self) -> Option<u64> {
        let time = u64::from(self.filled_since());
        if time == 0 {
            return None;
        }
        self.counted_at = self.filled;
        for count in self.hits.iter_mut().chain(&mut self.seen) {
            *count -= *count / DECAY_PART;
        }
        Some(time)
    }

    /// Counts a bucket of data with so many live sectors; `time` is what
    /// [`BucketValue::census_begins`] said.
    pub fn count(&mut self, bucket: BucketNr, live: u32, time: u64) {
        let kind = self.kind(bucket);
        self.seen[kind] += u64::from(live) * time;
    }

    /// Every bucket was counted: works out what each kind is worth.
    pub fn census_ends(&mut self, bucket_sectors: u32) {
        let buckets = u64::from(self.buckets);
        let doubt =
            (u64::from(bucket_sectors) * buckets * buckets / AGES_PER_TURN / DOUBT_PART).max(1);
        let (hits, seen): (u64, u64) = (self.hits.iter().sum(), self.seen.iter().sum());
        let doubted = u128::from(hits) * u128::from(doubt) * SCALE / u128::from(seen.max(1)) / 2;
        for class in 0..CLASSES {
            let end = (class + 1) * AGES;
            for kind in class * AGES..end {
                let (mut hits, mut seen, mut best) = (doubted, u128::from(doubt), 0);
                for later in kind..end {
                    hits += u128::from(self.hits[later]) * SCALE;
                    seen += u128::from(self.seen[later]);
                    best = best.max(hits / seen);
                }
                self.worth[kind] = u64::try_from(best).unwrap_or(u64::MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: u32 = 160;
    const SECTORS: u32 = 64;

    fn census(worth: &mut BucketValue) {
        let Some(time) = worth.census_begins() else { return };
        (0..BUCKETS).for_each(|bucket| worth.count(BucketNr(bucket), SECTORS, time));
        worth.census_ends(SECTORS);
    }

    /// Fills the next bucket and counts now and then, as a pass does.
    fn fill(worth: &mut BucketValue, count: &mut u32, class: usize) {
        worth.fill(BucketNr(*count % BUCKETS), class);
        *count += 1;
        if count.is_multiple_of(BUCKETS / 16) {
            census(worth);
        }
    }

    fn fresh() -> BucketValue {
        let mut worth = BucketValue::new(BUCKETS);
        (0..BUCKETS).for_each(|_| worth.learn(u32::MAX));
        worth
    }

    #[test]
    fn used_data_has_a_higher_value_than_a_scan() {
        let (mut worth, mut count) = (fresh(), 0u32);
        for _ in 0..4 * BUCKETS {
            let class = usize::from(count.is_multiple_of(2));
            fill(&mut worth, &mut count, class);
            let used = (count - 1) / 2 * 2;
            worth.hit(BucketNr(used % BUCKETS), 8);
        }
        let (used, scanned) = (BucketNr((count - 2) % BUCKETS), BucketNr((count - 1) % BUCKETS));
        assert!(worth.of(used) > 4 * worth.of(scanned), "{} {}", worth.of(used), worth.of(scanned));
    }

    #[test]
    fn value_rises_towards_the_reuse_of_a_loop() {
        let (mut worth, mut count) = (fresh(), 0u32);
        for _ in 0..4 * BUCKETS {
            fill(&mut worth, &mut count, 0);
            // All data is used when three quarters of the cache have been filled since.
            worth.hit(BucketNr((count + BUCKETS / 4) % BUCKETS), u64::from(SECTORS));
        }
        let worth_at = |age: u32| worth.of(BucketNr((count - age) % BUCKETS));
        assert!(
            worth_at(10) < worth_at(60) && worth_at(60) < worth_at(110),
            "rises before its use"
        );
        assert!(worth_at(150) < worth_at(10), "and falls after it");
    }

    #[test]
    fn nothing_is_learnt_without_filled_buckets() {
        let mut worth = fresh();
        let mut count = 0;
        for _ in 0..BUCKETS {
            fill(&mut worth, &mut count, 0);
        }
        let known = worth.of(BucketNr(0));
        assert_eq!(known, 0, "no hits, no worth");
        // Without a bucket filled there is nothing to learn.
        worth.hit(BucketNr(0), 1000);
        worth.counted_at = worth.filled;
        census(&mut worth);
        assert_eq!(worth.of(BucketNr(0)), 0);
    }
}
