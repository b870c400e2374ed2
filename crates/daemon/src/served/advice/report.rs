//! Form of the advice, and of the numbers that it comes from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Advice about a set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AdviceReport {
    /// UUID of the set.
    pub set: String,
    /// Traffic of the cache, and estimates for other sizes.
    pub cache: CacheTraffic,
    /// Traffic of each volume.
    pub volumes: Vec<VolumeTraffic>,
    /// Changes to make, the most useful first.
    pub advice: Vec<Advice>,
}

/// Traffic of the cache: all that clients read by way of it since the start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CacheTraffic {
    /// Size of the cache.
    pub size_bytes: u64,
    /// Bytes of reads that did not bypass the cache.
    pub read_bytes: u64,
    /// Bytes of those that the cache answered alone.
    pub hit_bytes: u64,
    /// Share of these, measured; `null` without reads.
    pub read_hit_ratio: Option<f64>,
    /// Bytes that are read or written at all, estimated.
    pub footprint_bytes: u64,
    /// Share of all blocks that are followed for the estimates.
    pub sampled_share: f64,
    /// Blocks of 4 KiB that are followed.
    pub followed_blocks: u64,
    /// Estimates for half, once, twice and four times the size.
    pub sizes: Vec<SizeEstimate>,
}

/// Hit ratio of a cache of another size, if it evicted the blocks that were used least recently.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SizeEstimate {
    /// Size of the cache.
    pub cache_bytes: u64,
    /// Share of the bytes read that it answers; `null` if no read was followed.
    pub read_hit_ratio: Option<f64>,
    /// Share of the bytes written whose blocks it has already.
    pub write_hit_ratio: Option<f64>,
}

/// Traffic of a volume since the start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VolumeTraffic {
    /// Name of the export.
    pub volume: String,
    /// Cache mode.
    pub mode: String,
    /// Bytes from which on a sequential run bypasses the cache; 0: never.
    pub sequential_cutoff_bytes: u64,
    /// Bytes of all reads.
    pub read_bytes: u64,
    /// Bytes of all writes.
    pub written_bytes: u64,
    /// Bytes that only the cache has.
    pub dirty_bytes: u64,
    /// Bytes that bypassed the cache as parts of long runs.
    pub sequential_bytes: u64,
    /// Writes past the cache of a volume in writeback: it was full or too dirty.
    pub refused_writes: u64,
    /// Writes that the cache took in writeback.
    pub writeback_writes: u64,
    /// Time that half of the writes to the backing device did not exceed, in nanoseconds.
    pub write_through_p50_ns: Option<u64>,
    /// Time that half of the hits did not exceed, in nanoseconds.
    pub hit_p50_ns: Option<u64>,
    /// Bytes that would bypass the cache by length of their run.
    pub runs: Vec<RunShare>,
}

/// Bytes in long runs.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RunShare {
    /// A `sequential_cutoff`.
    pub cutoff_bytes: u64,
    /// Bytes of requests behind so long a run.
    pub bytes: u64,
}

/// A change that the traffic speaks for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Advice {
    /// The export; `null`: the set.
    pub volume: Option<String>,
    /// The thing to change: `cache_size`, `sequential_cutoff`, `cache_mode`, `writeback_percent`.
    pub subject: String,
    /// The reason, in numbers.
    pub reason: String,
    /// The command that changes it.
    pub command: String,
}
