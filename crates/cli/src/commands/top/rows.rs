//! Rows of the table: what happened between two reports.

use std::cmp::Ordering;
use std::time::Duration;

use ubcache_daemon::served::report::{Report, VolumeReport};
use ubcache_daemon::served::request_report::{LatencyReport, PathReport};

/// Paths of reads, and of writes.
const READS: &[&str] = &["hit", "miss", "bypass_read"];
const WRITES: &[&str] = &["writeback_write", "writethrough_write", "bypass_write"];

/// Column of the table.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Column {
    Name,
    Read,
    Written,
    Hits,
    ReadLatency,
    WriteLatency,
    Dirty,
}

impl Column {
    /// All columns, in their order, each with the key that sorts by it.
    pub const ALL: [(Column, char); 7] = [
        (Column::Name, 'n'),
        (Column::Read, 'r'),
        (Column::Written, 'w'),
        (Column::Hits, 'h'),
        (Column::ReadLatency, 'l'),
        (Column::WriteLatency, 'k'),
        (Column::Dirty, 'd'),
    ];
}

/// A volume between two reports.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Row {
    pub name: String,
    pub mode: String,
    pub state: String,
    /// Bytes and requests a second.
    pub read_bytes: f64,
    pub reads: f64,
    pub written_bytes: f64,
    pub writes: f64,
    /// Share of the reads that do not bypass, in percent.
    pub hit_percent: Option<f64>,
    /// Share of all bytes that went past the cache, in percent.
    pub bypass_percent: Option<f64>,
    /// Median and 99th percentile, in nanoseconds.
    pub read_ns: Option<(u64, u64)>,
    pub write_ns: Option<(u64, u64)>,
    pub dirty_bytes: u64,
}

/// Requests of some paths in the time between two reports.
#[derive(Default)]
struct Interval {
    bytes: u64,
    count: u64,
    /// Ends of buckets, and the requests in each.
    buckets: Vec<(u64, u64)>,
}

impl Interval {
    fn add(&mut self, before: Option<&PathReport>, after: &PathReport) {
        let nothing = PathReport::default();
        // A daemon that was started anew counts from zero.
        let before = before.filter(|it| it.latency.count <= after.latency.count);
        let before = before.unwrap_or(&nothing);
        self.bytes += after.bytes.saturating_sub(before.bytes);
        self.count += after.latency.count - before.latency.count;
        for (end, count) in &after.latency.buckets {
            let count = count.saturating_sub(in_bucket(&before.latency, *end));
            match self.buckets.iter_mut().find(|(other, _)| other == end) {
                Some((_, sum)) => *sum += count,
                None => self.buckets.push((*end, count)),
            }
        }
        self.buckets.sort_unstable();
    }

    fn percentile(&self, percent: u64) -> Option<u64> {
        let rank = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(end, _)| *end)
    }

    fn latency(&self) -> Option<(u64, u64)> {
        Some((self.percentile(50)?, self.percentile(99)?))
    }
}

fn in_bucket(latency: &LatencyReport, end: u64) -> u64 {
    let found = latency.buckets.iter().find(|(other, _)| *other == end);
    found.map_or(0, |(_, count)| *count)
}

fn interval(before: Option<&VolumeReport>, after: &VolumeReport, paths: &[&str]) -> Interval {
    let mut interval = Interval::default();
    for path in paths {
        if let Some(after) = after.requests.get(*path) {
            interval.add(before.and_then(|before| before.requests.get(*path)), after);
        }
    }
    interval
}

fn percent(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 * 100.0 / all as f64)
}

/// The rows of all volumes.
pub fn rows(before: &Report, after: &Report, passed: Duration) -> Vec<Row> {
    let seconds = passed.as_secs_f64().max(0.001);
    let volumes = |report: &'_ Report| -> Vec<VolumeReport> {
        report.sets.iter().flat_map(|set| set.volumes.clone()).collect()
    };
    let former = volumes(before);
    let row = |after: VolumeReport| {
        let before = former.iter().find(|it| it.uuid == after.uuid && it.name == after.name);
        let of = |paths: &[&str]| interval(before, &after, paths);
        let (reads, writes) = (of(READS), of(WRITES));
        let past = of(&["bypass_read"]).bytes + of(&["bypass_write"]).bytes;
        let (hits, misses) = (of(&["hit"]).count, of(&["miss"]).count);
        Row {
            read_bytes: reads.bytes as f64 / seconds,
            reads: reads.count as f64 / seconds,
            written_bytes: writes.bytes as f64 / seconds,
            writes: writes.count as f64 / seconds,
            hit_percent: percent(hits, hits + misses),
            bypass_percent: percent(past, reads.bytes + writes.bytes),
            read_ns: reads.latency(),
            write_ns: writes.latency(),
            dirty_bytes: after.dirty_bytes,
            name: after.name,
            mode: after.mode,
            state: after.state,
        }
    };
    volumes(after).into_iter().map(row).collect()
}

/// Sorts by a column: names ascending, numbers descending, what has none last.
pub fn sort(rows: &mut [Row], by: Column, reversed: bool) {
    let number = |row: &Row| match by {
        Column::Name => 0.0,
        Column::Read => row.read_bytes,
        Column::Written => row.written_bytes,
        Column::Hits => row.hit_percent.unwrap_or(-1.0),
        Column::ReadLatency => row.read_ns.map_or(-1.0, |(_, p99)| p99 as f64),
        Column::WriteLatency => row.write_ns.map_or(-1.0, |(_, p99)| p99 as f64),
        Column::Dirty => row.dirty_bytes as f64,
    };
    let order = |a: &Row, b: &Row| -> Ordering {
        let order = number(b).total_cmp(&number(a)).then_with(|| a.name.cmp(&b.name));
        if reversed { order.reverse() } else { order }
    };
    rows.sort_by(order);
}

#[cfg(test)]
mod tests {
    use ubcache_daemon::served::report::SetReport;

    use super::*;

    fn path(bytes: u64, buckets: &[(u64, u64)]) -> PathReport {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let latency =
            LatencyReport { count, buckets: buckets.to_vec(), ..LatencyReport::default() };
        PathReport { bytes, latency }
    }

    fn report(paths: &[(&str, PathReport)]) -> Report {
        let requests = paths.iter().map(|(name, path)| ((*name).to_owned(), path.clone()));
        let volume = VolumeReport {
            name: "data".into(),
            requests: requests.collect(),
            ..VolumeReport::default()
        };
        let set = SetReport { volumes: vec![volume], ..SetReport::default() };
        Report { sets: vec![set], ..Report::default() }
    }

    #[test]
    fn rows_show_the_time_between_two_reports() {
        let before = report(&[("hit", path(4096, &[(1000, 1)]))]);
        let after = report(&[
            ("hit", path(4096 * 100, &[(1000, 50), (2000, 50)])),
            ("miss", path(4096, &[(1_000_000, 1)])),
            ("bypass_write", path(8192, &[(4000, 2)])),
        ]);
        let rows = rows(&before, &after, Duration::from_secs(2));
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert!((row.read_bytes - 4096.0 * 50.0).abs() < 1.0, "{row:?}");
        assert!((row.writes - 1.0).abs() < 0.01, "{row:?}");
        assert!((row.hit_percent.expect("reads") - 99.0).abs() < 0.01, "{row:?}");
        assert!((row.bypass_percent.expect("bytes") - 200.0 / 102.0).abs() < 0.01, "{row:?}");
        assert_eq!(row.read_ns, Some((2000, 2000)));
        assert_eq!(row.write_ns, Some((4000, 4000)));
    }

    /// A daemon that was started anew has counted less than before.
    #[test]
    fn counters_that_went_back_begin_at_zero() {
        let before = report(&[("hit", path(1 << 30, &[(1000, 5000)]))]);
        let after = report(&[("hit", path(4096, &[(1000, 1)]))]);
        let rows = rows(&before, &after, Duration::from_secs(1));
        assert!((rows[0].reads - 1.0).abs() < 0.01, "{rows:?}");
        assert!((rows[0].read_bytes - 4096.0).abs() < 1.0, "{rows:?}");
    }

    #[test]
    fn order_is_that_of_the_column() {
        let row = |name: &str, dirty_bytes, hit_percent| Row {
            name: name.into(),
            dirty_bytes,
            hit_percent,
            ..Row::default()
        };
        let mut rows = [row("b", 1, None), row("a", 2, Some(10.0)), row("c", 3, Some(90.0))];
        let mut names = |by, reversed| {
            sort(&mut rows, by, reversed);
            rows.iter().map(|row| row.name.as_str()).collect::<String>()
        };
        assert_eq!(names(Column::Name, false), "abc");
        assert_eq!(names(Column::Dirty, false), "cab");
        assert_eq!(names(Column::Dirty, true), "bac");
        assert_eq!(names(Column::Hits, false), "cab");
    }
}
