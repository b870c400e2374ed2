//! The part of the report that is about requests: latencies, paths, bypassing, periods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use ubcache_engine::DeviceLatencies;
use ubcache_engine::stats::histogram::Latencies;
use ubcache_engine::stats::periods::{Period, PeriodStatus};
use ubcache_engine::stats::requests::RequestStatus;
use ubcache_format::SECTOR_BYTES;
use utoipa::ToSchema;

/// Latencies since the start of the daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct LatencyReport {
    /// Number of requests.
    pub count: u64,
    /// Their times together, in nanoseconds.
    pub sum_ns: u64,
    /// Time that half of them did not exceed; `null` without requests. Times are rounded up to the
    /// end of a bucket: by a quarter at most.
    pub p50_ns: Option<u64>,
    /// Time that 90 % of them did not exceed.
    pub p90_ns: Option<u64>,
    /// Time that 99 % of them did not exceed.
    pub p99_ns: Option<u64>,
    /// Time that 99.9 % of them did not exceed.
    pub p999_ns: Option<u64>,
    /// Buckets that are not empty, ascending: the end of each in nanoseconds, and the requests in
    /// it.
    pub buckets: Vec<(u64, u64)>,
}

impl From<&Latencies> for LatencyReport {
    fn from(latencies: &Latencies) -> LatencyReport {
        let permille = |share| latencies.permille(share).map(|end| end.0);
        LatencyReport {
            count: latencies.count(),
            sum_ns: latencies.sum.0,
            p50_ns: permille(500),
            p90_ns: permille(900),
            p99_ns: permille(990),
            p999_ns: permille(999),
            buckets: latencies.counts.iter().map(|(end, count)| (end.0, *count)).collect(),
        }
    }
}

/// Latencies of a device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceLatencyReport {
    /// Reads.
    pub read: LatencyReport,
    /// Writes.
    pub write: LatencyReport,
    /// Flushes.
    pub flush: LatencyReport,
}

impl From<&DeviceLatencies> for DeviceLatencyReport {
    fn from(from: &DeviceLatencies) -> DeviceLatencyReport {
        let (read, write, flush) = (&from.read, &from.write, &from.flush);
        DeviceLatencyReport { read: read.into(), write: write.into(), flush: flush.into() }
    }
}

/// Requests that took one path. Each request of a client is in one of them when it has ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PathReport {
    /// Bytes that they read, wrote or discarded.
    pub bytes: u64,
    /// Their number and latencies.
    pub latency: LatencyReport,
}

/// Requests that went past the cache for one reason.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BypassReport {
    /// Reads.
    pub reads: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Writes and discards.
    pub writes: u64,
    /// Bytes of these.
    pub written_bytes: u64,
}

/// Statistics of a period, with bcache's names.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PeriodReport {
    /// Reads that were answered by the cache alone.
    pub cache_hits: u64,
    /// Reads with at least one sector that was not in the cache.
    pub cache_misses: u64,
    /// Hits of both, in whole percent.
    pub cache_hit_ratio: u64,
    /// Bypassing reads that were answered by the cache alone all the same.
    pub cache_bypass_hits: u64,
    /// Bypassing reads that were not.
    pub cache_bypass_misses: u64,
    /// Fills that found their range changed at insertion.
    pub cache_miss_collisions: u64,
    /// Bytes of requests that bypassed the cache.
    pub bypassed_bytes: u64,
}

/// Paths by name: `hit`, `miss`, `bypass_read`, `writeback_write`, `writethrough_write`,
/// `bypass_write`, `flush`, `discard`.
pub type Paths = BTreeMap<String, PathReport>;
/// Reasons by name: `sequential`, `congested`, and so on; all of them.
pub type Reasons = BTreeMap<String, BypassReport>;
/// Periods by name: `stats_five_minute`, `stats_hour`, `stats_day`, `stats_total`.
pub type PeriodReports = BTreeMap<String, PeriodReport>;

/// The paths of requests.
pub fn paths(requests: &RequestStatus) -> Paths {
    let paths = requests.paths.iter().map(|(path, status)| {
        let report = PathReport { bytes: status.bytes, latency: (&status.latencies).into() };
        (path.word().to_owned(), report)
    });
    paths.collect()
}

/// The reasons of bypassing.
pub fn reasons(requests: &RequestStatus) -> Reasons {
    let reasons = requests.bypassed.iter().map(|(reason, bypassed)| {
        let report = BypassReport {
            reads: bypassed.reads,
            read_bytes: bypassed.read_bytes,
            writes: bypassed.writes,
            written_bytes: bypassed.written_bytes,
        };
        (reason.word().to_owned(), report)
    });
    reasons.collect()
}

/// The counters of all periods.
pub fn periods(status: &PeriodStatus) -> PeriodReports {
    let periods = Period::ALL.iter().zip(status).map(|(period, counters)| {
        let report = PeriodReport {
            cache_hits: counters.cache_hits,
            cache_misses: counters.cache_misses,
            cache_hit_ratio: counters.cache_hit_ratio(),
            cache_bypass_hits: counters.cache_bypass_hits,
            cache_bypass_misses: counters.cache_bypass_misses,
            cache_miss_collisions: counters.cache_miss_collisions,
            bypassed_bytes: counters.bypassed_sectors * SECTOR_BYTES,
        };
        (period.directory().to_owned(), report)
    });
    periods.collect()
}
