//! Sets of sectors and maps from sectors, kept as intervals.

use std::collections::BTreeMap;

use ubcache_format::{Sector, SectorRange};

/// A map from sectors to values, kept as disjoint intervals with equal values joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntervalMap<V> {
    /// Intervals by start: (end, value).
    map: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        IntervalMap { map: BTreeMap::new() }
    }
}

impl<V: Copy + PartialEq> IntervalMap<V> {
    /// Returns true if no sector has a value.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number of intervals.
    pub fn intervals(&self) -> usize {
        self.map.len()
    }

    /// Sectors covered.
    pub fn sectors(&self) -> u64 {
        self.map.iter().map(|(start, (end, _))| end - start).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// The parts of `range` that hold a value, in order.
    pub fn overlapping(&self, range: SectorRange) -> impl Iterator<Item = (SectorRange, V)> + '_ {
        let (from, to) = (range.start.0, range.end.0);
        let first = match self.map.range(..=from).next_back() {
            Some((start, (end, _))) if *end > from => *start,
            _ => from,
        };
        let end = if from < to { to } else { first };
        self.map.range(first..end).map(move |(start, (end, value))| {
            let (low, high) = ((*start).max(from), (*end).min(to));
            (SectorRange::from_bounds(Sector(low), Sector(high)), *value)
        })
    }

    /// Returns true if any sector of `range` has a value.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        let before = || self.map.range(..range.end.0).next_back();
        !range.is_empty() && before().is_some_and(|(_, (end, _))| *end > range.start.0)
    }

    /// All intervals, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SectorRange, V)> + '_ {
        self.map.iter().map(|(start, (end, value))| {
            (SectorRange::from_bounds(Sector(*start), Sector(*end)), *value)
        })
    }

    /// Removes all values of `range`.
    pub fn remove(&mut self, range: SectorRange) {
        let (from, to) = (range.start.0, range.end.0);
        if from >= to {
            return;
        }
        // From behind, so that one search is enough where nothing is removed.
        while let Some((&start, &(end, value))) = self.map.range(..to).next_back()
            && end > from
        {
            if start < from {
                self.map.insert(start, (from, value));
            } else {
                self.map.remove(&start);
            }
            if end > to {
                self.map.insert(to, (end, value));
            }
        }
    }

    /// Sets the value of every sector of `range`.
    pub fn insert(&mut self, range: SectorRange, value: V) {
        let (mut start, mut end) = (range.start.0, range.end.0);
        if start >= end {
            return;
        }
        // Mostly one search is enough: all of it has the value already, or nothing is near.
        let near = self.map.range(..=end).next_back();
        if let Some((&left, &(right, known))) = near
            && right >= start
        {
            if left <= start && right >= end && known == value {
                return;
            }
            self.remove(range);
            if let Some((&left, &(left_end, left_value))) = self.map.range(..start).next_back()
                && left_end == start
                && left_value == value
            {
                self.map.remove(&left);
                start = left;
            }
            if let Some(&(right_end, right_value)) = self.map.get(&end)
                && right_value == value
            {
                self.map.remove(&end);
                end = right_end;
            }
        }
        self.map.insert(start, (end, value));
    }

    /// Keeps the intervals for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(SectorRange, V) -> bool) {
        self.map.retain(|start, (end, value)| {
            keep(SectorRange::from_bounds(Sector(*start), Sector(*end)), *value)
        });
    }
}

/// A set of sectors, kept as disjoint, joined intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    map: IntervalMap<()>,
}

impl IntervalSet {
    /// Returns true if the set has no sector.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
    /// Number of intervals.
    pub fn intervals(&self) -> usize {
        self.map.intervals()
    }
    /// Sectors in it.
    pub fn sectors(&self) -> u64 {
        self.map.sectors()
    }
    /// Removes everything.
    pub fn clear(&mut self) {
        self.map.clear();
    }
    /// Puts `range` in.
    pub fn insert(&mut self, range: SectorRange) {
        self.map.insert(range, ());
    }
    /// Removes `range`.
    pub fn remove(&mut self, range: SectorRange) {
        self.map.remove(range);
    }
    /// Returns true if any sector of `range` is in the set.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        self.map.overlaps(range)
    }
    /// Returns true if all of `range` is in the set.
    pub fn covers(&self, range: SectorRange) -> bool {
        let before = || self.map.map.range(..=range.start.0).next_back();
        range.is_empty() || before().is_some_and(|(_, (end, ()))| *end >= range.end.0)
    }
    /// The parts of `range` in it, in order.
    pub fn overlapping(&self, range: SectorRange) -> impl Iterator<Item = SectorRange> + '_ {
        self.map.overlapping(range).map(|(part, ())| part)
    }
    /// The parts of `range` not in it, in order.
    pub fn gaps(&self, range: SectorRange) -> Vec<SectorRange> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for part in self.overlapping(range) {
            if at < part.start {
                gaps.push(SectorRange::from_bounds(at, part.start));
            }
            at = part.end;
        }
        if at < range.end {
            gaps.push(SectorRange::from_bounds(at, range.end));
        }
        gaps
    }
    /// All intervals, in order.
    pub fn iter(&self) -> impl Iterator<Item = SectorRange> + '_ {
        self.map.iter().map(|(range, ())| range)
    }
    /// Puts everything of `other` in.
    pub fn merge(&mut self, other: &IntervalSet) {
        for range in other.iter() {
            self.insert(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    proptest! {
        #[test]
        fn interval_set_agrees_with_an_array(
            steps in prop::collection::vec((0u64..60, 0u64..20, 0u8..4),
            1..60)) {
            let mut map = IntervalMap::default();
            let mut model = [0u8; 80];
            for (start, len, value) in steps {
                let cells = start as usize..(start + len) as usize;
                if value == 0 {
                    map.remove(range(start, len));
                } else {
                    map.insert(range(start, len), value);
                }
                model[cells.clone()].fill(value);
                let all: Vec<_> = map.iter().collect();
                for pair in all.windows(2) {
                    prop_assert!(pair[0].0.end < pair[1].0.start
                        || (pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1), "{all:?}");
                }
                for probe in [range(0, 80), range(start, len), range(start / 2, len + 5)] {
                    let mut seen = [0u8; 80];
                    for (part, value) in map.overlapping(probe) {
                        prop_assert!(probe.covers(&part) && !part.is_empty());
                        seen[part.start.0 as usize..part.end.0 as usize].fill(value);
                    }
                    for sector in 0..80u64 {
                        let expected =
                            if probe.contains(Sector(sector)) { model[sector as usize] } else { 0 };
                        prop_assert_eq!(seen[sector as usize], expected);
                    }
                }
            }
        }

        #[test]
        fn gaps_are_the_complement(parts in prop::collection::vec((0u64..60, 1u64..10), 0..10)) {
            let mut set = IntervalSet::default();
            parts.iter().for_each(|&(start, len)| set.insert(range(start, len)));
            let whole = range(5, 50);
            let mut rest = IntervalSet::default();
            set.gaps(whole).into_iter().for_each(|gap| rest.insert(gap));
            for sector in 5..55 {
                prop_assert!(set.overlaps(range(sector, 1)) != rest.overlaps(range(sector, 1)));
            }
            prop_assert_eq!(set.covers(whole), rest.is_empty());
        }
    }
}
