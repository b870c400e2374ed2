//! Zeroes that discards put below dirty data, which nobody may see before the dirty key goes (R5).
//!
//! A read that missed before the data became dirty may still be at the backing device then. There
//! is mostly none, so it is not looked for: such a read notices that zeroes were submitted
//! meanwhile, and looks up again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ubcache_env::SectorRange;

/// So many of the newest are told apart. Who has missed more of them looks up again.
const NEWEST: usize = 64;

/// See the module.
#[derive(Default, Debug)]
pub(crate) struct Zeroes {
    submitted: Cell<u64>,
    /// The newest, oldest first.
    newest: RefCell<VecDeque<SectorRange>>,
    /// Reads that look up again.
    readers: RefCell<Vec<SectorRange>>,
}

/// Keeps discards from dirty data of a range for as long as it is there.
#[must_use = "they are let in when this is dropped"]
pub(crate) struct KeptAway<'a> {
    zeroes: &'a Zeroes,
    range: SectorRange,
}

impl Drop for KeptAway<'_> {
    fn drop(&mut self) {
        let mut readers = self.zeroes.readers.borrow_mut();
        if let Some(at) = readers.iter().position(|range| *range == self.range) {
            readers.swap_remove(at);
        }
    }
}

impl Zeroes {
    /// This moment, for [`since`](Zeroes::since).
    #[inline]
    pub fn now(&self) -> u64 {
        self.submitted.get()
    }

    /// Zeroes are about to be submitted.
    pub fn submitted(&self, range: SectorRange) {
        let mut newest = self.newest.borrow_mut();
        if newest.len() == NEWEST {
            newest.pop_front();
        }
        newest.push_back(range);
        self.submitted.set(self.submitted.get() + 1);
    }

    /// Returns true if zeroes may have been submitted to any of the range since that moment.
    #[inline]
    pub fn since(&self, moment: u64, range: SectorRange) -> bool {
        let more = self.submitted.get() - moment;
        more > 0 && self.any_of_the_newest(more, range)
    }

    #[cold]
    fn any_of_the_newest(&self, more: u64, range: SectorRange) -> bool {
        let newest = self.newest.borrow();
        more > newest.len() as u64
            || newest.iter().rev().take(more as usize).any(|zeroed| zeroed.overlaps(&range))
    }

    /// No discard begins to work on dirty data of the range from now on.
    pub fn keep_away(&self, range: SectorRange) -> KeptAway<'_> {
        self.readers.borrow_mut().push(range);
        KeptAway { zeroes: self, range }
    }

    /// Returns true if a discard may not work on dirty data of the range.
    pub fn are_kept_away(&self, range: SectorRange) -> bool {
        self.readers.borrow().iter().any(|reader| reader.overlaps(&range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_env::Sector;

    fn range(start: u64) -> SectorRange {
        SectorRange::new(Sector(start), 8)
    }

    #[test]
    fn read_looks_up_again_only_for_zeroes_in_its_range() {
        let zeroes = Zeroes::default();
        zeroes.submitted(range(0));
        let moment = zeroes.now();
        assert!(!zeroes.since(moment, range(0)));
        zeroes.submitted(range(16));
        assert!(zeroes.since(moment, range(20)) && !zeroes.since(moment, range(0)));
        (0..NEWEST as u64).for_each(|n| zeroes.submitted(range(100 + n * 8)));
        assert!(zeroes.since(moment, range(50)), "more than are told apart");
        assert!(!zeroes.since(zeroes.now() - NEWEST as u64, range(50)));
    }

    #[test]
    fn reads_hold_back_discards_until_they_end() {
        let zeroes = Zeroes::default();
        let (first, second) = (zeroes.keep_away(range(0)), zeroes.keep_away(range(0)));
        drop(first);
        assert!(zeroes.are_kept_away(range(4)) && !zeroes.are_kept_away(range(8)));
        drop(second);
        assert!(!zeroes.are_kept_away(range(0)));
    }
}
