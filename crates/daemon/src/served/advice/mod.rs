//! Advice from live traffic: what other sizes of the cache would do, and which settings fit.
//!
//! | module | holds |
//! |---|---|
//! | here | the numbers, as the control API gives them |
//! | `rules` | the advice that follows from them |

use serde::{Deserialize, Serialize};
use ubcache_engine::VolumeStatus;
use ubcache_engine::stats::requests::{BypassReason, Path};
use ubcache_engine::stats::reuse::ReuseCurve;
use utoipa::ToSchema;

use super::daemon::{Daemon, Served};
use super::world::World;

mod rules;

/// Sizes of the cache that are estimated, in halves of its size.
const HALVES: [u64; 4] = [1, 2, 4, 8];
/// Cutoffs for which the share of long runs is shown; 0: runs never bypass.
const CUTOFFS: [u64; 5] = [1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];

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

impl<W: World> Daemon<W> {
    /// The advice of this moment.
    pub(crate) fn advice(&self) -> AdviceReport {
        let status = self.set().status();
        let served = self.volumes();
        let volumes: Vec<VolumeTraffic> = served.iter().map(|it| traffic(it)).collect();
        let cache = cache(status.size_bytes, &status.volumes, &self.set().reuse_curve());
        let advice = rules::advice(&cache, &volumes);
        AdviceReport { set: self.uuid_now().to_string(), cache, volumes, advice }
    }
}

fn bytes_of(volume: &VolumeStatus, wanted: &[Path]) -> u64 {
    let paths = volume.requests.paths.iter();
    paths.filter(|(path, _)| wanted.contains(path)).map(|(_, status)| status.bytes).sum()
}

fn cache(size_bytes: u64, volumes: &[VolumeStatus], curve: &ReuseCurve) -> CacheTraffic {
    let sum = |paths: &[Path]| volumes.iter().map(|volume| bytes_of(volume, paths)).sum::<u64>();
    let (read_bytes, hit_bytes) = (sum(&[Path::Hit, Path::Miss]), sum(&[Path::Hit]));
    let sizes = HALVES.map(|halves| {
        let cache_bytes = size_bytes / 2 * halves;
        SizeEstimate {
            cache_bytes,
            read_hit_ratio: curve.read_hits(cache_bytes),
            write_hit_ratio: curve.write_hits(cache_bytes),
        }
    });
    CacheTraffic {
        size_bytes,
        read_bytes,
        hit_bytes,
        read_hit_ratio: (read_bytes > 0).then(|| hit_bytes as f64 / read_bytes as f64),
        footprint_bytes: curve.footprint_bytes(),
        sampled_share: curve.share,
        followed_blocks: curve.followed_blocks,
        sizes: sizes.to_vec(),
    }
}

fn traffic<W: World>(served: &Served<W>) -> VolumeTraffic {
    let now = served.now();
    let status = now.status();
    let p50 = |path: Path| {
        let found = status.requests.paths.iter().find(|(other, _)| *other == path);
        found.and_then(|(_, it)| it.latencies.permille(500)).map(|end| end.0)
    };
    let of_reason = |reason: BypassReason| {
        let found = status.requests.bypassed.iter().find(|(other, _)| *other == reason);
        found.map(|(_, it)| *it).unwrap_or_default()
    };
    let sequential = of_reason(BypassReason::Sequential);
    let runs = now.bytes_by_run();
    let behind = |cutoff: u64| {
        runs.iter().filter(|(length, _)| *length >= cutoff).map(|(_, bytes)| bytes).sum()
    };
    let in_writeback = status.mode == ubcache_format::CacheMode::Writeback;
    let through = status.requests.count(Path::WritethroughWrite);
    VolumeTraffic {
        volume: served.name.clone(),
        mode: status.mode.sysfs_word().to_owned(),
        sequential_cutoff_bytes: now.sequential_cutoff(),
        read_bytes: bytes_of(&status, &[Path::Hit, Path::Miss, Path::BypassRead]),
        written_bytes: bytes_of(
            &status,
            &[Path::WritebackWrite, Path::WritethroughWrite, Path::BypassWrite],
        ),
        dirty_bytes: status.dirty_bytes,
        sequential_bytes: sequential.read_bytes + sequential.written_bytes,
        refused_writes: if in_writeback {
            through + of_reason(BypassReason::CacheFull).writes
        } else {
            0
        },
        writeback_writes: status.requests.count(Path::WritebackWrite),
        write_through_p50_ns: p50(Path::WritethroughWrite),
        hit_p50_ns: p50(Path::Hit),
        runs: CUTOFFS
            .map(|cutoff_bytes| RunShare { cutoff_bytes, bytes: behind(cutoff_bytes) })
            .to_vec(),
    }
}
