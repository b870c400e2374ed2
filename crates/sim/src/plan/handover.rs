//! Runs of the Linux driver between two runs of ubcache.

use std::fmt;

use super::{AfterStart, ControlAction, Plan};
use crate::rng::Rng;

/// Actions of the driver while it has the set.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DriverRun {
    /// Journal entries that it writes, as far as there is room.
    pub entries: u32,
    /// The first of them is in the buffer that it had read the journal into.
    pub read_buffer_first: bool,
    /// The ubcache that ran before was an early one, whose marks are not bound to their entries.
    pub after_0_1: bool,
    /// It is killed: dirty keys stay although their bucket was given away.
    pub killed: bool,
}

impl fmt::Display for DriverRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DriverRun { entries, read_buffer_first, after_0_1, killed } = self;
        write!(f, "driver entries={entries}")?;
        for (said, word) in [
            (read_buffer_first, " read-buffer-first"),
            (after_0_1, " after-0.1"),
            (killed, " killed"),
        ] {
            f.write_str(if *said { word } else { "" })?;
        }
        Ok(())
    }
}

/// Gives the set to the driver in some of the plans, once or twice.
pub(super) fn hand_over(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(1, 8) {
        return;
    }
    for _ in 0..rng.between(1, 2) {
        let run = DriverRun {
            entries: rng.pick(&[1, 1, 2, 3, 4, 7]),
            read_buffer_first: rng.chance(1, 2),
            after_0_1: rng.chance(1, 4),
            killed: rng.chance(1, 3),
        };
        let again =
            rng.chance(1, 6).then(|| ubcache_env::Nanos::from_micros(rng.scale(10, 20_000)));
        let after = AfterStart { check: rng.chance(3, 4), again };
        super::faults::add_control(plan, ControlAction::Driver(run, after), rng);
    }
}
