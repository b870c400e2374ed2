//! A11: sectors in which a backing device and the one that its volume moves to may differ.
//!
//! ```text
//!   missing ──▶ a copier takes a part and a turn over it: reads the old device, writes the new one
//!      ▲
//!      └── a write that failed on the old device, or a discard: what it left there is not known
//! ```
//!
//! A write has a turn over its range as well, and goes to both devices. So a sector that is not
//! missing, and over which nobody has a turn, is the same on both.

use std::cell::{Cell, RefCell};

use smallvec::smallvec;
use ubcache_env::local::Notify;
use ubcache_env::{IntervalSet, Sector, SectorRange};
use ubcache_format::MoveRegions;

use crate::errors::MoveEnd;
use crate::move_log::add;
use crate::write_turns::{Turn, Turns};

/// See the module.
pub(crate) struct Mirror {
    /// The sectors that are copied: those of the volume.
    whole: SectorRange,
    /// A part that is copied has at most so many, and ends at a multiple of it.
    part_sectors: u64,
    missing: RefCell<IntervalSet>,
    turns: Turns,
    end: RefCell<Option<MoveEnd>>,
    copied_sectors: Cell<u64>,
    /// Wakes copiers that wait: the move has ended, or their speed has changed.
    pub woken: Notify,
}

impl Mirror {
    /// The sectors of these regions may differ.
    pub fn new(whole: SectorRange, part_sectors: u64, regions: &MoveRegions) -> Mirror {
        let mirror = Mirror {
            whole,
            part_sectors,
            missing: RefCell::default(),
            turns: Turns::default(),
            end: RefCell::default(),
            copied_sectors: Cell::new(0),
            woken: Notify::default(),
        };
        mirror.add_missing(regions);
        mirror
    }

    /// The sectors of these regions may differ as well.
    pub fn add_missing(&self, regions: &MoveRegions) {
        let mut missing = self.missing.borrow_mut();
        for region in regions.iter() {
            let (start, end) = regions.sectors(region);
            let (start, end) =
                (Sector(start).max(self.whole.start), Sector(end).min(self.whole.end));
            if start < end {
                missing.insert(SectorRange::from_bounds(start, end));
            }
        }
    }

    /// Returns true if a change of the range concerns the new device.
    pub fn concerns(&self, range: SectorRange) -> bool {
        self.whole.overlaps(&range)
    }

    /// Adds the regions that are not known to be the same now: they are to be copied, or are being
    /// written.
    pub fn add_busy(&self, regions: &mut MoveRegions) {
        self.missing.borrow().iter().for_each(|range| add(regions, range));
        self.turns.for_each(|range| add(regions, range));
    }

    /// Takes a turn over a range; later ones over any of it wait.
    pub fn turn(&self, range: SectorRange) -> Turn {
        self.turns.take(range, smallvec![range])
    }

    /// Returns true if any part of the range has been copied, so that a write of it has to go to
    /// both devices.
    pub fn has_copied(&self, range: SectorRange) -> bool {
        self.end.borrow().is_none() && !self.missing.borrow().covers(range)
    }

    /// Sectors of a part, at most.
    pub fn part_sectors(&self) -> u64 {
        self.part_sectors
    }

    /// The range may differ from now on. It is rounded to whole parts: many small ones would take a
    /// part each, and memory.
    pub fn may_differ(&self, range: SectorRange) {
        let part = self.part_sectors;
        let start = Sector(range.start.0 / part * part).max(self.whole.start);
        let end = Sector(range.end.0.next_multiple_of(part)).min(self.whole.end);
        if start < end {
            self.missing.borrow_mut().insert(SectorRange::from_bounds(start, end));
        }
    }

    /// The next part to be copied, with its turn, which may have to be waited for.
    pub fn next_part(&self) -> Option<(SectorRange, Turn)> {
        let mut missing = self.missing.borrow_mut();
        let first = missing.iter().next()?;
        // Parts end where any request of a device may end.
        let end = (first.start.0 + 1).next_multiple_of(self.part_sectors);
        let range = SectorRange::from_bounds(first.start, first.end.min(Sector(end)));
        missing.remove(range);
        Some((range, self.turn(range)))
    }

    /// A part was copied.
    pub fn copied(&self, range: SectorRange) {
        self.copied_sectors.set(self.copied_sectors.get() + range.sectors());
    }

    /// Sectors that are still to be copied.
    pub fn missing_sectors(&self) -> u64 {
        self.missing.borrow().sectors()
    }

    /// Sectors that were copied so far, some of them more than once.
    pub fn copied_sectors(&self) -> u64 {
        self.copied_sectors.get()
    }

    /// All sectors that are copied.
    pub fn whole(&self) -> SectorRange {
        self.whole
    }

    /// Ends the move; the first reason counts. The new device is not written any more.
    pub fn end(&self, why: MoveEnd) {
        self.end.borrow_mut().get_or_insert(why);
        self.woken.notify_all();
    }

    /// Waits until it has ended.
    pub async fn over(&self) {
        loop {
            let woken = self.woken.notified();
            if self.ended().is_some() {
                return;
            }
            woken.await;
        }
    }

    /// The reason why it has ended.
    pub fn ended(&self) -> Option<MoveEnd> {
        self.end.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::IoError;

    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    #[test]
    fn a_move_that_goes_on_copies_the_regions_that_may_differ() {
        let mut regions = MoveRegions::none(300, 128);
        regions.insert(0);
        regions.insert(2);
        let mirror = Mirror::new(range(16, 300), 128, &regions);
        assert_eq!(mirror.missing_sectors(), 112 + 44);
        let (part, turn) = mirror.next_part().expect("a part");
        assert_eq!(part, range(16, 128));
        regions.clear();
        mirror.add_busy(&mut regions);
        assert_eq!(regions.iter().collect::<Vec<_>>(), [0, 2], "one is being copied");
        drop(turn);
        regions.clear();
        mirror.add_busy(&mut regions);
        assert_eq!(regions.iter().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn parts_are_taken_in_order_and_what_may_differ_comes_again() {
        let mirror = Mirror::new(range(16, 300), 128, &MoveRegions::all(300, 128));
        assert!(!mirror.concerns(range(8, 16)) && mirror.concerns(range(8, 17)));
        assert!(!mirror.has_copied(range(16, 24)));
        let (part, turn) = mirror.next_part().expect("a part");
        assert_eq!(part, range(16, 128));
        assert!(mirror.has_copied(range(120, 136)) && !mirror.has_copied(range(128, 136)));
        drop(turn);
        mirror.copied(part);
        assert_eq!((mirror.copied_sectors(), mirror.missing_sectors()), (112, 172));
        assert_eq!(mirror.next_part().expect("a part").0, range(128, 256));
        mirror.may_differ(range(0, 20));
        assert_eq!(mirror.next_part().expect("a part").0, range(16, 128), "whole parts");
        assert_eq!(mirror.next_part().expect("a part").0, range(256, 300));
        assert!(mirror.next_part().is_none());
        mirror.end(MoveEnd::Cancelled);
        mirror.end(MoveEnd::OldLoses(IoError::Gone));
        assert_eq!(mirror.ended(), Some(MoveEnd::Cancelled));
        assert!(!mirror.has_copied(range(16, 24)));
    }
}
