//! Ranges of a leaf that its node on the device lacks.
//!
//! Every change adds one, and all are asked for together when the node is written: so they are
//! noted as they come, and put in order then.

use ubcache_env::{Sector, SectorRange};
use ubcache_format::Inode;

use super::extent::Position;

/// Words that a change adds to a node at most: the key itself, and a neighbour cut on each side.
pub(crate) const CHANGE_WORDS: u64 = 9;

/// Ranges that changed since a write of the node was started.
#[derive(Default, Debug)]
pub(crate) struct Touched {
    ranges: Vec<(Inode, SectorRange)>,
    /// An upper bound for the words that a bset of these ranges takes.
    words: u64,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// An upper bound for the words that a bset of these ranges takes.
    pub fn words(&self) -> u64 {
        self.words
    }

    /// Notes a change.
    pub fn note(&mut self, inode: Inode, range: SectorRange) {
        self.words += CHANGE_WORDS;
        match self.ranges.last_mut() {
            Some((last_inode, last)) if *last_inode == inode && last.end == range.start => {
                last.end = range.end;
            }
            _ => self.ranges.push((inode, range)),
        }
    }

    /// All of them, in order, disjoint, and joined where they meet.
    pub fn in_order(&mut self) -> &[(Inode, SectorRange)] {
        self.ranges.sort_unstable_by_key(|&(inode, range)| (inode, range.start));
        self.ranges.dedup_by(|(inode, range), (last_inode, last)| {
            let joins = inode == last_inode && range.start <= last.end;
            if joins {
                last.end = last.end.max(range.end);
            }
            joins
        });
        &self.ranges
    }

    /// Adds what another one has.
    pub fn merge(&mut self, other: Touched) {
        self.ranges.extend(other.ranges);
        self.words += other.words;
    }

    /// Takes away what lies behind a place.
    pub fn split_off(&mut self, (inode, sector): Position) -> Touched {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for &(owner, range) in self.in_order() {
            let border = match owner.cmp(&inode) {
                std::cmp::Ordering::Less => range.end,
                std::cmp::Ordering::Equal => Sector(sector.0.clamp(range.start.0, range.end.0)),
                std::cmp::Ordering::Greater => range.start,
            };
            let parts = [(range.start, border, &mut left), (border, range.end, &mut right)];
            for (start, end, side) in parts {
                if start < end {
                    side.push((owner, SectorRange::from_bounds(start, end)));
                }
            }
        }
        *self = Touched::of(left);
        Touched::of(right)
    }

    /// Of ranges that are in order and disjoint.
    fn of(ranges: Vec<(Inode, SectorRange)>) -> Touched {
        let words = CHANGE_WORDS * ranges.len() as u64;
        Touched { ranges, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    #[test]
    fn touched_ranges_are_sorted_and_merged() {
        let (one, two) = (Inode(1), Inode(2));
        let mut touched = Touched::default();
        for (inode, start, end) in [
            (two, 5, 9),
            (one, 40, 48),
            (one, 8, 16),
            (one, 16, 24),
            (one, 4, 12),
            (one, 48, 50),
            (two, 0, 4),
        ] {
            touched.note(inode, range(start, end));
        }
        assert_eq!(touched.words(), 7 * CHANGE_WORDS);
        let joined =
            [(one, range(4, 24)), (one, range(40, 50)), (two, range(0, 4)), (two, range(5, 9))];
        assert_eq!(touched.in_order(), joined);
        let mut right = touched.split_off((one, Sector(42)));
        assert_eq!(touched.in_order(), [(one, range(4, 24)), (one, range(40, 42))]);
        assert_eq!(
            right.in_order(),
            [(one, range(42, 50)), (two, range(0, 4)), (two, range(5, 9))]
        );
        assert_eq!((touched.words(), right.words()), (2 * CHANGE_WORDS, 3 * CHANGE_WORDS));
        touched.merge(right);
        assert_eq!(touched.in_order(), joined);
    }
}
