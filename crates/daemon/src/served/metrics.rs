//! The numbers of a report as metrics: OpenMetrics text, and the older text of Prometheus.
//!
//! The tables below are the list of docs/reference/metrics.md. Names are only ever added to:
//! dashboards and alerts rely on them. Labels are few: a set, a volume, a device.

use std::collections::HashMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::frontend_report::Frontend;
use super::health::Health;
use super::report::{Counters, Report, SetReport, VolumeReport};
use super::request_report::{BypassReport, LatencyReport};

/// Names and values of labels.
type Labels = Vec<(&'static str, String)>;

/// The value of a label as it stands between quotes: the encoder leaves it as it is.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A number: its name without the suffixes, the explanation, and the value.
struct Metric<T> {
    name: &'static str,
    help: &'static str,
    value: Value<T>,
}

enum Value<T> {
    /// Counts up from the start of the daemon.
    Total(fn(&T) -> u64),
    /// Bytes since the start of the daemon.
    TotalBytes(fn(&T) -> u64),
    /// Bytes now.
    Bytes(fn(&T) -> u64),
    /// A number now.
    Now(fn(&T) -> f64),
    /// A share, from 0 to 1.
    Ratio(fn(&T) -> f64),
}

const fn metric<T>(name: &'static str, help: &'static str, value: Value<T>) -> Metric<T> {
    Metric { name, help, value }
}

const SET: &[Metric<SetReport>] = &[
    metric(
        "set_health",
        "0: healthy; 1: degraded; 2: failed, not all data is served",
        Value::Now(|set| match Health::parse(&set.health) {
            Health::Healthy => 0.0,
            Health::Degraded => 1.0,
            Health::Failed => 2.0,
        }),
    ),
    metric("set_warnings", "Warnings of status", Value::Now(|set| set.warnings.len() as f64)),
    metric("cache_size", "Size of the cache device", Value::Bytes(|set| set.cache.size_bytes)),
    metric(
        "cache_used",
        "Buckets of the cache that hold data or metadata",
        Value::Bytes(|set| set.cache.used_bytes),
    ),
    metric(
        "cache_dirty",
        "Data of all volumes that only the cache has",
        Value::Bytes(|set| set.cache.dirty_bytes),
    ),
    metric(
        "cache_put_aside",
        "Part of the cache that the file system below has no room for",
        Value::Bytes(|set| set.cache.put_aside_bytes),
    ),
    metric(
        "cache_available",
        "Share of the cache that holds no dirty data and no metadata",
        Value::Ratio(|set| set.cache.available_percent / 100.0),
    ),
    metric("index_memory", "Memory of the tables of the set", Value::Bytes(|set| set.memory.bytes)),
    metric(
        "requests_in_flight",
        "Requests, fills and writebacks under way",
        Value::Now(|set| set.memory.in_flight as f64),
    ),
    metric(
        "disks_down",
        "Backing devices that were named and can't be served",
        Value::Now(|set| set.down.len() as f64),
    ),
    metric(
        "disks_absent",
        "Backing devices of the set that are not served",
        Value::Now(|set| set.absent.len() as f64),
    ),
    metric(
        "absent_dirty",
        "Data of absent backing devices that only the cache has",
        Value::Bytes(|set| set.absent.iter().map(|disk| disk.dirty_bytes).sum()),
    ),
    metric(
        "flash_data",
        "Data of flash-only volumes",
        Value::Bytes(|set| set.flash.iter().map(|volume| volume.used_bytes).sum()),
    ),
    metric(
        "flash_room",
        "Data that flash-only volumes could still be given",
        Value::Bytes(|set| set.cache.flash_room_bytes),
    ),
    metric(
        "flash_refused_writes",
        "Writes to flash-only volumes that found no room",
        Value::Total(|set| set.flash.iter().map(|volume| volume.refused_writes).sum()),
    ),
    metric(
        "log_dropped_lines",
        "Lines of the log that nobody read in time",
        Value::Total(|set| set.log.dropped_lines),
    ),
];

const VOLUME: &[Metric<VolumeReport>] = &[
    metric("volume_size", "Size of the export", Value::Bytes(|it| it.size_bytes)),
    metric("volume_dirty", "Data that only the cache has", Value::Bytes(|it| it.dirty_bytes)),
    metric(
        "volume_cache_hits",
        "Reads that the cache answered alone",
        Value::Total(|it| it.stats.cache_hits),
    ),
    metric(
        "volume_cache_misses",
        "Reads with a sector that was not in the cache",
        Value::Total(|it| it.stats.cache_misses),
    ),
    metric(
        "volume_cache_bypass_hits",
        "Bypassing reads that the cache answered alone",
        Value::Total(|it| it.stats.cache_bypass_hits),
    ),
    metric(
        "volume_cache_bypass_misses",
        "Bypassing reads that it did not",
        Value::Total(|it| it.stats.cache_bypass_misses),
    ),
    metric(
        "volume_bypassed",
        "Requests that bypassed the cache",
        Value::TotalBytes(|it| it.stats.bypassed_bytes),
    ),
    metric(
        "volume_cache_miss_collisions",
        "Fills that found their range changed at insertion",
        Value::Total(|it| it.stats.cache_miss_collisions),
    ),
    metric(
        "volume_fills_doomed",
        "Fills given up because a write crossed them",
        Value::Total(|it| it.stats.fills_doomed),
    ),
    metric(
        "volume_durable_invalidations",
        "Changes of the index made durable ahead of a write to the disk",
        Value::Total(|it| it.stats.durable_invalidations),
    ),
    metric(
        "volume_written_back",
        "Dirty data written to the disk in the background",
        Value::TotalBytes(|it| it.writeback.written_bytes),
    ),
    metric(
        "volume_scrubbed",
        "Clean cached data that scrubs have compared with the disk",
        Value::TotalBytes(|it| it.scrub.all_compared_bytes),
    ),
    metric(
        "volume_scrub_differing",
        "Data of that which differed",
        Value::TotalBytes(|it| it.scrub.all_differing_bytes),
    ),
];

const FRONTEND: &[Metric<Frontend>] = &[
    metric(
        "frontend_connected",
        "Block devices that are served, or guests that are connected",
        Value::Now(|it| it.connected as f64),
    ),
    metric(
        "frontend_queues",
        "Queues of block devices, or queues that guests use",
        Value::Now(|it| it.queues as f64),
    ),
    metric(
        "frontend_broken_queues",
        "Queues that are not served, as the guest made a mistake",
        Value::Now(|it| it.broken_queues as f64),
    ),
    metric(
        "frontend_requests_in_flight",
        "Requests of block devices or guests that are being carried out",
        Value::Now(|it| it.in_flight as f64),
    ),
    metric(
        "frontend_reissued",
        "Requests of guests that a former connection left without an answer",
        Value::Total(|it| it.reissued),
    ),
];

const DEVICE: &[Metric<Counters>] = &[
    metric("device_reads", "Read requests to a device", Value::Total(|it| it.reads)),
    metric("device_read", "Data read from a device", Value::TotalBytes(|it| it.read_bytes)),
    metric("device_writes", "Write requests to a device", Value::Total(|it| it.writes)),
    metric("device_written", "Data written to a device", Value::TotalBytes(|it| it.written_bytes)),
    metric("device_flushes", "Flushes of a device", Value::Total(|it| it.flushes)),
    metric("device_errors", "Failed requests to a device", Value::Total(|it| it.errors)),
];

const BYPASSED: &[Metric<BypassReport>] = &[
    metric(
        "volume_bypass_reads",
        "Reads that went past the cache, by reason",
        Value::Total(|it| it.reads),
    ),
    metric(
        "volume_bypass_read",
        "Data of reads that went past the cache, by reason",
        Value::TotalBytes(|it| it.read_bytes),
    ),
    metric(
        "volume_bypass_writes",
        "Writes and discards that went past the cache, by reason",
        Value::Total(|it| it.writes),
    ),
    metric(
        "volume_bypass_written",
        "Data of writes and discards that went past the cache, by reason",
        Value::TotalBytes(|it| it.written_bytes),
    ),
];

/// Ends of the buckets of histograms, as powers of two nanoseconds: 4 µs to 17 s. Those of the
/// report are finer.
const BUCKET_ENDS: std::ops::RangeInclusive<u32> = 12..=34;

/// A histogram of latencies.
struct Latency {
    name: &'static str,
    help: &'static str,
}

const REQUEST: Latency =
    Latency { name: "volume_request", help: "Time of a request of a client, by its path" };
const WRITEBACK: Latency = Latency {
    name: "volume_writeback",
    help: "Time of writing a run of dirty data to the disk in the background",
};
const DEVICE_IO: Latency =
    Latency { name: "device_io", help: "Time of a request to a device, by operation" };

impl Latency {
    fn encode<'r>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl Iterator<Item = (Labels, &'r LatencyReport)>,
    ) -> Result<(), std::fmt::Error> {
        let kind = MetricType::Histogram;
        let mut family =
            encoder.encode_descriptor(self.name, self.help, Some(&Unit::Seconds), kind)?;
        for (labels, report) in values {
            let mut counts = report.buckets.iter().peekable();
            let mut take = |below: u64| {
                let mut sum = 0;
                while let Some((_, count)) = counts.next_if(|(end, _)| *end <= below) {
                    sum += count;
                }
                sum
            };
            let buckets = BUCKET_ENDS.map(|power| {
                let end = 1_u64 << power;
                (seconds(end), take(end))
            });
            let mut buckets: Vec<(f64, u64)> = buckets.collect();
            buckets.push((f64::MAX, take(u64::MAX)));
            let none = None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>;
            let mut one = family.encode_family(&labels)?;
            one.encode_histogram(seconds(report.sum_ns), report.count, &buckets, none)?;
        }
        Ok(())
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The report as OpenMetrics text.
pub fn open_metrics(report: &Report) -> String {
    let mut registry = Registry::with_prefix("ubcache");
    registry.register_collector(Box::new(Numbers(report.clone())));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes any text");
    text
}

/// The report in the text format of Prometheus (0.0.4), which names the family of a counter with
/// its suffix, and knows no units and no end.
pub fn prometheus_text(report: &Report) -> String {
    let open = open_metrics(report);
    let mut text = String::with_capacity(open.len());
    let mut lines = open.lines().peekable();
    while let Some(line) = lines.next() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        // The type stands in the line after the explanation.
        let next = lines.peek().and_then(|line| line.strip_prefix("# TYPE "));
        match words.as_slice() {
            ["#", "UNIT", ..] | ["#", "EOF", ..] => continue,
            ["#", "HELP", name, help] => {
                let suffix = suffix_of(next.and_then(|line| line.rsplit(' ').next()));
                text += &format!("# HELP {name}{suffix} {help}");
            }
            ["#", "TYPE", name, kind] => {
                let suffix = suffix_of(Some(kind));
                let kind = if *kind == "info" { "gauge" } else { kind };
                text += &format!("# TYPE {name}{suffix} {kind}");
            }
            _ => text += line,
        }
        text.push('\n');
    }
    text
}

/// The part of a sample's name that OpenMetrics leaves out of the name of its family.
fn suffix_of(kind: Option<&str>) -> &'static str {
    match kind {
        Some("counter") => "_total",
        Some("info") => "_info",
        _ => "",
    }
}

#[derive(Debug)]
struct Numbers(Report);

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sets = || self.0.sets.iter();
        let of_set = |set: &SetReport| vec![("set", label(set.id()))];
        for metric in SET {
            metric.encode(&mut encoder, sets().map(|set| (of_set(set), set)))?;
        }
        let volumes =
            || sets().flat_map(move |set| set.volumes.iter().map(move |volume| (set, volume)));
        let of_volume = |set: &SetReport, volume: &VolumeReport| {
            vec![("set", label(set.id())), ("volume", label(&volume.name))]
        };
        for metric in VOLUME {
            let values = volumes().map(|(set, volume)| (of_volume(set, volume), volume));
            metric.encode(&mut encoder, values)?;
        }
        let device = |labels: Labels, device: &str| -> Labels {
            labels.into_iter().chain([("device", device.to_owned())]).collect()
        };
        for metric in DEVICE {
            let caches = sets().map(|set| {
                let labels = vec![("set", label(set.id())), ("volume", String::new())];
                (device(labels, "cache"), &set.cache.counters)
            });
            let disks = volumes().map(|(set, volume)| {
                (device(of_volume(set, volume), "disk"), &volume.backing.counters)
            });
            metric.encode(&mut encoder, caches.chain(disks))?;
        }
        self.encode_frontends(&mut encoder)?;
        self.encode_requests(&mut encoder)?;
        let mut info = encoder.encode_descriptor(
            "volume",
            "Cache mode, state and identity of a volume",
            None,
            MetricType::Info,
        )?;
        for (set, volume) in volumes() {
            let mut labels = of_volume(set, volume);
            labels.push(("uuid", label(&volume.uuid)));
            labels.push(("label", label(&volume.label)));
            labels.push(("mode", label(&volume.mode)));
            labels.push(("state", label(&volume.state)));
            info.encode_info(&labels)?;
        }
        let mut info =
            encoder.encode_descriptor("build", "Version of the program", None, MetricType::Info)?;
        info.encode_info(&vec![("version", label(&self.0.version))])
    }
}

impl Numbers {
    /// Block devices and guests.
    fn encode_frontends(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let exports = self.0.sets.iter().flat_map(|set| {
            let cached = set.volumes.iter().map(|it| (&it.name, &it.frontends));
            let flash = set.flash.iter().map(|it| (&it.name, &it.frontends));
            cached.chain(flash).map(move |(name, frontends)| (set, name, frontends))
        });
        let all: Vec<(Labels, Frontend)> = exports
            .flat_map(|(set, name, frontends)| {
                Frontend::all(frontends).map(move |frontend| {
                    let set = ("set", label(set.id()));
                    let labels = vec![set, ("volume", label(name))];
                    let which = ("frontend", frontend.name.to_owned());
                    (labels.into_iter().chain([which]).collect(), frontend)
                })
            })
            .collect();
        for metric in FRONTEND {
            metric.encode(encoder, all.iter().map(|(labels, it)| (labels.clone(), it)))?;
        }
        Ok(())
    }

    /// Requests by path and by reason, and latencies.
    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sets = || self.0.sets.iter();
        let volumes =
            || sets().flat_map(move |set| set.volumes.iter().map(move |volume| (set, volume)));
        let labels = |set: &SetReport, volume: &str, more: (&'static str, &str)| -> Labels {
            let (name, value) = more;
            vec![("set", label(&set.uuid)), ("volume", label(volume)), (name, value.to_owned())]
        };
        for metric in BYPASSED {
            let values = volumes().flat_map(|(set, volume)| {
                volume.bypassed.iter().map(move |(reason, bypassed)| {
                    (labels(set, &volume.name, ("reason", reason)), bypassed)
                })
            });
            metric.encode(encoder, values)?;
        }
        let requests = volumes().flat_map(|(set, volume)| {
            volume.requests.iter().map(move |(path, report)| {
                (labels(set, &volume.name, ("path", path)), &report.latency)
            })
        });
        REQUEST.encode(encoder, requests)?;
        let writeback = volumes().map(|(set, volume)| {
            let labels = vec![("set", label(&set.uuid)), ("volume", label(&volume.name))];
            (labels, &volume.writeback.latency)
        });
        WRITEBACK.encode(encoder, writeback)?;
        let caches = sets().map(|set| (set, "", "cache", &set.cache.latency));
        let disks = volumes()
            .map(|(set, volume)| (set, volume.name.as_str(), "disk", &volume.backing.latency));
        let devices = caches.chain(disks).flat_map(|(set, volume, device, latency)| {
            let operations =
                [("read", &latency.read), ("write", &latency.write), ("flush", &latency.flush)];
            operations.into_iter().map(move |(operation, latency)| {
                let mut labels = labels(set, volume, ("device", device));
                labels.push(("operation", operation.to_owned()));
                (labels, latency)
            })
        });
        DEVICE_IO.encode(encoder, devices)
    }
}

impl<T> Metric<T> {
    fn encode<'r>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        values: impl Iterator<Item = (Labels, &'r T)>,
    ) -> Result<(), std::fmt::Error>
    where
        T: 'r,
    {
        let ratio = Unit::Other("ratio".to_owned());
        let (unit, kind) = match self.value {
            Value::Total(_) => (None, MetricType::Counter),
            Value::TotalBytes(_) => (Some(&Unit::Bytes), MetricType::Counter),
            Value::Bytes(_) => (Some(&Unit::Bytes), MetricType::Gauge),
            Value::Now(_) => (None, MetricType::Gauge),
            Value::Ratio(_) => (Some(&ratio), MetricType::Gauge),
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, unit, kind)?;
        for (labels, of) in values {
            let mut one = family.encode_family(&labels)?;
            match self.value {
                Value::Total(value) | Value::TotalBytes(value) => {
                    one.encode_counter(&value(of), None::<&Exemplar<NoLabelSet, f64>>)?;
                }
                Value::Bytes(value) => one.encode_gauge(&value(of))?,
                Value::Now(value) | Value::Ratio(value) => one.encode_gauge(&value(of))?,
            }
        }
        Ok(())
    }
}
