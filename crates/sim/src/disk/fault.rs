//! Which I/Os fail.

use ubcache_env::SectorRange;

use crate::rng::Rng;

/// How many of a million I/Os fail.
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

/// The errors of one disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Rates outside the zones.
    pub rates: Rates,
    /// Zones with rates of their own; the first that overlaps an I/O counts.
    pub zones: Vec<(SectorRange, Rates)>,
    /// No more errors than this are injected.
    pub budget: u32,
}

/// What becomes of an I/O.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Success,
    Failure,
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
    pub(super) fn draw(&mut self, rng: &mut Rng, class: Class, range: SectorRange) -> Fate {
        if self.budget == 0 {
            return Fate::Success;
        }
        let zone = self.zones.iter().find(|(zone, _)| zone.overlaps(&range));
        let rates = zone.map_or(self.rates, |(_, rates)| *rates);
        let rate = match class {
            Class::Read => rates.read,
            Class::Write => rates.write,
            Class::Flush => rates.flush,
        };
        let fate = if rate > 0 && rng.chance(u64::from(rate), 1_000_000) {
            Fate::Failure
        } else if class == Class::Read && rates.latent > 0 && rng.chance(u64::from(rates.latent), 1_000_000) {
            Fate::Latent
        } else {
            return Fate::Success;
        };
        self.budget -= 1;
        fate
    }
}
