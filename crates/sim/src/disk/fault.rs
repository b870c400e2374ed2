//! Faults: which I/Os fail, and when.

use ubcache_env::{IoError, SectorRange};

use crate::rng::Rng;

pub(super) const EIO: i32 = 5;
const EROFS: i32 = 30;
pub(super) const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// I/Os of a million that fail.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Reads that fail this time.
    pub read: u32,
    /// Writes (also of zeroes, and discards) that fail; each of their sectors may have landed.
    pub write: u32,
    /// Flushes that fail and make nothing durable.
    pub flush: u32,
    /// Reads that fail because a sector has become unreadable until it is rewritten.
    pub latent: u32,
}

/// Errors in a part of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneFaults {
    /// The I/Os that touch these sectors; none: every I/O, flushes too.
    pub zone: Option<SectorRange>,
    /// Frequencies of the faults.
    pub rates: Rates,
    /// No more errors than this are injected.
    pub budget: u32,
}

/// The errors of one disk: each zone draws for itself, and one that fails is enough.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// The zones; they may overlap.
    pub zones: Vec<ZoneFaults>,
}

/// Fault of a disk as a whole.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outage {
    /// Every I/O ends with an error; what has landed stays.
    Errors,
    /// Reads and flushes work, everything else ends with an error: what a worn out flash device
    /// does.
    ReadOnly,
    /// Pulled out, and its cache has lost what was not flushed.
    Gone,
    /// The file system below is full: writes of what was never written before end with an error. No
    /// start ends it.
    Full,
    /// No write has room, not even over what is there, as on a file system that never writes in
    /// place.
    Quota,
}

impl Outage {
    /// Error of an I/O that does not go through.
    pub(super) fn error(self, class: Class) -> Option<IoError> {
        match self {
            Outage::Errors => Some(IoError::Os(EIO)),
            Outage::ReadOnly if class == Class::Write => Some(IoError::Os(EROFS)),
            Outage::ReadOnly => None,
            Outage::Gone => Some(IoError::Gone),
            Outage::Quota if class == Class::Write => Some(IoError::Os(EDQUOT)),
            // The disk knows the sectors that have no room.
            Outage::Full | Outage::Quota => None,
        }
    }
}

/// Fate of an I/O.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Success,
    Failure,
    /// A write finds no space.
    NoSpace,
    /// A read fails, and goes on failing.
    Latent,
}

#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Write,
    Flush,
}

impl Faults {
    /// Errors anywhere on the disk.
    pub fn everywhere(rates: Rates, budget: u32) -> Faults {
        Faults { zones: vec![ZoneFaults { zone: None, rates, budget }] }
    }

    pub(super) fn draw(&mut self, rng: &mut Rng, class: Class, range: SectorRange) -> Fate {
        for zone in &mut self.zones {
            let concerned = zone.zone.is_none_or(|zone| zone.overlaps(&range));
            if !concerned || zone.budget == 0 {
                continue;
            }
            let fate = zone.rates.draw(rng, class);
            if fate != Fate::Success {
                zone.budget -= 1;
                return fate;
            }
        }
        Fate::Success
    }
}

impl Rates {
    fn draw(self, rng: &mut Rng, class: Class) -> Fate {
        let rate = match class {
            Class::Read => self.read,
            Class::Write => self.write,
            Class::Flush => self.flush,
        };
        if rate > 0 && rng.chance(u64::from(rate), 1_000_000) {
            Fate::Failure
        } else if class == Class::Read
            && self.latent > 0
            && rng.chance(u64::from(self.latent), 1_000_000)
        {
            Fate::Latent
        } else {
            Fate::Success
        }
    }
}
