//! `ubcache map`: cached and dirty ranges of a volume, and the buckets of a cache, to the unit.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use serde_json::Value;
use support::{Daemon, STAYS_DIRTY, http, make_set, must, scratch, text, ubcache};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Output of `ubcache map`.
fn map(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = ubcache();
    command.arg("map").args(arguments).arg("--control").arg(&daemon.control);
    must(&mut command)
}

fn json(daemon: &Daemon, arguments: &[&str]) -> Value {
    serde_json::from_str(&map(daemon, &[arguments, &["--json"]].concat())).expect("JSON")
}

/// Bytes of ranges (start, length) in a part of a volume.
fn within(ranges: &[(u64, u64)], start: u64, end: u64) -> u64 {
    let part = |(at, len): &(u64, u64)| (at + len).min(end).saturating_sub(*at.max(&start));
    ranges.iter().map(part).sum()
}

#[test]
fn the_map_of_a_volume_is_what_was_written_and_read_to_the_byte() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &STAYS_DIRTY);
    let empty = json(&daemon, &[]);
    assert_eq!((&empty["cached_bytes"], &empty["dirty_bytes"]), (&0.into(), &0.into()));
    let mut client = daemon.client("disk0.img");
    let dirty = [(0, MIB), (5 * MIB + 4 * KIB, 64 * KIB), (9 * MIB - 4 * KIB, 20 * KIB)];
    for (at, len) in dirty {
        client.write(at, &vec![1; len as usize], false).expect("a write");
    }
    let clean = [(3 * MIB, 256 * KIB), (12 * MIB + 8 * KIB, 4 * KIB)];
    for (at, len) in clean {
        // A fill may end behind its read: a hit shows that it has.
        let hits = daemon.number(0, "/stats/cache_hits");
        while daemon.number(0, "/stats/cache_hits") == hits {
            client.read(at, &mut vec![0; len as usize]).expect("a read");
        }
    }
    let cached = [&dirty[..], &clean].concat();
    for cells in [1, 7, 100, 512, 4096] {
        let map = json(&daemon, &["disk0.img", "--cells", &cells.to_string()]);
        let number = |name: &str| map[name].as_u64().expect("a number");
        let (size, cell) = (number("size_bytes"), number("cell_bytes"));
        let found = map["cells"].as_array().expect("cells");
        assert!(found.len() <= cells && found.len() as u64 == size.div_ceil(cell), "{cells}");
        for (index, it) in found.iter().enumerate() {
            let (start, end) = (index as u64 * cell, size.min((index as u64 + 1) * cell));
            assert_eq!(it["cached_bytes"], within(&cached, start, end), "{cells}: {start}");
            assert_eq!(it["dirty_bytes"], within(&dirty, start, end), "{cells}: {start}");
        }
        assert_eq!(number("cached_bytes"), within(&cached, 0, size));
        assert_eq!(number("dirty_bytes"), daemon.number(0, "/dirty_bytes"));
    }
    let strip = map(&daemon, &["--cells", "16"]);
    assert!(strip.contains(" D..c.d..dd..c...\n"), "{strip}");
    assert!(!strip.contains('\x1b'), "no colours in a pipe: {strip}");
    must(ubcache().args(["drain", "--wait"]).arg("--control").arg(&daemon.control));
    let clean = json(&daemon, &[]);
    assert_eq!(clean["cached_bytes"], within(&cached, 0, u64::MAX));
    assert_eq!(clean["dirty_bytes"], 0);
    let picture = directory.path().join("map.svg");
    map(&daemon, &["-o", text(&picture)]);
    let picture = std::fs::read_to_string(picture).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.contains("disk0.img: "), "{picture}");
    daemon.stop();
}

#[test]
fn the_map_of_the_buckets_has_each_bucket_once() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &STAYS_DIRTY);
    let mut client = daemon.client("disk0.img");
    client.write(0, &vec![1; MIB as usize], true).expect("a write");
    // The prio chain may still be written: both are of one moment when nothing changes around it.
    let (report, buckets) = loop {
        let before = daemon.status();
        let buckets = json(&daemon, &["--buckets", "--cells", "100"]);
        if daemon.status() == before {
            break (before, buckets);
        }
    };
    let cache = &report["sets"][0]["cache"];
    let number = |value: &Value| value.as_u64().expect("a number");
    let count = number(&buckets["buckets"]);
    assert_eq!(count * number(&buckets["bucket_bytes"]), number(&cache["size_bytes"]));
    let kinds = ["free", "clean", "dirty", "metadata", "put_aside", "unknown"];
    let cells = buckets["cells"].as_array().expect("cells");
    assert!(cells.len() <= 100, "{}", cells.len());
    let mut all = 0;
    for kind in kinds {
        let sum: u64 = cells.iter().map(|cell| number(&cell[kind])).sum();
        assert_eq!(sum, number(&buckets["all"][kind]), "{kind}");
        all += sum;
    }
    assert_eq!(all, count);
    let used = number(&cache["used_bytes"]) / number(&cache["bucket_bytes"]);
    assert_eq!(number(&buckets["all"]["free"]), count - used);
    assert!((16..=18).contains(&number(&buckets["all"]["dirty"])), "{buckets}");
    let strip = map(&daemon, &["--buckets"]);
    assert!(strip.contains("1024 buckets of 64k") && strip.contains('D'), "{strip}");
    daemon.stop();
}

#[test]
fn a_map_that_can_not_be_drawn_says_why() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[1], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &[]);
    for (query, expected) in
        [("cells=0", "?cells=N"), ("cells=4097", "4096"), ("width=3", "cells=N")]
    {
        let path = format!("/v1/volumes/disk0.img/map?{query}");
        let refused = http::ask(&daemon.control, "GET", &path, "");
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.error("expected").contains(expected), "{query}");
    }
    let missing = http::ask(&daemon.control, "GET", "/v1/volumes/other/map", "");
    assert_eq!((missing.status, missing.error("expected")), (404, "one of disk0.img".to_owned()));
    let other = http::ask(&daemon.control, "GET", "/v1/volumes/map?cells=3", "");
    assert_eq!(other.status, 400, "a volume of that name takes no parameter");
    daemon.stop();
}
