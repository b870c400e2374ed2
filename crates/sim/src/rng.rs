//! Random numbers from a seed: xoshiro256++, seeded by splitmix64.
//!
//! Every part of the world has its own generator, forked by name, so that a change in one part
//! (one operation less, one task more) does not change what the others draw.

/// A deterministic generator of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

/// One step of splitmix64: a good mixer of 64 bits.
pub const fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Rng {
        let mut state = [0; 4];
        let mut at = seed;
        for word in &mut state {
            at = mix(at);
            *word = at;
        }
        Rng { state }
    }

    /// An independent generator for the part of the world with this name.
    pub fn fork(seed: u64, name: &str) -> Rng {
        let name = name.bytes().fold(0x51_7cc1_b727_220a, |hash, byte| mix(hash ^ u64::from(byte)));
        Rng::new(mix(seed) ^ name)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// A number from `low` to `high` whose logarithm is uniform: small ones are as likely as big
    /// ones.
    pub fn scale(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let doublings = (high / low).max(1).ilog2();
        let base = low << self.below(u64::from(doublings) + 1);
        self.between(base, base.saturating_mul(2).min(high.max(low)))
    }

    /// True in `times` of `of` cases.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// One of the choices.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut rng = Rng::new(7);
        for _ in 0..10_000 {
            assert!(rng.below(3) < 3);
            assert!((5..=9).contains(&rng.between(5, 9)));
            assert!((20..=5000).contains(&rng.scale(20, 5000)));
        }
        assert_ne!(Rng::fork(1, "a").bits(), Rng::fork(1, "b").bits());
        assert_eq!(Rng::fork(1, "a").bits(), Rng::fork(1, "a").bits());
    }
}
