//! `ubcache advise`: estimates from live traffic, and commands that do what they say.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Daemon, NO_BYPASS, make_set, must, scratch, sparse, text, ubcache};

const MIB: u64 = 1 << 20;

fn advise(daemon: &Daemon, arguments: &[&str]) -> String {
    must(ubcache().arg("advise").args(arguments).arg("--control").arg(&daemon.control))
}

/// Runs a command of the advice in a directory where `NEW` is a file.
fn follow(daemon: &Daemon, directory: &Path, command: &str) {
    let place = directory.join("ubcache");
    std::fs::create_dir_all(&place).expect("a directory");
    std::os::unix::fs::symlink(&daemon.control, place.join("set.sock")).expect("a link");
    // A cache has 513 buckets at least.
    sparse(&directory.join("NEW"), 320 * MIB);
    let ubcache = ubcache();
    let programs = Path::new(ubcache.get_program()).parent().expect("a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(directory).env("XDG_RUNTIME_DIR", directory);
    must(shell.env("PATH", format!("{}:{path}", text(programs))));
}

/// A volume of 160 MiB that is read from end to end, again and again, has no hits in a cache of 64
/// MiB or 128 MiB, and nothing but hits in one of 256 MiB.
#[test]
fn a_load_that_needs_a_larger_cache_is_seen_and_the_advice_helps() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[160], &[]);
    let settings = [&NO_BYPASS[..], &["--set", "cache_replacement_policy=lru"]].concat();
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &settings);
    let nothing: Value = serde_json::from_str(&advise(&daemon, &["--json"])).expect("JSON");
    assert_eq!(nothing["cache"]["read_hit_ratio"], Value::Null, "{nothing}");
    assert_eq!(nothing["advice"], Value::Array(Vec::new()), "{nothing}");
    assert!(advise(&daemon, &[]).contains("nothing to change"));

    let mut client = daemon.client("disk0.img");
    let mut buffer = vec![0; MIB as usize];
    const ROUNDS: u64 = 3;
    for _ in 0..ROUNDS {
        (0..159).for_each(|at| client.read(at * MIB, &mut buffer).expect("a read"));
    }
    let report: Value = serde_json::from_str(&advise(&daemon, &["--json"])).expect("JSON");
    let cache = &report["cache"];
    assert_eq!(cache["size_bytes"], 64 * MIB);
    assert_eq!(cache["read_bytes"], ROUNDS * 159 * MIB, "{report}");
    let measured = cache["read_hit_ratio"].as_f64().expect("a ratio");
    let sizes = cache["sizes"].as_array().expect("sizes");
    let estimates: Vec<f64> =
        sizes.iter().map(|size| size["read_hit_ratio"].as_f64().expect("a ratio")).collect();
    println!("measured {measured}, estimated {estimates:?}");
    // Whole buckets are evicted, by a coarse clock: one that is read next may stay.
    assert!(measured < 0.3, "{report}");
    assert!(estimates[..3].iter().all(|ratio| *ratio < 0.05), "{report}");
    assert!((estimates[3] - 2.0 / 3.0).abs() < 0.05, "{report}");
    let footprint = cache["footprint_bytes"].as_u64().expect("a number");
    assert!((150 * MIB..170 * MIB).contains(&footprint), "{footprint}");

    let advice = report["advice"].as_array().expect("advice");
    assert_eq!(advice[0]["subject"], "cache_size", "{report}");
    let command = advice[0]["command"].as_str().expect("a command");
    assert!(advise(&daemon, &[]).contains(command));
    drop(client);
    follow(&daemon, directory.path(), command);
    assert_eq!(daemon.status()["sets"][0]["cache"]["size_bytes"], 320 * MIB);
    daemon.stop();
}

/// The share of bytes that each cutoff would send past the cache.
#[test]
fn bytes_in_long_runs_are_counted_by_cutoff() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[160], &[]);
    let settings = ["--set", "congested_read_threshold_us=0", "--set", "sequential_cutoff=16M"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &settings);
    let mut client = daemon.client("disk0.img");
    let mut buffer = vec![0; MIB as usize];
    // From end to end in one run: all but its beginning goes past the cache.
    (0..159).for_each(|at| client.read(at * MIB, &mut buffer).expect("a read"));
    let report: Value = serde_json::from_str(&advise(&daemon, &["--json"])).expect("JSON");
    let volume = &report["volumes"][0];
    let bypassed = volume["sequential_bytes"].as_u64().expect("a number");
    assert!(bypassed >= 140 * MIB, "{report}");
    let run = |cutoff: u64| {
        let runs = volume["runs"].as_array().expect("runs");
        let found = runs.iter().find(|run| run["cutoff_bytes"] == cutoff).expect("a cutoff");
        found["bytes"].as_u64().expect("a number")
    };
    assert_eq!(run(16 * MIB), (159 - 15) * MIB, "the sixteenth MiB reaches it: {report}");
    assert_eq!(run(64 * MIB), (159 - 63) * MIB, "{report}");
    assert_eq!(run(256 * MIB), 0, "{report}");
    daemon.stop();
}
