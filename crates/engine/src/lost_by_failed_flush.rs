//! Places of the cache device whose content a failed flush may have cost (J3).
//!
//! Names come after data (J1), so what is lost is named by memory alone: by keys whose record is
//! not durable, and by copies. Reads of it fail. Then nobody serves it or writes it to a backing
//! device, whoever asks.

use std::collections::VecDeque;

use ubcache_env::{IntervalSet, SectorRange};

/// More ranges than this that wait for a flush are as good as the whole device.
const RANGES_MAX: usize = 1 << 16;

/// See the module. Writes have numbers, in the order of their completion.
#[derive(Default, Debug)]
pub(crate) struct LostPlaces {
    /// Ranges written since the last good flush, each with the number of its write.
    recent: VecDeque<(u64, SectorRange)>,
    /// Up to this number more was written than is kept apart.
    anywhere: u64,
    /// Up to this number a flush was asked for.
    asked: u64,
    lost: Option<Lost>,
}

#[derive(Debug)]
enum Lost {
    Anything,
    Ranges(IntervalSet),
}

impl LostPlaces {
    /// A write completed that is not durable.
    pub fn written(&mut self, number: u64, range: SectorRange) {
        if let Some(Lost::Ranges(lost)) = &mut self.lost {
            // It was under way when the flush failed.
            lost.insert(range);
            return;
        }
        let full = self.recent.len() == RANGES_MAX;
        match self.recent.back_mut() {
            Some((last, before)) if *last > self.asked && before.end == range.start => {
                (*last, before.end) = (number, range.end);
            }
            _ if full => {
                self.recent.clear();
                self.anywhere = number;
            }
            _ => self.recent.push_back((number, range)),
        }
    }

    /// A flush is submitted that covers the writes up to this number.
    pub fn flush_begins(&mut self, number: u64) {
        self.asked = self.asked.max(number);
    }

    /// It succeeded.
    pub fn flushed(&mut self, number: u64) {
        while self.recent.front().is_some_and(|(written, _)| *written <= number) {
            self.recent.pop_front();
        }
        if self.anywhere <= number {
            self.anywhere = 0;
        }
    }

    /// A flush failed.
    pub fn flush_failed(&mut self) {
        if self.anywhere > 0 {
            self.lost = Some(Lost::Anything);
        }
        if self.lost.is_none() {
            let mut lost = IntervalSet::default();
            self.recent.drain(..).for_each(|(_, range)| lost.insert(range));
            self.lost = Some(Lost::Ranges(lost));
        }
    }

    /// Returns true if the content of any of the range may be lost.
    pub fn overlap(&self, range: SectorRange) -> bool {
        match &self.lost {
            None => false,
            Some(Lost::Anything) => true,
            Some(Lost::Ranges(lost)) => lost.overlaps(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_env::Sector;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    #[test]
    fn places_without_a_successful_flush_are_lost() {
        let mut places = LostPlaces::default();
        places.written(1, range(0, 8));
        places.flush_begins(1);
        places.written(2, range(8, 8));
        places.flushed(1);
        places.written(3, range(100, 8));
        assert!(!places.overlap(range(8, 8)), "nothing has failed");
        places.flush_failed();
        places.written(4, range(200, 8));
        let lost = [range(8, 1), range(104, 1), range(200, 1)];
        assert!(lost.into_iter().all(|range| places.overlap(range)));
        assert!(!places.overlap(range(0, 8)));
    }

    #[test]
    fn adjacent_places_of_one_flush_are_one_range() {
        let mut places = LostPlaces::default();
        for number in 0..1_000_000 {
            places.written(number + 1, range(number * 8, 8));
        }
        assert_eq!(places.recent.len(), 1);
        for number in 0..200_000 {
            places.written(2_000_000 + number, range(number * 16, 8));
        }
        places.flush_failed();
        assert!(places.overlap(range(1 << 40, 1)), "more than is kept apart");
    }
}
