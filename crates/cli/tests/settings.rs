//! `ubcache set`: accepted settings are kept, and refused ones have changed nothing.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::net::UnixStream;

use support::{Daemon, STAYS_DIRTY, each_io, http, make_set, must, run, scratch, text, ubcache};

/// The answer came before the superblock was written: in two of five tries the mode was lost with a
/// `kill -9` after it.
#[test]
fn answered_settings_survive_kill_9() {
    each_io("answered_settings_survive_kill_9", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &["--label", "data"]);
        for (round, mode) in ["writeback", "writearound", "none", "writethrough"].iter().enumerate()
        {
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            // Without its cache as well.
            if round > 0 {
                let command = ["attach", "detach"][round % 2];
                must(ubcache().args([command, "--control"]).arg(&daemon.control));
            }
            let label = format!("label={mode}");
            let policy =
                ["cache_replacement_policy=fifo", "cache_replacement_policy=lru"][round % 2];
            daemon.set(policy);
            must(
                ubcache()
                    .args(["set", &format!("cache_mode={mode}"), &label, "--control"])
                    .arg(&daemon.control),
            );
            daemon.kill();
            let shown = must(ubcache().args(["show", "--json"]).arg(&backings[0]));
            assert!(shown.contains(&format!("\"{mode}\"")), "{mode}: {shown}");
            let shown = must(ubcache().args(["show"]).arg(&cache));
            let word = policy.rsplit('=').next().expect("a policy");
            assert!(shown.contains(word), "{policy}: {shown}");
        }
    });
}

/// `set A=1 B=wrong` was refused, and A was changed.
#[test]
fn refused_settings_change_nothing() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let control = text(&daemon.control);
    let get = |name: &str| must(ubcache().args(["get", name, "--control", control]));
    let before = ["writeback_percent", "cache_mode", "journal_delay_ms"].map(get);
    for wrong in ["sequential_cutoff=xx", "nonsense=1", "journal_delay_ms=soon"] {
        let all = [
            "set",
            "writeback_percent=33",
            "cache_mode=none",
            "journal_delay_ms=7",
            wrong,
            "--control",
            control,
        ];
        let output = run(&all);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(
            ["writeback_percent", "cache_mode", "journal_delay_ms"].map(get),
            before,
            "{wrong}"
        );
    }
    // Settings that only the earlier ones permit are accepted after them.
    must(ubcache().args([
        "set",
        "writeback_rate_fp_term_high=5000",
        "writeback_rate_fp_term_mid=4000",
        "writeback_rate_fp_term_low=3000",
        "--control",
        control,
    ]));
    daemon.stop();
    let output = ubcache()
        .args(["serve", "--set", "cache_mode=none", "--set", "sequential_cutoff=xx", "-C"])
        .arg(&cache)
        .args(["--nbd", "unix:/nowhere/x", "-B"])
        .args(&backings)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(!must(ubcache().arg("show").arg(&backings[0])).contains("no caching"));
}

/// Each switch was put in a queue with a task of its own, which kept memory for ever and which
/// `stop` waited for.
#[test]
fn concurrent_mode_switches_are_merged() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let written = daemon.number(0, "/backing/writes");
    let clients: Vec<UnixStream> = (0..60)
        .map(|number| {
            let mode = ["writeback", "writethrough"][number % 2];
            let body = format!("{{\"value\":\"{mode}\"}}");
            let path = "/v1/volumes/disk0.img/attributes/cache_mode";
            http::send(&daemon.control, "PUT", path, &body)
        })
        .collect();
    for client in clients {
        assert_eq!(http::response(client).status, 204);
    }
    // A write of a superblock is two writes; 60 of them one by one would be 120.
    let more = daemon.number(0, "/backing/writes") - written;
    assert!(more < 90, "{more} writes");
    daemon.stop();
}

/// Settings of a start took effect after the disks were attached: their writeback had begun, and
/// some dirty data was gone that `writeback_running=0` was to keep.
#[test]
fn settings_of_a_start_hold_before_writeback_begins() {
    each_io("settings_of_a_start_hold_before_writeback_begins", |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16, 16, 16], &[]);
        let start = || Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let daemon = start();
        for disk in 0..disks.len() {
            let mut client = daemon.client(&format!("disk{disk}.img"));
            client.write(0, &vec![1; 1 << 20], true).expect("a write");
        }
        daemon.stop();
        for _ in 0..4 {
            let daemon = start();
            for disk in 0..disks.len() {
                assert_eq!(daemon.number(disk, "/dirty_bytes"), 1 << 20);
                assert_eq!(daemon.number(disk, "/writeback/written_bytes"), 0);
            }
            daemon.stop();
        }
    });
}

/// Values come with suffixes, one out of range is refused with its range, a misspelled name is
/// answered with the nearest one, and `get --all` says all of that beforehand.
#[test]
fn attributes_say_what_they_take() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let control = text(&daemon.control);
    must(ubcache().args([
        "set",
        "writeback_percent=20%",
        "writeback_delay=5min",
        "sequential_cutoff=8M",
        "congested_read_threshold_us=3ms",
        "--control",
        control,
    ]));
    let get = |name: &str| must(ubcache().args(["get", name, "--control", control]));
    assert_eq!(get("writeback_percent"), "20\n");
    assert_eq!(get("writeback_delay"), "300\n");
    assert_eq!(get("sequential_cutoff"), "8.0M\n");
    assert_eq!(get("congested_read_threshold_us"), "3000\n");
    for (assignment, expected) in [
        ("writeback_percent=100", "100 is out of range: expected 0 to 40 %"),
        ("writeback_delay=soon", "or with ms, s, min or h"),
        ("cachemode=none", "did you mean \"cache_mode\"?"),
        ("journal-delay-ms=1", "did you mean \"journal_delay_ms\"?"),
        ("state=clean", "can only be read"),
    ] {
        let output = run(&["set", assignment, "--control", control]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{assignment}: {said}");
    }
    let all = must(ubcache().args(["get", "--all", "--json", "--control", control]));
    let all: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    let percent = &all["volumes"]["disk0.img"]["writeback_percent"];
    assert_eq!((&percent["value"], &percent["default"]), (&"20".into(), &"10".into()));
    assert_eq!((&percent["range"], &percent["unit"]), (&"0 to 40".into(), &"%".into()));
    assert_eq!(all["volumes"]["disk0.img"]["cache_mode"]["kept"], "superblock");
    assert_eq!(all["set"]["journal_delay_ms"]["kept"], "until restart");
    let shown = must(ubcache().args(["get", "--all", "--control", control]));
    for line in [
        "disk0.img cache_mode: [writethrough] writeback writearound none",
        "takes 0 to 40 %; default 10; kept: until restart",
    ] {
        assert!(shown.contains(line), "{line}:\n{shown}");
    }
    assert_eq!(get("stats_total/cache_hit_ratio"), "0\n");
    daemon.set("clear_stats=1");
    daemon.stop();
}
