//! Memory for I/O, as far as there is some.

use crate::rng::Rng;

/// When a request for memory is refused.
pub(super) struct Memory {
    rng: Rng,
    /// Rate in a million.
    pub rate: u32,
    /// No more than this are refused by the rate.
    pub budget: u32,
    /// Until this moment every one is refused.
    pub none_until: u64,
}

impl Memory {
    pub fn plenty(seed: u64) -> Memory {
        Memory { rng: Rng::fork(seed, "memory"), rate: 0, budget: 0, none_until: 0 }
    }

    pub fn has_some(&mut self, now: u64) -> bool {
        if now < self.none_until {
            return false;
        }
        let refused =
            self.budget > 0 && self.rate > 0 && self.rng.chance(u64::from(self.rate), 1_000_000);
        self.budget -= u32::from(refused);
        !refused
    }
}
