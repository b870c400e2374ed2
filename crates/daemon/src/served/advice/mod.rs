//! Advice from live traffic: what other sizes of the cache would do, and which settings fit.
//!
//! | module | holds |
//! |---|---|
//! | here | the numbers, gathered from a set |
//! | [`report`] | their form, as the control API gives them |
//! | `rules` | the advice that follows from them |

use ubcache_engine::VolumeStatus;
use ubcache_engine::stats::requests::{BypassReason, Path};
use ubcache_engine::stats::reuse::ReuseCurve;

use self::report::{AdviceReport, CacheTraffic, RunShare, SizeEstimate, VolumeTraffic};
use super::daemon::{Daemon, Served};
use super::world::World;

pub mod report;
mod rules;

/// Sizes of the cache that are estimated, in halves of its size.
const HALVES: [u64; 4] = [1, 2, 4, 8];
/// Cutoffs for which the share of long runs is shown; 0: runs never bypass.
const CUTOFFS: [u64; 5] = [1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];

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
