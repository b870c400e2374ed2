//! The search of the Linux driver for the newest journal entry (docs/reference/format.md §6.3).

use std::collections::BTreeMap;

use crate::set::EntryPlace;

/// The entries that the driver ends up with (docs/reference/format.md §6.3): seq and last_seq,
/// ascending.
pub(crate) fn driver_entries(places: &[Vec<EntryPlace>]) -> Vec<(u64, u64)> {
    let count = places.len();
    let mut probe = Probe { places, read: vec![false; count], list: BTreeMap::new() };
    let Some(first) = probe.find_any() else { return Vec::new() };
    let (mut low, mut middle) = (first, first);
    let mut high = (low + 1..count).find(|&index| probe.read[index]).unwrap_or(count);
    while low + 1 < high {
        let before = probe.greatest();
        middle = (low + high) / 2;
        probe.useful(middle);
        if probe.greatest() == before {
            high = middle;
        } else {
            low = middle;
        }
    }
    let mut index = middle;
    loop {
        index = index.checked_sub(1).unwrap_or(count - 1);
        if index == middle {
            break;
        }
        if !probe.read[index] && !probe.useful(index) {
            break;
        }
    }
    probe.list.into_iter().collect()
}

struct Probe<'a> {
    places: &'a [Vec<EntryPlace>],
    read: Vec<bool>,
    list: BTreeMap<u64, u64>,
}

impl Probe<'_> {
    fn find_any(&mut self) -> Option<usize> {
        let count = self.places.len();
        for i in 0..count {
            let index = (i as u32).wrapping_mul(2_654_435_769) as usize % count;
            if self.read[index] {
                break;
            }
            if self.useful(index) {
                return Some(index);
            }
        }
        (0..count).find(|&index| !self.read[index] && self.useful(index))
    }

    fn greatest(&self) -> Option<u64> {
        self.list.keys().next_back().copied()
    }

    /// Reads a bucket: whether it has an entry that is not expired by what was read so far.
    fn useful(&mut self, index: usize) -> bool {
        self.read[index] = true;
        let mut useful = false;
        for entry in &self.places[index] {
            self.list = self.list.split_off(&entry.last_seq);
            let expired = self.list.range(entry.seq..).any(|(_, &last)| entry.seq < last);
            if expired || self.list.contains_key(&entry.seq) {
                continue;
            }
            self.list.insert(entry.seq, entry.last_seq);
            useful = true;
        }
        useful
    }
}
