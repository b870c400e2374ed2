//! Ranges written to the backing device and not covered by a completed flush, and ranges that a
//! failed flush may have cost.

use smallvec::{SmallVec, smallvec};
use ubcache_env::{IntervalSet, Sector, SectorRange};

use crate::rules::{Rule, Rules};

/// Beyond this number of intervals they are rounded outwards: coarser is always safe.
const INTERVALS_MAX: usize = 4096;
/// To multiples of 1 MiB at first, and of so many times that while there are still too many.
const COARSE_SECTORS: u64 = 2048;
const COARSER: u64 = 16;

/// The un-flushed set of a volume.
#[derive(Default, Debug)]
pub(crate) struct Unflushed {
    current: IntervalSet,
    flushing: IntervalSet,
    /// Granularity that intervals are rounded to, in sectors.
    step: u64,
    /// The device has no volatile cache: what it has completed it can't lose.
    lossless: bool,
    /// F5: what a failed flush may have cost, now or later, and nobody has written since.
    suspect: IntervalSet,
    rules: Rules,
}

impl Unflushed {
    /// An empty set.
    pub fn new(volatile: bool, rules: Rules) -> Unflushed {
        Unflushed { lossless: !volatile, rules, ..Unflushed::default() }
    }

    /// Intervals in memory.
    pub fn intervals(&self) -> usize {
        self.current.intervals() + self.flushing.intervals() + self.suspect.intervals()
    }

    /// W5: a backing write over the range completed, with or without success.
    pub fn add(&mut self, range: SectorRange) {
        if self.lossless {
            return;
        }
        while self.current.intervals() >= INTERVALS_MAX {
            self.step =
                if self.step == 0 { COARSE_SECTORS } else { self.step.saturating_mul(COARSER) };
            let fine = std::mem::take(&mut self.current);
            fine.iter().for_each(|range| self.current.insert(outwards(range, self.step)));
        }
        self.current.insert(if self.step == 0 { range } else { outwards(range, self.step) });
    }

    /// The device was flushed by somebody else.
    pub fn forget(&mut self) {
        self.current.clear();
        self.flushing.clear();
        self.step = 0;
    }

    /// Takes over the suspect ranges of another set.
    pub fn take_suspects(&mut self, former: &mut Unflushed) {
        self.suspect = std::mem::take(&mut former.suspect);
    }

    /// F5: a flush failed. Whatever waits for one is suspect. It still waits.
    pub fn flush_failed(&mut self) {
        let Unflushed { current, flushing, suspect, .. } = self;
        suspect.merge(current);
        suspect.merge(flushing);
        self.limit_suspects();
    }

    /// The range was under way to the device when a flush failed.
    pub fn suspect(&mut self, range: SectorRange) {
        self.suspect.insert(range);
        self.limit_suspects();
    }

    fn limit_suspects(&mut self) {
        let mut step = COARSE_SECTORS;
        while self.suspect.intervals() > INTERVALS_MAX {
            let fine = std::mem::take(&mut self.suspect);
            fine.iter().for_each(|range| self.suspect.insert(outwards(range, step)));
            step = step.saturating_mul(COARSER);
        }
    }

    /// A write over the range that no failed flush can have cost has completed with success. Says
    /// whether that matters.
    pub fn written_anew(&mut self, range: SectorRange) -> bool {
        if self.suspect.is_empty() || !self.suspect.overlaps(range) {
            return false;
        }
        self.suspect.remove(range);
        true
    }

    /// F5: whether what the device returns for any of the range is not to be trusted.
    pub fn is_suspect(&self, range: SectorRange) -> bool {
        let known = self.rules.keeps(Rule::F5SuspectNotKept);
        known && !self.suspect.is_empty() && self.suspect.overlaps(range)
    }

    /// The parts of the range that are not suspect.
    pub fn trusted_parts(&self, range: SectorRange) -> SmallVec<[SectorRange; 2]> {
        if self.is_suspect(range) { self.suspect.gaps(range).into() } else { smallvec![range] }
    }

    /// The suspect ranges.
    pub fn suspects(&self) -> &IntervalSet {
        &self.suspect
    }

    /// Returns true if nothing waits for a flush.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty() && self.flushing.is_empty()
    }

    /// All of it.
    pub fn all(&self) -> IntervalSet {
        let mut all = self.current.clone();
        all.merge(&self.flushing);
        all
    }

    /// Returns true if the backing device may still lose any of the range.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        let known = self.rules.keeps(Rule::C1UnflushedUnpublished);
        known && (self.current.overlaps(range) || self.flushing.overlaps(range))
    }

    /// Returns true if the backing device may lose all of the range. If only `current` and
    /// `flushing` together have all of it, the answer is no;
    /// [`flushed_parts`](Unflushed::flushed_parts) is exact.
    pub fn covers(&self, range: SectorRange) -> bool {
        let known = self.rules.keeps(Rule::C1UnflushedUnpublished);
        known && !self.is_empty() && (self.current.covers(range) || self.flushing.covers(range))
    }

    /// The parts of the range that the backing device can't lose.
    pub fn flushed_parts(&self, range: SectorRange) -> SmallVec<[SectorRange; 2]> {
        if !self.overlaps(range) {
            return smallvec![range];
        }
        if self.covers(range) {
            return SmallVec::new();
        }
        let mut lossy = IntervalSet::default();
        self.current.overlapping(range).for_each(|part| lossy.insert(part));
        self.flushing.overlapping(range).for_each(|part| lossy.insert(part));
        lossy.gaps(range).into()
    }

    /// A flush is submitted; one at a time.
    pub fn flush_starts(&mut self) {
        assert!(self.flushing.is_empty(), "one flush at a time");
        self.flushing = std::mem::take(&mut self.current);
        self.step = 0;
    }

    /// The flush completed. On failure everything stays.
    pub fn flush_ends(&mut self, ok: bool) {
        let flushed = std::mem::take(&mut self.flushing);
        #[cfg(feature = "mutants")]
        if !self.rules.keeps(Rule::F1CoversCompletedOnly) {
            self.current.clear();
        }
        if ok || !self.rules.keeps(Rule::F2FailureKeepsUnflushed) {
            return;
        }
        // No more than the bound, one by one.
        flushed.iter().for_each(|range| self.add(range));
    }
}

fn outwards(range: SectorRange, step: u64) -> SectorRange {
    let low = range.start.0 / step * step;
    let high = range.end.0.div_ceil(step).saturating_mul(step);
    SectorRange::from_bounds(Sector(low), Sector(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    #[test]
    fn write_during_a_flush_stays_unflushed() {
        let mut set = Unflushed::default();
        set.add(range(0, 8));
        set.flush_starts();
        set.add(range(4, 8));
        assert!(set.overlaps(range(0, 1)));
        set.flush_ends(true);
        assert_eq!(set.flushed_parts(range(0, 16)).as_slice(), [range(0, 4), range(12, 4)]);
    }

    #[test]
    fn failed_flush_leaves_the_unflushed_set() {
        let mut set = Unflushed::default();
        set.add(range(0, 8));
        set.flush_starts();
        set.flush_ends(false);
        assert!(set.overlaps(range(0, 8)));
    }

    #[test]
    fn ranges_of_a_failed_flush_are_suspect_until_written() {
        let mut set = Unflushed::default();
        set.add(range(0, 8));
        set.flush_starts();
        set.add(range(100, 8));
        set.flush_failed();
        set.flush_ends(false);
        set.flush_starts();
        set.flush_ends(true);
        assert!(!set.overlaps(range(0, 200)), "the next flush succeeds");
        assert!(set.is_suspect(range(7, 1)) && set.is_suspect(range(100, 1)), "over the loss");
        assert!(set.written_anew(range(0, 4)) && !set.written_anew(range(0, 4)));
        assert_eq!(set.trusted_parts(range(0, 16)).as_slice(), [range(0, 4), range(8, 8)]);
    }

    #[test]
    fn memory_is_bounded_by_rounding_outwards() {
        let mut set = Unflushed::default();
        for n in 0..100_000 {
            set.add(range(n * 16, 8));
        }
        assert!(set.current.intervals() <= INTERVALS_MAX);
        assert!((0..100_000).all(|n| set.overlaps(range(n * 16, 1))));
    }

    /// Bug: the bound was the size of the device divided by 1 MiB. Fix: the steps grow until there
    /// are few enough.
    #[test]
    fn memory_is_bounded_whatever_the_size_of_the_device() {
        let mut set = Unflushed::default();
        // Two writes in each 4 MiB of 64 TiB, and flushes that fail.
        for n in 0..100_000 {
            set.add(range(n * (64 << 31) / 100_000, 8));
            if n % 1000 == 0 {
                set.flush_starts();
                set.flush_ends(false);
            }
            assert!(set.current.intervals() <= INTERVALS_MAX + 1);
        }
        assert!((0..100_000).all(|n| set.overlaps(range(n * (64 << 31) / 100_000, 1))));
    }

    #[test]
    fn a_device_without_a_volatile_cache_has_nothing_un_flushed() {
        let mut set = Unflushed::new(false, Rules::default());
        set.add(range(0, 8));
        assert!(set.is_empty());
    }
}
