//! The report of `status --json`. Scripts rely on these names: they are only ever added to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::frontend_report::FrontendsReport;
use super::move_report::MoveReport;
use super::request_report::{
    BypassReport, DeviceLatencyReport, LatencyReport, PathReport, PeriodReport,
};
use super::scrub_report::ScrubReport;
use super::shrink_report::ShrinkReport;
use crate::backing::Connection;
use crate::open::precheck::Down;

/// The whole report.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Version of the program that serves.
    pub version: String,
    /// The sets being served.
    pub sets: Vec<SetReport>,
}

/// One cache set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SetReport {
    /// The set's UUID.
    pub uuid: String,
    /// Its name: that of its configuration file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its configuration file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// `running`, or why not.
    pub state: String,
    /// `healthy`, `degraded` or `failed`.
    #[serde(default)]
    pub health: String,
    /// Reasons why it is not healthy, and other warnings, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The cache device.
    pub cache: CacheReport,
    /// The volumes, in the order of the command line.
    pub volumes: Vec<VolumeReport>,
    /// Flash-only volumes: exports without a backing device.
    #[serde(default)]
    pub flash: Vec<FlashReport>,
    /// Backing devices of the set that are not served.
    #[serde(default)]
    pub absent: Vec<AbsentReport>,
    /// Backing devices that were named, and can't be served.
    #[serde(default)]
    pub down: Vec<DownReport>,
    /// Statistics of five minutes, an hour, a day, and in total: the sums of the volumes'.
    #[serde(default)]
    pub periods: BTreeMap<String, PeriodReport>,
    /// Memory of its tables.
    #[serde(default)]
    pub memory: MemoryReport,
    /// The log of the daemon.
    #[serde(default)]
    pub log: LogReport,
}

/// The log of a daemon.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct LogReport {
    /// Lines that were lost, as nobody read them in time.
    pub dropped_lines: u64,
}

/// Entries in memory that grow with load or size, buffers for I/O left out.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryReport {
    /// Bytes that they take at most.
    pub bytes: u64,
    /// Extents of the index.
    pub extents: u64,
    /// Requests, fills and writebacks under way.
    pub in_flight: u64,
    /// Clean copies that wait for a flush of the backing device.
    pub copies: u64,
    /// Ranges that a backing device may lose, or may have lost.
    pub unflushed: u64,
    /// Ranges whose old key a crash may bring back.
    pub ghosts: u64,
    /// Clients that are told of failed flushes.
    pub streams: u64,
}

/// A backing device that is not served.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AbsentReport {
    /// Its UUID.
    pub uuid: String,
    /// Its label when it was attached.
    pub label: String,
    /// Bytes that only the cache has.
    pub dirty_bytes: u64,
}

/// A backing device that was named, and can't be served.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DownReport {
    /// The name given to its export, else its file name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// The reason, in several lines.
    pub why: String,
    /// It may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

impl SetReport {
    /// The set's UUID; its name if it is not served.
    pub fn id(&self) -> &str {
        if self.uuid.is_empty() { &self.name } else { &self.uuid }
    }
}

impl From<&Down> for DownReport {
    fn from(down: &Down) -> DownReport {
        let path = down.path.display().to_string();
        DownReport {
            name: down.name.clone(),
            path,
            why: down.why.to_string(),
            optional: down.optional,
        }
    }
}

/// Counts of I/O on a device since the start of the daemon.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Failed requests.
    pub errors: u64,
}

/// A cache device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CacheReport {
    /// The path it was opened by.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bucket size in bytes.
    pub bucket_bytes: u64,
    /// Share of the cache that holds no dirty data and no metadata, in percent.
    pub available_percent: f64,
    /// Share of the cache that holds data or metadata, in percent.
    #[serde(default)]
    pub filled_percent: u64,
    /// Bytes of the buckets that are in use, for data or metadata.
    #[serde(default)]
    pub used_bytes: u64,
    /// Bytes of all volumes that only the cache has.
    #[serde(default)]
    pub dirty_bytes: u64,
    /// Every bucket has been counted since the start; before, less is in use than there seems.
    #[serde(default)]
    pub counted: bool,
    /// Bytes that are no part of the cache for now: the file system below has no room for them.
    #[serde(default)]
    pub put_aside_bytes: u64,
    /// Bytes that flash-only volumes could write now, before they find no room.
    #[serde(default)]
    pub flash_room_bytes: u64,
    /// It is becoming smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinking: Option<ShrinkReport>,
    /// Its latencies.
    #[serde(default)]
    pub latency: DeviceLatencyReport,
    /// Counts of I/O on it.
    #[serde(flatten)]
    pub counters: Counters,
}

/// A volume: one backing device and its export.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VolumeReport {
    /// Name of the export.
    pub name: String,
    /// UUID of the backing device.
    #[serde(default)]
    pub uuid: String,
    /// Label in its superblock.
    #[serde(default)]
    pub label: String,
    /// The backing device.
    pub backing: BackingReport,
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// `writethrough`, `writeback`, `writearound` or `none`.
    pub mode: String,
    /// `no cache`, `clean`, `dirty` or `failed`.
    pub state: String,
    /// Bytes whose newest content is only in the cache.
    pub dirty_bytes: u64,
    /// Background writeback.
    #[serde(default)]
    pub writeback: WritebackReport,
    /// The scrub that is under way, or the last one.
    #[serde(default)]
    pub scrub: ScrubReport,
    /// Its move to another disk, while that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<MoveReport>,
    /// Hits, misses and what else happened to requests.
    pub stats: StatsReport,
    /// Requests by the path that they took.
    #[serde(default)]
    pub requests: BTreeMap<String, PathReport>,
    /// Requests that went past the cache, by reason.
    #[serde(default)]
    pub bypassed: BTreeMap<String, BypassReport>,
    /// Statistics of five minutes, an hour, a day, and in total.
    #[serde(default)]
    pub periods: BTreeMap<String, PeriodReport>,
    /// Block devices and sockets for virtual machines.
    #[serde(default)]
    pub frontends: FrontendsReport,
    /// URIs of the export.
    #[serde(default)]
    pub uris: Vec<String>,
}

/// A flash-only volume: an export without a backing device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FlashReport {
    /// Name of the export.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its label.
    pub label: String,
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Bytes of data, all of them in the cache. Not all are known before every bucket is counted.
    pub used_bytes: u64,
    /// Writes that failed for want of room (ENOSPC).
    pub refused_writes: u64,
    /// Requests by the path that they took; reads are hits, writes are writeback writes.
    pub requests: BTreeMap<String, PathReport>,
    /// Block devices and sockets for virtual machines.
    #[serde(default)]
    pub frontends: FrontendsReport,
    /// URIs of the export.
    pub uris: Vec<String>,
}

/// Background writeback of a volume.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct WritebackReport {
    /// `idle` (nothing is dirty), `waiting` (`writeback_delay`), `running`, `failing` or `off`.
    pub state: String,
    /// Bytes written back since the start of the daemon.
    pub written_bytes: u64,
    /// Bytes written back a second, of late.
    pub bytes_per_second: u64,
    /// Seconds until nothing is dirty, at that speed; `null` if it is not running.
    pub seconds_left: Option<u64>,
    /// Latencies of writing a run of dirty data to the disk.
    #[serde(default)]
    pub latency: LatencyReport,
}

/// A backing device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BackingReport {
    /// The path it was opened by.
    pub path: String,
    /// Its latencies.
    #[serde(default)]
    pub latency: DeviceLatencyReport,
    /// The connection to it, if it is behind a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionReport>,
    /// Counts of I/O on it.
    #[serde(flatten)]
    pub counters: Counters,
}

/// The connection to a backing device that is behind a network.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ConnectionReport {
    /// `connected`; `lost`: requests wait; `failing`: requests fail until the server is back;
    /// `given up`: the server has something else now.
    pub state: String,
    /// The reason, if it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Connections that carry requests now.
    pub connections: u64,
    /// Times that the server was reached again.
    pub reconnects: u64,
    /// Requests that were sent again.
    pub resent_requests: u64,
}

impl From<Connection> for ConnectionReport {
    fn from(from: Connection) -> ConnectionReport {
        let (state, why) = from.state.words();
        ConnectionReport {
            state: state.to_owned(),
            why: why.map(str::to_owned),
            connections: from.connections,
            reconnects: from.reconnects,
            resent_requests: from.resent_requests,
        }
    }
}

/// Counters of requests since the start of the daemon.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct StatsReport {
    /// Read requests that were answered by the cache alone.
    pub cache_hits: u64,
    /// Read requests with at least one sector that was not in the cache.
    pub cache_misses: u64,
    /// Bypassing reads that were answered by the cache alone all the same.
    pub cache_bypass_hits: u64,
    /// Bypassing reads that were not.
    pub cache_bypass_misses: u64,
    /// Bytes of requests that bypassed the cache.
    pub bypassed_bytes: u64,
    /// Fills that found their range changed at insertion.
    pub cache_miss_collisions: u64,
    /// Fills given up because a write crossed them.
    pub fills_doomed: u64,
    /// Index updates made durable ahead of a write to the backing device.
    pub durable_invalidations: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts read these names; a change of this list is a change of the interface.
    #[test]
    fn report_field_names_are_stable() {
        let report = Report {
            version: "x".into(),
            sets: vec![SetReport {
                volumes: vec![VolumeReport::default()],
                flash: vec![FlashReport::default()],
                absent: vec![AbsentReport::default()],
                down: vec![DownReport::default()],
                ..SetReport::default()
            }],
        };
        let value = serde_json::to_value(report).expect("a report is plain data");
        let keys = |value: &serde_json::Value| {
            value
                .as_object()
                .map(|map| map.keys().cloned().collect::<Vec<_>>().join(" "))
                .unwrap_or_default()
        };
        assert_eq!(keys(&value), "sets version");
        let set = &value["sets"][0];
        assert_eq!(
            keys(set),
            "absent cache down flash health log memory periods state uuid volumes warnings"
        );
        assert_eq!(keys(&set["down"][0]), "name path why");
        assert_eq!(keys(&set["log"]), "dropped_lines");
        assert_eq!(keys(&set["memory"]), "bytes copies extents ghosts in_flight streams unflushed");
        assert_eq!(keys(&set["absent"][0]), "dirty_bytes label uuid");
        assert_eq!(
            keys(&set["cache"]),
            "available_percent bucket_bytes counted dirty_bytes errors filled_percent \
             flash_room_bytes flushes latency path put_aside_bytes read_bytes reads size_bytes \
             used_bytes writes written_bytes"
        );
        assert_eq!(
            keys(&set["flash"][0]),
            "frontends label name refused_writes requests size_bytes uris used_bytes uuid"
        );
        let volume = &set["volumes"][0];
        assert_eq!(
            keys(volume),
            "backing bypassed dirty_bytes frontends label mode name periods requests scrub \
             size_bytes state stats uris uuid writeback"
        );
        assert_eq!(
            keys(&volume["writeback"]),
            "bytes_per_second latency seconds_left state written_bytes"
        );
        assert_eq!(
            keys(&volume["scrub"]),
            "all_compared_bytes all_differing_bytes compared_bytes differing_bytes position_bytes \
             seconds seconds_left skipped_bytes state unreadable_bytes"
        );
        assert_eq!(
            keys(&volume["backing"]),
            "errors flushes latency path read_bytes reads writes written_bytes"
        );
        let latency = &volume["backing"]["latency"];
        assert_eq!(keys(latency), "flush read write");
        assert_eq!(keys(&latency["read"]), "buckets count p50_ns p90_ns p999_ns p99_ns sum_ns");
        assert_eq!(
            keys(&volume["stats"]),
            "bypassed_bytes cache_bypass_hits cache_bypass_misses cache_hits cache_miss_collisions \
             cache_misses durable_invalidations fills_doomed"
        );
    }
}
