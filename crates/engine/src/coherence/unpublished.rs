//! Clean copies on the cache device that are not in the index yet (rules C1, C2).
//!
//! Every fill and every copy of a writethrough write comes here first. It is served from here.
//! Once its range is not un-flushed, a background task puts it into the index, with its record.
//! So no node and no journal entry ever names a copy that the backing device may still lose, and
//! a crash simply forgets what is here. Dropping a copy is always allowed.

use std::collections::BTreeMap;

use smallvec::SmallVec;
use ubcache_env::{Sector, SectorRange};
use ubcache_format::Pointer;

use crate::alloc::bucket_pins::Pin;
use crate::tuning::TREE_SLACK;

#[derive(Debug)]
struct Copy {
    end: Sector,
    pointer: Pointer,
    pin: Pin,
}

/// Memory that a copy takes at most.
pub(crate) const COPY_BYTES: u64 = TREE_SLACK * size_of::<(Sector, Copy)>() as u64;

/// More ranges than this to look at are as many as all.
const FRESH_MAX: usize = 4096;

/// The unpublished copies of a volume, and which of them may be ready to be published. There may be
/// thousands that wait for a flush: they are not looked at before there was one.
#[derive(Default, Debug)]
pub(crate) struct Unpublished {
    by_start: BTreeMap<Sector, Copy>,
    /// Ranges of new copies that may be ready.
    fresh: Vec<SectorRange>,
    /// From here on any may be ready.
    any_from: Option<Sector>,
}

impl Unpublished {
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// Number of copies.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Returns true if a copy of any of the range is here. Mostly there is none at all.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        !self.by_start.is_empty() && self.overlapping(range).next().is_some()
    }

    /// The copies that overlap the range, cut to it, in order.
    pub fn overlapping(
        &self,
        range: SectorRange,
    ) -> impl Iterator<Item = (SectorRange, Pointer)> + '_ {
        let first = match self.by_start.range(..=range.start).next_back() {
            Some((&start, copy)) if copy.end > range.start => start,
            _ => range.start,
        };
        let end = range.end.max(first);
        self.by_start.range(first..end).map(move |(&start, copy)| {
            let part = SectorRange::from_bounds(start, copy.end).intersect(&range);
            (part, copy.pointer.advance(part.start - start))
        })
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SectorRange, Pointer)> + '_ {
        self.by_start
            .iter()
            .map(|(&start, copy)| (SectorRange::from_bounds(start, copy.end), copy.pointer))
    }

    /// Notes that copies in the range may be ready.
    pub fn may_be_ready(&mut self, range: SectorRange) {
        self.fresh.push(range);
        if self.fresh.len() > FRESH_MAX {
            self.any_may_be_ready();
        }
    }

    /// Any copy may be ready: a flush has covered some.
    pub fn any_may_be_ready(&mut self) {
        self.fresh.clear();
        self.any_from = Some(Sector(0));
    }

    /// The next ranges to look at, so many at most: each is named once.
    pub fn next_to_look_at(&mut self, most: usize) -> Vec<SectorRange> {
        if !self.fresh.is_empty() {
            return self.fresh.drain(..most.min(self.fresh.len())).collect();
        }
        let Some(from) = self.any_from else { return Vec::new() };
        let copies = self.by_start.range(from..).take(most);
        let some: Vec<_> =
            copies.map(|(&start, copy)| SectorRange::from_bounds(start, copy.end)).collect();
        self.any_from = some.last().map(|last| last.end);
        some
    }

    /// Drops what is in the range.
    pub fn remove(&mut self, range: SectorRange) {
        if range.is_empty() || self.by_start.is_empty() {
            return;
        }
        // From behind, so that one search is enough.
        let before = self.by_start.range(..range.end).rev();
        let overlapping = before.take_while(|(_, copy)| copy.end > range.start);
        let overlapping: SmallVec<[Sector; 2]> = overlapping.map(|(&start, _)| start).collect();
        for start in overlapping {
            let copy = self.by_start.remove(&start).expect("just seen");
            if start < range.start {
                let left = Copy { end: range.start, pointer: copy.pointer, pin: copy.pin.clone() };
                self.by_start.insert(start, left);
            }
            if copy.end > range.end {
                let pointer = copy.pointer.advance(range.end - start);
                self.by_start.insert(range.end, Copy { end: copy.end, pointer, pin: copy.pin });
            }
        }
    }

    /// Adds a copy; the latest wins.
    pub fn insert(&mut self, range: SectorRange, pointer: Pointer, pin: Pin) {
        self.remove(range);
        self.by_start.insert(range.start, Copy { end: range.end, pointer, pin });
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Unpublished::default();
    }
}

#[cfg(test)]
mod tests {
    use ubcache_format::{BucketNr, Generation};

    use super::*;
    use crate::alloc::bucket_pins::Pins;
    use crate::rules::Rules;

    /// Copies of a block each, with gaps.
    fn with_copies(count: u64) -> Unpublished {
        let pins = Pins::new(2, Default::default(), Rules::default());
        let mut unpublished = Unpublished::default();
        for n in 0..count {
            let pointer =
                Pointer { device: 0, offset: Sector(1024 + 8 * n), generation: Generation(0) };
            unpublished.insert(nth(n), pointer, pins.pin(BucketNr(1)));
        }
        unpublished
    }

    fn nth(n: u64) -> SectorRange {
        SectorRange::new(Sector(16 * n), 8)
    }

    fn looked_at(unpublished: &mut Unpublished, most: usize) -> Vec<SectorRange> {
        let rounds = std::iter::repeat_with(|| unpublished.next_to_look_at(most));
        let rounds = rounds.take_while(|some| !some.is_empty());
        rounds.inspect(|some| assert!(some.len() <= most)).flatten().collect()
    }

    #[test]
    fn copies_are_not_examined_before_a_flush() {
        let mut unpublished = with_copies(1000);
        assert_eq!(looked_at(&mut unpublished, 64), []);
        unpublished.may_be_ready(nth(7));
        unpublished.may_be_ready(nth(3));
        assert_eq!(looked_at(&mut unpublished, 1), [nth(7), nth(3)]);
        assert_eq!(looked_at(&mut unpublished, 1), []);
        unpublished.any_may_be_ready();
        assert_eq!(looked_at(&mut unpublished, 64), (0..1000).map(nth).collect::<Vec<_>>());
        assert_eq!(looked_at(&mut unpublished, 64), []);
        assert_eq!(unpublished.len(), 1000, "looking changes nothing");
    }

    #[test]
    fn flush_during_a_round_restarts_it() {
        let mut unpublished = with_copies(10);
        unpublished.any_may_be_ready();
        assert_eq!(unpublished.next_to_look_at(4).len(), 4);
        unpublished.any_may_be_ready();
        assert_eq!(looked_at(&mut unpublished, 4).len(), 10);
    }

    #[test]
    fn ranges_to_examine_take_little_memory() {
        let mut unpublished = with_copies(3);
        for n in 0..100_000 {
            unpublished.may_be_ready(nth(n));
            assert!(unpublished.fresh.len() <= FRESH_MAX);
        }
        let all = looked_at(&mut unpublished, 4096);
        assert!((0..3).all(|n| all.contains(&nth(n))));
    }
}
