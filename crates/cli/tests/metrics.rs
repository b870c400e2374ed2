//! `ubcache metrics`: the numbers that Prometheus reads are those of `status`.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;
use support::{
    Daemon, NO_BYPASS, each_io, have, make_set, must, run, scratch, text, tool, ubcache,
};

const PIECE: usize = 64 << 10;

fn metrics(daemon: &Daemon, format: &str) -> String {
    must(ubcache().args(["metrics", "--format", format, "--control"]).arg(&daemon.control))
}

/// The value of a sample: its name, and words that are in its labels.
fn value(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let lines: Vec<&str> = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(lines.len(), 1, "{name} {labels:?} in:\n{metrics}");
    let value = lines[0].rsplit(' ').next().expect("a value");
    value.parse().unwrap_or_else(|_| panic!("{}", lines[0]))
}

#[test]
fn metrics_are_the_numbers_of_status() {
    each_io("metrics_are_the_numbers_of_status", |io, directory| {
        let (cache, mut disks) = make_set(directory, &[16, 16], &[]);
        // A name that has to be escaped.
        disks[1] = format!("quote\"d={}", text(&disks[1])).into();
        let options: Vec<&str> = NO_BYPASS.into_iter().chain(["--mode", "writeback"]).collect();
        let daemon = Daemon::start(io, directory, &cache, &disks, &options);
        daemon.set("writeback_running=0");
        let mut client = daemon.client("disk0.img");
        client.write(0, &[1; PIECE], true).expect("a write");
        let mut content = [0; PIECE];
        for at in [0, 0, 1 << 20] {
            client.read(at, &mut content).expect("a read");
        }
        let status = daemon.status();
        let set = &status["sets"][0];
        let number =
            |pointer: &str| set.pointer(pointer).and_then(Value::as_f64).expect("a number");
        for (format, end) in [("openmetrics", "# EOF\n"), ("prometheus", "\n")] {
            let metrics = metrics(&daemon, format);
            assert!(metrics.ends_with(end), "{metrics}");
            let volume = ["volume=\"disk0.img\""];
            for (name, labels, pointer) in [
                ("ubcache_volume_cache_hits_total", &volume[..], "/volumes/0/stats/cache_hits"),
                ("ubcache_volume_cache_misses_total", &volume, "/volumes/0/stats/cache_misses"),
                ("ubcache_volume_dirty_bytes", &volume, "/volumes/0/dirty_bytes"),
                ("ubcache_volume_size_bytes", &["quote\\\"d"], "/volumes/1/size_bytes"),
                ("ubcache_cache_size_bytes", &[], "/cache/size_bytes"),
                ("ubcache_cache_dirty_bytes", &[], "/cache/dirty_bytes"),
                (
                    "ubcache_device_written_bytes_total",
                    &["device=\"cache\""],
                    "/cache/written_bytes",
                ),
                (
                    "ubcache_device_reads_total",
                    &["disk0.img", "device=\"disk\""],
                    "/volumes/0/backing/reads",
                ),
            ] {
                let found = value(&metrics, name, labels);
                assert!(found.total_cmp(&number(pointer)).is_eq(), "{name}: {found}");
            }
            assert!(value(&metrics, "ubcache_volume_cache_hits_total", &volume) >= 2.0);
            let info = ["mode=\"writeback\"", "state=\"dirty\"", "disk0.img"];
            assert_eq!(value(&metrics, "ubcache_volume_info", &info).to_string(), "1");
        }
        drop(client);
        daemon.stop();
    });
}

/// docs/reference/metrics.md lists them, and nothing else.
#[test]
fn every_metric_is_in_the_reference() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let metrics = metrics(&daemon, "prometheus");
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut printed: Vec<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    printed.sort_unstable();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");
    let text = std::fs::read_to_string(path).expect("the reference");
    let words = text.split('`').filter(|word| word.starts_with("ubcache_"));
    let mut listed: Vec<&str> = words.collect();
    listed.sort_unstable();
    assert_eq!(listed, printed);
    daemon.stop();
}

#[test]
fn promtool_finds_no_fault() {
    let test = "promtool_finds_no_fault";
    if !have(test, &["promtool"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let file = directory.join("ubcache.prom");
    for _ in 0..2 {
        let mut command = ubcache();
        command.args(["metrics", "--format", "prometheus", "--out"]).arg(&file);
        must(command.arg("--control").arg(&daemon.control));
    }
    let metrics = std::fs::read(&file).expect("it was written");
    let mut command = tool("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().expect("promtool runs");
    promtool.stdin.take().expect("a pipe").write_all(&metrics).expect("it reads all");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    daemon.stop();
}

#[test]
fn a_set_that_is_not_healthy_is_a_number() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, mut disks) = make_set(directory, &[16, 16], &[]);
    Daemon::start("pool", directory, &cache, &disks, &[]).stop();
    disks[1] = directory.join("gone.img");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let metrics = metrics(&daemon, "openmetrics");
    assert!(value(&metrics, "ubcache_set_health", &[]) > 0.0, "{metrics}");
    assert!(value(&metrics, "ubcache_disks_down", &[]) > 0.0, "{metrics}");
    daemon.stop();
    let output = run(&["metrics", "--control", text(&directory.join("control.sock"))]);
    assert_eq!(output.status.code(), Some(3), "no daemon, as for status");
}
