//! What was written to the backing device and is not covered by a completed flush.

use smallvec::{SmallVec, smallvec};
use ubcache_env::{IntervalSet, Sector, SectorRange};

use crate::mutants::{Mutant, Mutation};

/// Beyond this number of intervals they are rounded outwards: coarser is always safe.
const INTERVALS_MAX: usize = 4096;
const COARSE_SECTORS: u64 = 2048;

/// The un-flushed set of a volume.
#[derive(Default, Debug)]
pub(crate) struct Unflushed {
    current: IntervalSet,
    flushing: IntervalSet,
    coarse: bool,
    mutation: Mutation,
}

impl Unflushed {
    /// An empty set.
    pub fn new(mutation: Mutation) -> Unflushed {
        Unflushed { mutation, ..Unflushed::default() }
    }

    /// W5: a backing write over the range completed, with or without success.
    pub fn add(&mut self, range: SectorRange) {
        if self.current.intervals() >= INTERVALS_MAX && !self.coarse {
            self.coarse = true;
            let fine = std::mem::take(&mut self.current);
            fine.iter().for_each(|range| self.current.insert(outwards(range)));
        }
        self.current.insert(if self.coarse { outwards(range) } else { range });
    }

    /// Whether nothing waits for a flush.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty() && self.flushing.is_empty()
    }

    /// All of it.
    pub fn all(&self) -> IntervalSet {
        let mut all = self.current.clone();
        all.merge(&self.flushing);
        all
    }

    /// Whether the backing device may still lose any of the range.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        let known = !self.mutation.is(Mutant::NoUnflushedTracking);
        known && (self.current.overlaps(range) || self.flushing.overlaps(range))
    }

    /// Whether the backing device may lose all of the range. Where only `current` and `flushing` together have all of it,
    /// the answer is no; [`flushed_parts`](Unflushed::flushed_parts) is exact.
    pub fn covers(&self, range: SectorRange) -> bool {
        let known = !self.mutation.is(Mutant::NoUnflushedTracking);
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
        self.coarse = false;
    }

    /// The flush completed. On failure everything stays, and the set that it was to cover is
    /// returned: the device may have dropped that data.
    pub fn flush_ends(&mut self, ok: bool) -> Option<IntervalSet> {
        let flushed = std::mem::take(&mut self.flushing);
        if self.mutation.is(Mutant::FlushClearsLaterWrites) {
            self.current.clear();
        }
        if ok || self.mutation.is(Mutant::FailedFlushForgets) {
            return None;
        }
        self.current.merge(&flushed);
        Some(flushed)
    }
}

fn outwards(range: SectorRange) -> SectorRange {
    let low = range.start.0 / COARSE_SECTORS * COARSE_SECTORS;
    let high = range.end.0.div_ceil(COARSE_SECTORS) * COARSE_SECTORS;
    SectorRange::from_bounds(Sector(low), Sector(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    #[test]
    fn a_write_during_the_flush_stays() {
        let mut set = Unflushed::default();
        set.add(range(0, 8));
        set.flush_starts();
        set.add(range(4, 8));
        assert!(set.overlaps(range(0, 1)));
        assert_eq!(set.flush_ends(true), None);
        assert_eq!(set.flushed_parts(range(0, 16)).as_slice(), [range(0, 4), range(12, 4)]);
    }

    #[test]
    fn a_failed_flush_takes_nothing_out() {
        let mut set = Unflushed::default();
        set.add(range(0, 8));
        set.flush_starts();
        assert!(set.flush_ends(false).is_some_and(|lost| lost.covers(range(0, 8))));
        assert!(set.overlaps(range(0, 8)));
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
}
