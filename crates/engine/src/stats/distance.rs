//! Reuse distances: the number of different blocks used since the last use of a block (Mattson et
//! al., 1970). An LRU cache of n blocks has a block if and only if its distance is below n.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Least length of the tree.
const TIMES_MIN: usize = 1024;

/// Distances of a stream of block numbers, exact, in O(log of the number of different blocks) each.
#[derive(Debug)]
pub struct Distances {
    /// By block: the time of its last use.
    last: HashMap<u64, usize, FixedState>,
    /// By time: the block that was used.
    used: Vec<u64>,
    /// A Fenwick tree over times: 1 where the last use of some block is.
    tree: Vec<u32>,
}

impl Default for Distances {
    fn default() -> Self {
        Distances { last: HashMap::default(), used: Vec::new(), tree: vec![0; TIMES_MIN] }
    }
}

impl Distances {
    /// Uses a block; the distance, or `None` if it is used for the first time.
    pub fn access(&mut self, block: u64) -> Option<u64> {
        if self.used.len() + 1 >= self.tree.len() {
            self.renumber();
        }
        let now = self.used.len();
        self.used.push(block);
        let before = self.last.insert(block, now);
        let distance = before.map(|before| {
            // Different blocks used after that: their last uses lie there.
            let since = self.sum(now) - self.sum(before + 1);
            self.add(before, -1);
            u64::from(since)
        });
        self.add(now, 1);
        distance
    }

    /// Forgets a block: its next use is the first one. Returns false if it was not known.
    pub fn remove(&mut self, block: u64) -> bool {
        let before = self.last.remove(&block);
        if let Some(before) = before {
            self.add(before, -1);
        }
        before.is_some()
    }

    /// Number of different blocks that are known.
    pub fn blocks(&self) -> u64 {
        self.last.len() as u64
    }

    /// Uses before `time`.
    fn sum(&self, time: usize) -> u32 {
        let mut at = time;
        let mut sum = 0;
        while at > 0 {
            sum += self.tree[at];
            at &= at - 1;
        }
        sum
    }

    fn add(&mut self, time: usize, change: i32) {
        let mut at = time + 1;
        while at < self.tree.len() {
            self.tree[at] = self.tree[at].wrapping_add_signed(change);
            at += at & at.wrapping_neg();
        }
    }

    /// Renumbers the last uses of all blocks from 0, so that the tree stays as small as their
    /// number.
    fn renumber(&mut self) {
        let mut kept = 0;
        for time in 0..self.used.len() {
            let block = self.used[time];
            if let Some(last) = self.last.get_mut(&block)
                && *last == time
            {
                *last = kept;
                self.used[kept] = block;
                kept += 1;
            }
        }
        self.used.truncate(kept);
        let times = (kept * 2 + 2).next_power_of_two().max(TIMES_MIN);
        self.tree.clear();
        // A cell of the tree sums up the `at & -at` times up to its own; the first `kept` are 1.
        let sum = |at: usize| (kept + (at & at.wrapping_neg())).saturating_sub(at.max(kept));
        self.tree.extend((0..times).map(|at| sum(at) as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reuse_distances_agree_with_a_list(
            blocks in prop::collection::vec((0u64..60, 0u8..20), 1..4000)
        ) {
            let mut distances = Distances::default();
            let mut list: Vec<u64> = Vec::new();
            for (block, choice) in blocks {
                let at = list.iter().position(|&other| other == block);
                if choice == 0 {
                    prop_assert_eq!(distances.remove(block), at.is_some());
                    at.map(|at| list.remove(at));
                } else {
                    prop_assert_eq!(distances.access(block), at.map(|at| at as u64));
                    at.map(|at| list.remove(at));
                    list.insert(0, block);
                }
                prop_assert_eq!(distances.blocks(), list.len() as u64);
            }
        }
    }
}
