//! Polls that cost what they do.
//!
//! Caches of plans are small: what would take a second for millions of buckets is over in a
//! microsecond. So in some plans a step of a loop is expensive, and the engine is told to give
//! others a turn after few of them. A poll that takes many more steps than that ignores that, and
//! its duration would grow with the cache.

use ubcache_env::Nanos;

use super::Plan;
use crate::rng::Rng;

/// Steps of a poll beside a slice of a loop.
const STEPS_BESIDE: u64 = 192;

/// Speed of the program, and the length of a slice.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Pace {
    /// Duration of a step of a loop.
    pub step_cost: Nanos,
    /// Steps after which a loop lets others have their turn; 0: as many as in production.
    pub slice: u32,
}

impl Pace {
    /// A poll of more steps is a violation.
    pub fn poll_steps_max(self) -> u64 {
        match self.slice {
            0 => u64::MAX,
            slice => 3 * u64::from(slice) + STEPS_BESIDE,
        }
    }
}

/// Lets work take time in some of the plans.
pub(super) fn slow_down(plan: &mut Plan, rng: &mut Rng) {
    if rng.chance(1, 5) {
        let step_cost = Nanos(rng.pick(&[0, 100, 10_000]));
        plan.pace = Pace { step_cost, slice: rng.pick(&[32, 64]) };
    }
}
