//! Sets of key sectors over all volumes, as ordered intervals that do not touch.

use ubcache_format::{Inode, Sector, SectorRange};

use crate::set::Lost;

/// A place between two key sectors: of the volume, before the sector.
type Point = (Inode, Sector);

/// A set of key sectors of all volumes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Region {
    /// In order; each ends before the next begins.
    intervals: Vec<(Point, Point)>,
}

impl Region {
    /// The union of intervals, in any order.
    pub fn of(intervals: impl IntoIterator<Item = (Point, Point)>) -> Region {
        let mut all: Vec<_> = intervals.into_iter().filter(|(start, end)| start < end).collect();
        all.sort_unstable();
        let mut intervals: Vec<(Point, Point)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match intervals.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => intervals.push((start, end)),
            }
        }
        Region { intervals }
    }

    /// The interval of a part of the tree.
    pub fn interval(lost: &Lost) -> (Point, Point) {
        (lost.after, lost.upto)
    }

    /// The interval of a part of a volume.
    pub fn range(inode: Inode, range: SectorRange) -> (Point, Point) {
        ((inode, range.start), (inode, range.end))
    }

    /// Returns true if it has a sector of the range.
    pub fn touches(&self, inode: Inode, range: SectorRange) -> bool {
        let (start, end) = Region::range(inode, range);
        let next = self.intervals.partition_point(|interval| interval.1 <= start);
        self.intervals.get(next).is_some_and(|interval| interval.0 < end)
    }

    /// Returns the part of this region that is not in the other.
    pub fn without(&self, other: &Region) -> Region {
        let mut intervals = Vec::new();
        let mut from = 0;
        for &(mut start, end) in &self.intervals {
            from += other.intervals[from..].partition_point(|interval| interval.1 <= start);
            for hole in other.intervals[from..].iter().take_while(|hole| hole.0 < end) {
                if start < hole.0 {
                    intervals.push((start, hole.0));
                }
                start = start.max(hole.1);
            }
            if start < end {
                intervals.push((start, end));
            }
        }
        Region { intervals }
    }

    /// The part in a volume, in order.
    pub fn in_volume(&self, inode: Inode) -> impl Iterator<Item = SectorRange> {
        self.intervals
            .iter()
            .filter_map(move |&(after, upto)| Lost { after, upto }.in_volume(inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(ranges: &[(u32, u64, u64)]) -> Region {
        Region::of(ranges.iter().map(|&(inode, start, end)| {
            Region::range(Inode(inode), SectorRange::from_bounds(Sector(start), Sector(end)))
        }))
    }

    #[test]
    fn subtracted_ranges_are_removed() {
        let all = region(&[(0, 0, 100), (1, 10, 20), (0, 50, 120), (2, 0, 8)]);
        let some = region(&[(0, 10, 20), (0, 30, 40), (0, 110, 130), (1, 0, 50)]);
        let left = all.without(&some);
        assert_eq!(left, region(&[(0, 0, 10), (0, 20, 30), (0, 40, 110), (2, 0, 8)]));
        assert!(left.touches(Inode(0), SectorRange::new(Sector(9), 2)));
        assert!(!left.touches(Inode(0), SectorRange::new(Sector(10), 10)));
        assert_eq!(left.in_volume(Inode(2)).collect::<Vec<_>>(), [SectorRange::new(Sector(0), 8)]);
        assert_eq!(left.in_volume(Inode(1)).count(), 0);
    }
}
