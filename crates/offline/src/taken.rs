//! Which sectors of a device are taken, and whether one is twice.
//!
//! Nearly all extents begin and end at multiples of 8 sectors. For these there is a bit for 8 sectors, so that all bits
//! together stay in the nearest memory of the processor; a bit for each sector is there for the rest.

/// Sectors of a unit.
const UNIT: u64 = 8;
/// Units that are marked together.
const AT_ONCE: usize = 1024;

/// Which sectors are taken.
#[derive(Debug)]
pub(crate) struct Taken {
    sectors: u64,
    /// A bit for each whole unit that was taken.
    units: Vec<u64>,
    /// Single units that were taken and are not marked yet. The marks are all over a memory that is not the nearest: in a
    /// loop that does nothing else, the processor waits for many of them at once.
    waiting: Vec<u32>,
    /// A bit for each sector of units that were taken in part; empty if there are none.
    single: Vec<u64>,
}

impl Taken {
    /// None of so many sectors.
    pub fn new(sectors: u64) -> Taken {
        // Written at once: where memory is read first, each page of it costs twice.
        let units = std::iter::repeat_n(0, words(sectors.div_ceil(UNIT))).collect();
        Taken { sectors, units, waiting: Vec::with_capacity(AT_ONCE), single: Vec::new() }
    }

    /// Takes sectors; says whether some are known to be taken already. [`settle`](Taken::settle) and
    /// [`is_in_both`](Taken::is_in_both) tell the rest.
    #[inline]
    pub fn take(&mut self, start: u64, end: u64) -> bool {
        if start.is_multiple_of(UNIT)
            && end - start == UNIT
            && let Ok(unit) = u32::try_from(start / UNIT)
        {
            self.waiting.push(unit);
            return self.waiting.len() >= AT_ONCE && self.settle();
        }
        self.take_some(start, end)
    }

    /// Marks what waits; says whether some of it is known to be taken already.
    pub fn settle(&mut self) -> bool {
        let (units, mut twice) = (self.units.as_mut_slice(), false);
        for &unit in &self.waiting {
            match units.get_mut(unit as usize / 64) {
                Some(word) => {
                    let bit = 1 << (unit % 64);
                    twice |= *word & bit != 0;
                    *word |= bit;
                }
                None => twice = true,
            }
        }
        self.waiting.clear();
        twice
    }

    fn take_some(&mut self, start: u64, end: u64) -> bool {
        if start.is_multiple_of(UNIT) && end.is_multiple_of(UNIT) {
            return set(&mut self.units, start / UNIT, end / UNIT);
        }
        if self.single.is_empty() {
            self.single.resize(words(self.sectors), 0);
        }
        let (first, last) = (start.next_multiple_of(UNIT), end / UNIT * UNIT);
        if first >= last {
            return set(&mut self.single, start, end);
        }
        let twice = set(&mut self.single, start, first) | set(&mut self.single, last, end);
        set(&mut self.units, first / UNIT, last / UNIT) | twice
    }

    /// Takes what another one has taken, of which nothing waits any more; says whether sectors are known to be taken twice.
    pub fn add(&mut self, other: &Taken) -> bool {
        if self.single.is_empty() {
            self.single.resize(other.single.len(), 0);
        }
        let twice = join(&mut self.units, &other.units) | join(&mut self.single, &other.single);
        twice | self.is_in_both()
    }

    /// Whether sectors are taken twice: with their unit, and apart.
    pub fn is_in_both(&self) -> bool {
        let unit = |unit: usize| self.units.get(unit / 64).is_some_and(|word| word >> (unit % 64) & 1 != 0);
        self.single
            .iter()
            .enumerate()
            .filter(|(_, word)| **word != 0)
            .any(|(index, word)| (0..8).any(|byte| word >> (8 * byte) & 0xFF != 0 && unit(8 * index + byte)))
    }
}

fn words(bits: u64) -> usize {
    bits.div_ceil(64) as usize
}

fn join(bits: &mut [u64], others: &[u64]) -> bool {
    bits.iter_mut().zip(others).fold(false, |twice, (word, other)| {
        let both = *word & other;
        *word |= other;
        twice | (both != 0)
    })
}

/// Sets bits; says whether some of them were set, or are not there.
#[inline]
fn set(bits: &mut [u64], start: u64, end: u64) -> bool {
    let mut twice = false;
    let mut at = start;
    while at < end {
        let count = ((at / 64 + 1) * 64).min(end) - at;
        let mask = u64::MAX >> (64 - count) << (at % 64);
        let Some(word) = bits.get_mut((at / 64) as usize) else { return true };
        twice |= *word & mask != 0;
        *word |= mask;
        at += count;
    }
    twice
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_set_once() {
        let mut bits = vec![0; 3];
        for (start, end, twice) in [
            (0, 1, false),
            (60, 70, false),
            (1, 60, false),
            (70, 192, false),
            (128, 129, true),
            (190, 200, true),
        ] {
            assert_eq!(set(&mut bits, start, end), twice, "{start} to {end}");
        }
        assert_eq!(bits, [u64::MAX; 3]);
        assert!(set(&mut bits, 192, 193), "behind the end nothing is known");
        assert!(!set(&mut bits, 64, 64));
    }

    proptest! {
        /// It agrees with a list of sectors, whoever took them.
        #[test]
        fn agrees_with_single_sectors(
            extents in proptest::collection::vec((0_u64..40, 0_u64..8, 1_u64..30, 0_usize..3), 0..8),
            whole: bool,
        ) {
            let mut all = [Taken::new(400), Taken::new(400), Taken::new(400)];
            let (mut twice, mut expected) = (false, false);
            let mut model = [false; 400];
            for (unit, inside, sectors, who) in extents {
                let start = unit * UNIT + if whole { 0 } else { inside };
                let end = start + if whole { sectors.next_multiple_of(UNIT) } else { sectors };
                twice |= all[who].take(start, end);
                for sector in &mut model[start as usize..end as usize] {
                    expected |= std::mem::replace(sector, true);
                }
            }
            for taken in &mut all {
                twice |= taken.settle();
            }
            let [mut first, second, third] = all;
            twice |= first.is_in_both() | first.add(&second) | first.add(&third);
            prop_assert_eq!(twice, expected);
        }
    }
}
