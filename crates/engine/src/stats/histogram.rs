//! Latencies in a histogram of fixed size: four buckets for each power of two.
//!
//! A bucket covers a quarter of an octave, so a percentile read from it is at most a quarter too
//! high. Recording takes a dozen instructions, and no memory beyond the array.
//!
//! ```text
//! bucket      0          1          2          3          4 …      107
//! below (ns)  1280       1536       1792       2048       2560     2^37 (137 s) and all above
//! ```

use std::cell::Cell;

use ubcache_env::Nanos;

/// Each octave has `1 << SUB_BITS` buckets.
const SUB_BITS: u32 = 2;
/// The first octave begins at `1 << FIRST` nanoseconds; what is shorter counts there.
const FIRST: u32 = 10;
/// The last octave ends at `1 << END` nanoseconds; what is longer counts there.
const END: u32 = 37;
/// Number of buckets.
pub const BUCKETS: usize = ((END - FIRST) << SUB_BITS) as usize;

/// A histogram that is being filled.
#[derive(Debug)]
pub struct Histogram {
    counts: [Cell<u64>; BUCKETS],
    sum: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: std::array::from_fn(|_| Cell::new(0)), sum: Cell::new(0) }
    }
}

/// Bucket of a time.
#[inline(always)]
fn bucket(took: Nanos) -> usize {
    let ns = took.0.max(1 << FIRST);
    let octave = ns.ilog2();
    // The leading one adds a whole octave, which the offset takes away.
    let position = (octave << SUB_BITS) as u64 + (ns >> (octave - SUB_BITS));
    (position as usize - ((FIRST + 1) << SUB_BITS) as usize).min(BUCKETS - 1)
}

/// A time, and its bucket: for one that several histograms count.
#[derive(Copy, Clone, Debug, Default)]
pub struct Taken {
    took: Nanos,
    bucket: usize,
}

impl Taken {
    /// A time.
    #[inline(always)]
    pub fn new(took: Nanos) -> Taken {
        Taken { took, bucket: bucket(took) }
    }
}

/// End of a bucket: every time in it is shorter.
fn end(bucket: usize) -> Nanos {
    let sub = (bucket & ((1 << SUB_BITS) - 1)) as u64 + 1;
    let octave = FIRST + (bucket >> SUB_BITS) as u32;
    Nanos((1 << octave) + (sub << (octave - SUB_BITS)))
}

impl Histogram {
    /// Counts a time.
    #[inline(always)]
    pub fn record(&self, taken: Taken) {
        let count = &self.counts[taken.bucket.min(BUCKETS - 1)];
        count.set(count.get() + 1);
        self.sum.set(self.sum.get().wrapping_add(taken.took.0));
    }

    /// Number of times.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Cell::get).sum()
    }

    /// The histogram as it is now.
    pub fn latencies(&self) -> Latencies {
        let counted = self.counts.iter().enumerate().filter(|(_, count)| count.get() > 0);
        Latencies {
            counts: counted.map(|(bucket, count)| (end(bucket), count.get())).collect(),
            sum: Nanos(self.sum.get()),
        }
    }

    /// Goes on from what another one has counted.
    pub fn continue_from(&self, former: &Histogram) {
        for (count, before) in self.counts.iter().zip(&former.counts) {
            count.set(before.get());
        }
        self.sum.set(former.sum.get());
    }
}

/// The content of a histogram at a moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Latencies {
    /// Buckets that are not empty, ascending: the end of each, and the times in it.
    pub counts: Vec<(Nanos, u64)>,
    /// All times together.
    pub sum: Nanos,
}

impl Latencies {
    /// Number of times.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// The time that this share of all times (in thousandths) does not exceed, rounded up to the
    /// end of its bucket; none if nothing was counted.
    pub fn permille(&self, share: u64) -> Option<Nanos> {
        let rank = (self.count() * share).div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.counts.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_quarters_of_octaves() {
        for (ns, ends) in [
            (0, 1280),
            (1024, 1280),
            (1279, 1280),
            (1280, 1536),
            (2047, 2048),
            (2048, 2560),
            (1 << 20, 5 << 18),
            ((1 << 37) - 1, 1 << 37),
            (u64::MAX, 1 << 37),
        ] {
            assert_eq!(end(bucket(Nanos(ns))), Nanos(ends), "{ns}");
        }
        assert_eq!(bucket(Nanos(u64::MAX)), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_ends_of_buckets() {
        let histogram = Histogram::default();
        assert_eq!(histogram.latencies().permille(500), None);
        for us in 1..=1000 {
            histogram.record(Taken::new(Nanos::from_micros(us)));
        }
        let latencies = histogram.latencies();
        assert_eq!(latencies.count(), 1000);
        assert_eq!(latencies.sum, Nanos::from_micros(500_500));
        for (share, us) in [(1, 1), (500, 500), (990, 990), (1000, 1000)] {
            let found = latencies.permille(share).expect("it has counted").0;
            assert!(found > us * 1000 && found <= us * 1250 + 280, "{share}: {found}");
        }
    }

    proptest! {
        #[test]
        fn times_are_below_the_end_of_their_bucket_by_a_quarter_at_most(ns in 1024..1_u64 << 37) {
            let found = bucket(Nanos(ns));
            let begins = if found == 0 { 1024 } else { end(found - 1).0 };
            prop_assert!(begins <= ns && ns < end(found).0);
            prop_assert!((end(found).0 - begins) * 4 <= begins);
        }
    }
}
