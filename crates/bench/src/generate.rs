//! Loads made up: popularity by Zipf's law, with scans in between. The same seed gives the same
//! load.

use crate::BLOCK_BYTES;
use crate::trace::TraceRecord;

/// Settings of a made-up load.
#[derive(Copy, Clone, Debug)]
pub struct Load {
    /// Different blocks, not counting those of scans.
    pub blocks: u64,
    /// Zipf's exponent: 0 is uniform, about 1 is usual.
    pub skew: f64,
    /// Number of requests.
    pub requests: u64,
    /// One request of so many begins a scan of `scan_blocks` blocks that no later request uses; 0:
    /// never.
    pub scan_every: u64,
    /// Blocks in a scan.
    pub scan_blocks: u64,
    /// Writes in a thousand requests.
    pub writes_per_mille: u64,
    /// Seed of the random numbers.
    pub seed: u64,
}

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Load {
    /// The requests, one block each.
    pub fn requests(&self) -> Vec<TraceRecord> {
        let mut dice = Dice(self.seed);
        let mut sums = Vec::with_capacity(self.blocks as usize);
        let mut sum = 0.0;
        for rank in 1..=self.blocks.max(1) {
            sum += (rank as f64).powf(-self.skew);
            sums.push(sum);
        }
        // Popular blocks lie anywhere.
        let mut order: Vec<u64> = (0..self.blocks.max(1)).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, (dice.next() % (at as u64 + 1)) as usize);
        }
        let mut scanned = self.blocks;
        let mut all = Vec::new();
        for number in 1..=self.requests {
            let drawn = dice.share() * sum;
            let block = order[sums.partition_point(|&limit| limit < drawn).min(order.len() - 1)];
            let write = dice.next() % 1000 < self.writes_per_mille;
            all.push(TraceRecord { write, offset: block * BLOCK_BYTES, bytes: BLOCK_BYTES });
            if self.scan_every > 0 && number % self.scan_every == 0 {
                for block in scanned..scanned + self.scan_blocks {
                    all.push(TraceRecord {
                        write: false,
                        offset: block * BLOCK_BYTES,
                        bytes: BLOCK_BYTES,
                    });
                }
                scanned += self.scan_blocks;
            }
        }
        all
    }
}
