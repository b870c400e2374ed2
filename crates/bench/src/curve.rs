//! Hits of an LRU cache of blocks, for every size at once.
//!
//! Long traces are sampled by block (SHARDS, Waldspurger et al., FAST 2015): a share of all blocks
//! is followed, chosen by a hash, and distances are scaled up by that share. Popular blocks make
//! the number of requests followed differ from what was to be expected; the difference is counted
//! as hits of the smallest cache or taken from them (SHARDS-adj, ibid.).

use ubcache_engine::stats::distance::Distances;

use crate::BLOCK_BYTES;
use crate::trace::TraceRecord;

/// Parts of a whole: the unit of sampling rates.
const PARTS: u64 = 1 << 24;

/// Counts of each distance, reads and writes apart.
pub struct Curve {
    /// Distances of reads that hit in some cache, in blocks, sorted.
    reads: Vec<u64>,
    /// Distances of writes, likewise.
    writes: Vec<u64>,
    read_blocks: Followed,
    write_blocks: Followed,
    footprint: u64,
    rate: f64,
}

/// Uses of blocks.
#[derive(Copy, Clone, Default)]
struct Followed {
    followed: u64,
    all: u64,
}

/// The blocks of a request.
pub fn blocks(request: &TraceRecord) -> impl Iterator<Item = u64> + use<> {
    let end = request.offset.saturating_add(request.bytes);
    request.offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)
}

/// A hash that spreads blocks evenly.
fn hash(block: u64) -> u64 {
    let mut x = block.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Curve {
    /// Follows a share of the blocks: `rate` from 0 to 1, 1 for all. `step` is called once for each
    /// request.
    pub fn of(trace: &[TraceRecord], rate: f64, mut step: impl FnMut()) -> Curve {
        let parts = ((rate.clamp(0.0, 1.0) * PARTS as f64) as u64).clamp(1, PARTS);
        let mut distances = Distances::default();
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let (mut read_blocks, mut write_blocks) = (Followed::default(), Followed::default());
        for request in trace {
            let (uses, hits) = match request.write {
                true => (&mut write_blocks, &mut writes),
                false => (&mut read_blocks, &mut reads),
            };
            for block in blocks(request) {
                uses.all += 1;
                if parts == PARTS || hash(block) % PARTS < parts {
                    uses.followed += 1;
                    hits.extend(distances.access(block));
                }
            }
            step();
        }
        reads.sort_unstable();
        writes.sort_unstable();
        let rate = parts as f64 / PARTS as f64;
        Curve { reads, writes, read_blocks, write_blocks, footprint: distances.blocks(), rate }
    }

    /// Different blocks in the trace; an estimate where it was sampled.
    pub fn footprint_blocks(&self) -> u64 {
        (self.footprint as f64 / self.rate).round() as u64
    }

    /// The share of blocks that were followed.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Share of the reads of blocks that a cache of so many blocks answers.
    pub fn read_hits(&self, cache_blocks: u64) -> f64 {
        self.share(&self.reads, self.read_blocks, cache_blocks)
    }

    /// Share of the writes of blocks whose block such a cache has already.
    pub fn write_hits(&self, cache_blocks: u64) -> f64 {
        self.share(&self.writes, self.write_blocks, cache_blocks)
    }

    fn share(&self, distances: &[u64], uses: Followed, cache_blocks: u64) -> f64 {
        let limit = cache_blocks as f64 * self.rate;
        let hits = distances.partition_point(|&distance| (distance as f64) < limit);
        let expected = uses.all as f64 * self.rate;
        let adjusted = hits as f64 + expected - uses.followed as f64;
        (adjusted / expected.max(1.0)).clamp(0.0, 1.0)
    }
}
