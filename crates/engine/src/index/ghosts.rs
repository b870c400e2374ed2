//! Ghosts: ranges of a volume whose key was removed or replaced by a record. Until that record is
//! durable, a crash brings the old key back.
//!
//! Nearly every write leaves one, and only writes that go past the cache ask for them. So they are
//! noted as they come, and put into a map when somebody asks.

use ubcache_env::{IntervalMap, SectorRange};
use ubcache_format::JournalSeq;

/// Beyond this many ghosts the journal is made durable to lay them.
const GHOSTS_MAX: usize = 4096;

#[derive(Default, Debug)]
pub(crate) struct Ghosts {
    map: IntervalMap<JournalSeq>,
    /// Not in the map yet.
    noted: Vec<(SectorRange, JournalSeq)>,
    pub(crate) newest: JournalSeq,
    /// Number of ghosts after the latest round of laying.
    left: usize,
}

impl Ghosts {
    /// This record removed or replaced a key over the range.
    pub fn note(&mut self, range: SectorRange, seq: JournalSeq) {
        // Replay of a leaf may come after newer changes of others.
        self.newest = self.newest.max(seq);
        match self.noted.last_mut() {
            Some((last, last_seq)) if *last_seq == seq && last.end == range.start => {
                last.end = range.end
            }
            _ => self.noted.push((range, seq)),
        }
    }

    /// Number of ghosts in memory.
    pub fn count(&self) -> usize {
        self.map.intervals() + self.noted.len()
    }

    /// It is time to lay some.
    pub fn above_high_water(&self) -> bool {
        self.count() > GHOSTS_MAX.max(self.left + GHOSTS_MAX / 2)
    }

    /// Forgets those whose record is durable. Says whether there are many all the same.
    pub fn lay(&mut self, durable: JournalSeq) -> bool {
        self.map.retain(|_, seq| seq > durable);
        self.noted.retain(|&(_, seq)| seq > durable);
        // A range that is written again and again counts once.
        self.noted
            .sort_unstable_by_key(|&(range, seq)| (range.start, range.end, std::cmp::Reverse(seq)));
        self.noted.dedup_by_key(|&mut (range, _)| range);
        self.left = self.count();
        self.left > GHOSTS_MAX
    }

    /// The newest record that removed or replaced a key over the range, if it is not durable.
    pub fn newest_over(&mut self, range: SectorRange, durable: JournalSeq) -> Option<JournalSeq> {
        if self.newest <= durable {
            self.map.clear();
            self.noted.clear();
            return None;
        }
        // The newest is what counts for a sector.
        self.noted.sort_by_key(|&(_, seq)| seq);
        for (range, seq) in self.noted.drain(..) {
            self.map.insert(range, seq);
        }
        self.map.overlapping(range).map(|(_, seq)| seq).filter(|&seq| seq > durable).max()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use ubcache_env::Sector;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    proptest! {
        /// The newest record of each sector is known, whenever some are laid and somebody asks.
        #[test]
        fn newest_record_over_a_range_is_returned(
            steps in prop::collection::vec((0u64..60, 1u64..12, 0u64..6, 0u8..8), 1..60),
        ) {
            let mut ghosts = Ghosts::default();
            let mut model = [JournalSeq(0); 80];
            let mut durable = JournalSeq(0);
            for (index, &(start, len, behind, kind)) in steps.iter().enumerate() {
                let seq = JournalSeq(1 + index as u64 / 3);
                match kind {
                    0 => {
                        durable = durable.max(JournalSeq(seq.0.saturating_sub(behind)));
                        ghosts.lay(durable);
                    }
                    1 => {
                        let over = model[start as usize..(start + len) as usize].iter().copied();
                        let expected = over.filter(|&seq| seq > durable).max();
                        prop_assert_eq!(ghosts.newest_over(range(start, len), durable), expected);
                    }
                    // Replay of a leaf that is read late: long durable, and never over what was
                    // changed since.
                    2 => ghosts.note(range(100 + start, len), durable),
                    _ => {
                        ghosts.note(range(start, len), seq);
                        model[start as usize..(start + len) as usize].fill(seq);
                    }
                }
            }
            let expected = model.into_iter().filter(|&seq| seq > durable).max();
            prop_assert_eq!(ghosts.newest_over(range(0, 80), durable), expected);
        }
    }

    #[test]
    fn ghosts_stay_above_high_water_until_durable() {
        let mut ghosts = Ghosts::default();
        // The same blocks again and again.
        for round in 0..10 {
            for block in 0..1000 {
                ghosts.note(range(16 * block, 8), JournalSeq(1 + round));
                assert!(
                    !ghosts.above_high_water() || !ghosts.lay(JournalSeq(0)),
                    "a thousand blocks"
                );
            }
        }
        assert!(ghosts.count() <= GHOSTS_MAX);
        assert!(!ghosts.lay(JournalSeq(10)));
        assert_eq!(ghosts.count(), 0);
        // One run of blocks.
        (0..10_000).for_each(|block| ghosts.note(range(8 * block, 8), JournalSeq(11)));
        assert_eq!(ghosts.count(), 1);
        let mut rounds = 0;
        for block in 0..=2 * GHOSTS_MAX as u64 {
            ghosts.note(range(16 * block, 8), JournalSeq(12));
            if ghosts.above_high_water() {
                ghosts.lay(JournalSeq(11));
                rounds += 1;
            }
        }
        assert!(ghosts.lay(JournalSeq(11)), "all but one run wait for the journal");
        assert!((2..4).contains(&rounds), "now and then, not with every one: {rounds}");
        assert!(!ghosts.lay(JournalSeq(12)));
        assert_eq!(ghosts.count(), 0);
    }
}
