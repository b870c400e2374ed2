//! Reuse distances: the number of different blocks used since the last use of a block (Mattson et
//! al., 1970). An LRU cache of n blocks has a block if and only if its distance is below n.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Distances of a stream of block numbers, exact, in O(log of the number of different blocks) each.
pub struct Distances {
    /// By block: the time of its last use.
    last: HashMap<u64, usize, FixedState>,
    /// A Fenwick tree over times: 1 where the last use of some block is.
    tree: Vec<u32>,
    now: usize,
}

impl Default for Distances {
    fn default() -> Self {
        Distances { last: HashMap::default(), tree: vec![0; 1024], now: 0 }
    }
}

impl Distances {
    /// Uses a block; the distance, or `None` if it is used for the first time.
    pub fn access(&mut self, block: u64) -> Option<u64> {
        if self.now + 1 >= self.tree.len() {
            self.renumber();
        }
        let now = self.now;
        self.now += 1;
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

    /// Number of different blocks so far.
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

    /// Renumbers the last uses of all blocks from 0, so that the tree stays as small as the
    /// footprint.
    fn renumber(&mut self) {
        let mut uses: Vec<(usize, u64)> =
            self.last.iter().map(|(&block, &time)| (time, block)).collect();
        uses.sort_unstable();
        self.tree = vec![0; (uses.len() * 2 + 2).next_power_of_two().max(1024)];
        self.now = uses.len();
        for (time, (_, block)) in uses.into_iter().enumerate() {
            self.last.insert(block, time);
            self.add(time, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reuse_distances_agree_with_a_list(blocks in prop::collection::vec(0u64..60, 1..4000)) {
            let mut distances = Distances::default();
            let mut list: Vec<u64> = Vec::new();
            for block in blocks {
                let at = list.iter().position(|&other| other == block);
                prop_assert_eq!(distances.access(block), at.map(|at| at as u64));
                at.map(|at| list.remove(at));
                list.insert(0, block);
            }
        }
    }
}
