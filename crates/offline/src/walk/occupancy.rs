//! Occupancy of sectors, and sectors that are occupied twice.
//!
//! Nearly all extents begin and end at multiples of 8 sectors. For these there is a bit for 8
//! sectors, so that all bits together stay in the nearest memory of the processor; a bit for each
//! sector is there for the rest.

/// Sectors of a unit.
const UNIT: u64 = 8;
/// Units that are marked together.
const AT_ONCE: usize = 1024;

/// Occupied sectors of a device.
#[derive(Debug)]
pub(crate) struct Occupancy {
    sectors: u64,
    /// A bit for each whole unit that is occupied.
    units: Vec<u64>,
    /// Single units that are occupied and not marked yet. Marks are spread over memory that is not
    /// in the nearest cache: in a loop that does nothing else, the processor waits for many of them
    /// at once.
    pending: Vec<u32>,
    /// A bit for each sector of units that are occupied in part; empty if there are none.
    single: Vec<u64>,
}

impl Occupancy {
    /// None of so many sectors.
    pub fn new(sectors: u64) -> Occupancy {
        // Written at once: a page that is read first is faulted in twice.
        let units = std::iter::repeat_n(0, words(sectors.div_ceil(UNIT))).collect();
        Occupancy { sectors, units, pending: Vec::with_capacity(AT_ONCE), single: Vec::new() }
    }

    /// Occupies sectors. Returns true if some are known to be occupied already;
    /// [`apply_pending`](Occupancy::apply_pending) and
    /// [`has_mixed_overlap`](Occupancy::has_mixed_overlap) find the rest.
    #[inline]
    pub fn occupy(&mut self, start: u64, end: u64) -> bool {
        if start.is_multiple_of(UNIT)
            && end - start == UNIT
            && let Ok(unit) = u32::try_from(start / UNIT)
        {
            self.pending.push(unit);
            return self.pending.len() >= AT_ONCE && self.apply_pending();
        }
        self.occupy_range(start, end)
    }

    /// Marks pending units. Returns true if one was occupied already.
    pub fn apply_pending(&mut self) -> bool {
        let (units, mut overlap) = (self.units.as_mut_slice(), false);
        for &unit in &self.pending {
            match units.get_mut(unit as usize / 64) {
                Some(word) => {
                    let bit = 1 << (unit % 64);
                    overlap |= *word & bit != 0;
                    *word |= bit;
                }
                None => overlap = true,
            }
        }
        self.pending.clear();
        overlap
    }

    fn occupy_range(&mut self, start: u64, end: u64) -> bool {
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
        let overlap = set(&mut self.single, start, first) | set(&mut self.single, last, end);
        set(&mut self.units, first / UNIT, last / UNIT) | overlap
    }

    /// Merges another occupancy, which has nothing pending. Returns true if sectors are known to be
    /// occupied twice.
    pub fn merge(&mut self, other: &Occupancy) -> bool {
        if self.single.is_empty() {
            self.single.resize(other.single.len(), 0);
        }
        let overlap = join(&mut self.units, &other.units) | join(&mut self.single, &other.single);
        overlap | self.has_mixed_overlap()
    }

    /// Returns true if a sector is occupied with its unit, and alone.
    pub fn has_mixed_overlap(&self) -> bool {
        let unit = |unit: usize| {
            self.units.get(unit / 64).is_some_and(|word| word >> (unit % 64) & 1 != 0)
        };
        self.single.iter().enumerate().filter(|(_, word)| **word != 0).any(|(index, word)| {
            (0..8).any(|byte| word >> (8 * byte) & 0xFF != 0 && unit(8 * index + byte))
        })
    }
}

fn words(bits: u64) -> usize {
    bits.div_ceil(64) as usize
}

fn join(bits: &mut [u64], others: &[u64]) -> bool {
    bits.iter_mut().zip(others).fold(false, |overlap, (word, other)| {
        let both = *word & other;
        *word |= other;
        overlap | (both != 0)
    })
}

/// Sets bits. Returns true if some were set already, or do not exist.
#[inline]
fn set(bits: &mut [u64], start: u64, end: u64) -> bool {
    let mut overlap = false;
    let mut at = start;
    while at < end {
        let count = ((at / 64 + 1) * 64).min(end) - at;
        let mask = u64::MAX >> (64 - count) << (at % 64);
        let Some(word) = bits.get_mut((at / 64) as usize) else { return true };
        overlap |= *word & mask != 0;
        *word |= mask;
        at += count;
    }
    overlap
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn setting_bits_twice_reports_an_overlap() {
        let mut bits = vec![0; 3];
        for (start, end, overlap) in [
            (0, 1, false),
            (60, 70, false),
            (1, 60, false),
            (70, 192, false),
            (128, 129, true),
            (190, 200, true),
        ] {
            assert_eq!(set(&mut bits, start, end), overlap, "{start} to {end}");
        }
        assert_eq!(bits, [u64::MAX; 3]);
        assert!(set(&mut bits, 192, 193), "behind the end nothing is known");
        assert!(!set(&mut bits, 64, 64));
    }

    proptest! {
        /// It agrees with a list of sectors, merged from three occupancies.
        #[test]
        fn occupancy_agrees_with_single_sectors(
            extents in proptest::collection::vec((0_u64..40, 0_u64..8, 1_u64..30, 0_usize..3),
                0..8),
            whole: bool,
        ) {
            let mut all = [Occupancy::new(400), Occupancy::new(400), Occupancy::new(400)];
            let (mut overlap, mut expected) = (false, false);
            let mut model = [false; 400];
            for (unit, inside, sectors, who) in extents {
                let start = unit * UNIT + if whole { 0 } else { inside };
                let end = start + if whole { sectors.next_multiple_of(UNIT) } else { sectors };
                overlap |= all[who].occupy(start, end);
                for sector in &mut model[start as usize..end as usize] {
                    expected |= std::mem::replace(sector, true);
                }
            }
            for taken in &mut all {
                overlap |= taken.apply_pending();
            }
            let [mut first, second, third] = all;
            overlap |= first.has_mixed_overlap() | first.merge(&second) | first.merge(&third);
            prop_assert_eq!(overlap, expected);
        }
    }
}
