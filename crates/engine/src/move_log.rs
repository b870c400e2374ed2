//! A13: the log of a move, on the new device: regions in which it may differ from the old one, if
//! this run ends without a word.
//!
//! ```text
//!  a region may differ ── everything in it is copied, nothing is being written there,
//!     ▲                   both devices are flushed, nothing was written there meanwhile ──▶ the same
//!     │                                                                                       │
//!     └────────────────── before the first write, durably ────────────────────────────────────┘
//! ```

use std::cell::{Cell, RefCell};

use ubcache_env::SectorRange;
use ubcache_env::local::Lock;
use ubcache_format::{MoveRecord, MoveRegions};

/// See the module.
pub(crate) struct MoveLog {
    record: MoveRecord,
    /// The regions as the device is to have them.
    wanted: RefCell<MoveRegions>,
    /// Regions that may differ by what the device has, whatever of a write that is under way lands.
    durable: RefCell<MoveRegions>,
    /// Regions that were written since the last checkpoint began.
    touched: RefCell<MoveRegions>,
    /// The device has a log.
    begun: Cell<bool>,
    /// The turn to write the log.
    pub writing: Lock,
    /// The turn to make a checkpoint.
    pub checkpoint: Lock,
}

/// Adds the regions of a range.
pub(crate) fn add(regions: &mut MoveRegions, range: SectorRange) {
    for region in regions.of(range.start.0, range.end.0) {
        regions.insert(region);
    }
}

impl MoveLog {
    /// A log that the device does not have yet.
    pub fn new(record: MoveRecord, regions: MoveRegions) -> MoveLog {
        let mut none = regions.clone();
        none.clear();
        MoveLog {
            record,
            wanted: RefCell::new(regions),
            durable: RefCell::new(none.clone()),
            touched: RefCell::new(none),
            begun: Cell::new(false),
            writing: Lock::default(),
            checkpoint: Lock::default(),
        }
    }

    /// Number of the attempt.
    pub fn attempt(&self) -> u64 {
        self.record.attempt
    }

    /// The regions that may differ.
    pub fn wanted(&self) -> MoveRegions {
        self.wanted.borrow().clone()
    }

    /// No region of such a log differs.
    fn no_regions(&self) -> MoveRegions {
        let mut none = self.wanted.borrow().clone();
        none.clear();
        none
    }

    /// These may differ as well.
    pub fn merge(&self, regions: &MoveRegions) {
        self.wanted.borrow_mut().merge(regions);
    }

    /// A range is about to be written. Returns true if the device says already that it may differ.
    pub fn touch(&self, range: SectorRange) -> bool {
        add(&mut self.touched.borrow_mut(), range);
        let durable = self.durable.borrow();
        let mut regions = durable.of(range.start.0, range.end.0);
        let said = regions.all(|region| durable.has(region));
        if !said {
            add(&mut self.wanted.borrow_mut(), range);
        }
        said
    }

    /// Returns true if the device has to be written before it says all that it is to say.
    pub fn is_behind(&self) -> bool {
        !self.wanted.borrow().are_in(&self.durable.borrow())
    }

    /// The record and the log as they are to be written, and what the log says then. Regions that
    /// it does not name any more count as the same from now on: a write there has to wait.
    pub fn write_begins(&self) -> (Vec<u8>, MoveRegions) {
        let wanted = self.wanted.borrow();
        self.durable.borrow_mut().intersect(&wanted);
        (self.record.encode_with(&wanted), wanted.clone())
    }

    /// The device has this log.
    pub fn written(&self, regions: MoveRegions) {
        *self.durable.borrow_mut() = regions;
        self.begun.set(true);
    }

    /// Sectors that do not differ by what the device has.
    pub fn settled_sectors(&self) -> u64 {
        let durable = self.durable.borrow();
        let differ = durable.iter().map(|region| durable.sectors(region));
        let differing: u64 = differ.map(|(start, end)| end - start).sum();
        match self.begun.get() {
            true => durable.end().saturating_sub(differing),
            false => 0,
        }
    }

    /// Begins a checkpoint: returns the regions that may differ by the log, and are not `busy`.
    pub fn checkpoint_begins(&self, busy: impl FnOnce(&mut MoveRegions)) -> Option<MoveRegions> {
        self.touched.borrow_mut().clear();
        let (mut is_busy, mut settled) = (self.no_regions(), self.no_regions());
        busy(&mut is_busy);
        let wanted = self.wanted.borrow();
        wanted.iter().filter(|it| !is_busy.has(*it)).for_each(|region| settled.insert(region));
        (!settled.is_empty()).then_some(settled)
    }

    /// Both devices were flushed since: they have the same in these regions, but for those that
    /// were written meanwhile.
    pub fn settle(&self, settled: &MoveRegions) {
        let (mut wanted, touched) = (self.wanted.borrow_mut(), self.touched.borrow());
        settled.iter().filter(|it| !touched.has(*it)).for_each(|region| wanted.remove(region));
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;
    use ubcache_format::{MoveRole, Uuid};

    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    fn write(log: &MoveLog) {
        let (_, regions) = log.write_begins();
        log.written(regions);
    }

    #[test]
    fn a_region_is_logged_before_it_is_written_and_until_both_devices_are_flushed() {
        let (role, uuid) = (MoveRole::Target, Uuid([7; 16]));
        let record = MoveRecord { role, uuid, time: 1, attempt: 5, other: String::new() };
        let log = MoveLog::new(record, MoveRegions::all(64, 8));
        assert!(log.is_behind(), "nothing is on the device");
        write(&log);
        assert!(!log.is_behind() && log.touch(range(0, 64)));
        assert_eq!(log.settled_sectors(), 0);

        // Regions 2 to 7 have not been copied, and region 1 is written meanwhile.
        let settled = log.checkpoint_begins(|busy| add(busy, range(16, 64))).expect("two regions");
        assert!(log.touch(range(9, 10)));
        log.settle(&settled);
        let (_, regions) = log.write_begins();
        assert!(!log.touch(range(0, 1)), "it may be on the device that region 0 is the same");
        assert!(log.touch(range(8, 16)));
        log.written(regions);
        assert_eq!(log.settled_sectors(), 8);
        assert!(log.is_behind(), "region 0 is written");
        write(&log);
        assert!(log.touch(range(0, 1)));
    }
}
