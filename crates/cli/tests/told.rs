//! The log alone says what happens to a set: its state at the start and at the stop, every failure
//! with its device, and who is connected.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::time::Duration;

use support::devices::{Fragile, filtered};
use support::{Daemon, each_io, have, make_set, scratch, skipped, text, ubcache};

const PIECE: usize = 64 << 10;

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// Waits for a line that has all of these, and returns it.
fn line(directory: &Path, words: &[&str]) -> String {
    let start = std::time::Instant::now();
    loop {
        let log = log(directory);
        let found = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        if let Some(line) = found {
            return line.to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no line with {words:?} in:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A set that failed, with the only copy of dirty data, was worth no line of the log.
#[test]
fn a_cache_that_fails_with_dirty_data_is_in_the_log() {
    let test = "a_cache_that_fails_with_dirty_data_is_in_the_log";
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &["--writeback"]);
        let Some(fragile) = Fragile::new(test, directory, &cache) else { return };
        let extra = ["--set", "writeback_running=0", "--set", "sequential_cutoff=0"];
        let daemon = Daemon::start(io, directory, &fragile.path, &backings, &extra);
        let mut client = daemon.client("disk0.img");
        client.write(0, &[7; PIECE], true).expect("a write");
        line(directory, &["INFO", "the volume is dirty", "export=\"disk0.img\""]);
        fragile.fail();
        let mut failed = false;
        for index in 1..64 {
            failed |= client.write(index * PIECE as u64, &[8; PIECE], true).is_err();
        }
        assert!(failed, "the cache takes nothing any more");
        let error = line(directory, &["ERROR", "requests to the cache device failed", "errno=5"]);
        for word in [text(&fragile.path), "operation=\"", "sector=", "sectors=", "count="] {
            assert!(error.contains(word), "{word} is missing in: {error}");
        }
        line(directory, &["ERROR", "the set has failed: ", text(&fragile.path)]);
        let lost = line(directory, &["ERROR", "the volume has failed", "export=\"disk0.img\""]);
        assert!(lost.contains("dirty=") && lost.contains(text(&backings[0])), "{lost}");
        let faults = log(directory).matches("requests to the cache device failed").count();
        assert!(faults < 10, "a line for each of {faults} errors:\n{}", log(directory));

        // A client may read what is left. When the last one has gone, nothing is served any more.
        let (code, table) = daemon.look(&[]);
        assert_eq!(code, 2, "{table}");
        for word in ["failed", "warning", "the set has failed: ", "had the only copy", "errors"] {
            assert!(table.contains(word), "{word} is missing in: {table}");
        }
        drop(client);
        assert_eq!(daemon.wait_for_status().code(), Some(5));
        line(directory, &["ERROR", "no volume is whole any more", "the daemon ends"]);
    });
}

/// Likewise for a cache without dirty data, which no client notices.
#[test]
fn a_clean_cache_that_fails_is_in_the_log() {
    let test = "a_clean_cache_that_fails_is_in_the_log";
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let Some(fragile) = Fragile::new(test, directory, &cache) else { return };
        let daemon = Daemon::start(io, directory, &fragile.path, &backings, &[]);
        let mut client = daemon.client("disk0.img");
        client.write(0, &[7; PIECE], true).expect("a write");
        fragile.fail();
        while !log(directory).contains("the set has failed") {
            client.write(0, &[8; PIECE], true).expect("a write, with or without the cache");
            client.read(0, &mut [0; PIECE]).expect("a read, with or without the cache");
        }
        line(directory, &["ERROR", "goes on without its cache", "export=\"disk0.img\""]);
        let (code, table) = daemon.look(&[]);
        assert!(code == 2 && table.contains("has lost nothing"), "{code}: {table}");
        daemon.kill();
    });
}

/// A disk that refused everything looked healthy, and a detach that failed on it ended in silence.
#[test]
fn errors_of_a_disk_and_a_detach_that_fails_are_in_the_log() {
    let test = "errors_of_a_disk_and_a_detach_that_fails_are_in_the_log";
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &["--writeback", "--label", "data"]);
        let Some(fragile) = Fragile::new(test, directory, &backings[0]) else { return };
        let settings = ["--set", "writeback_running=0"];
        let disk = [fragile.path.clone()];
        let daemon = Daemon::start(io, directory, &cache, &disk, &settings);
        let mut client = daemon.client("data");
        client.write(1 << 20, &[7; PIECE], true).expect("a write");
        fragile.fail();
        client.read(8 << 20, &mut [0; 4096]).expect_err("a read of a disk that fails");
        let error = line(directory, &["ERROR", "requests to the disk device failed", "errno=5"]);
        for word in [text(&fragile.path), "operation=\"read\"", "sector=16400", "count=1"] {
            assert!(error.contains(word), "{word} is missing in: {error}");
        }
        let detach = ubcache().args(["detach", "--control"]).arg(&daemon.control).output();
        assert_eq!(detach.expect("ubcache runs").status.code(), Some(1));
        line(directory, &["INFO", "all dirty data is being written back", "dirty=\"64k\""]);
        line(directory, &["ERROR", "the detach failed: ", "export=\"data\""]);
        line(directory, &["ERROR", "more requests to the disk device failed", "\"write\""]);
        let (code, table) = daemon.look(&[]);
        assert!(code == 1 && table.contains("requests failed since the start"), "{code}: {table}");
        fragile.mend();
        daemon.stop();
    });
}

/// Nothing said what a start found and what a stop left.
#[test]
fn starts_stops_clients_and_settings_are_in_the_log() {
    each_io("starts_stops_clients_and_settings_are_in_the_log", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &["--writeback", "--label", "data"]);
        let settings = ["--set", "writeback_running=0"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        let opened = line(directory, &["INFO", "the set was opened; there was nothing to replay"]);
        for word in [text(&cache), "size=\"64M\"", env!("CARGO_PKG_VERSION"), "set="] {
            assert!(opened.contains(word), "{word} is missing in: {opened}");
        }
        let attached = line(directory, &["INFO", "the volume was attached", text(&backings[0])]);
        for word in ["export=\"data\"", "state=\"clean\"", "mode=\"writeback\""] {
            assert!(attached.contains(word), "{word} is missing in: {attached}");
        }
        let mut client = daemon.client("data");
        client.write(1 << 20, &[7; PIECE], true).expect("a write");
        line(directory, &["INFO", "client connected", "export=\"data\"", text(&daemon.socket)]);
        drop(client);
        line(directory, &["INFO", "export=\"data\"", "client="]);
        daemon.set("writeback_percent=20");
        line(directory, &["INFO", "attribute set", "name=\"writeback_percent\" value=\"20\""]);
        daemon.kill();

        std::fs::remove_file(directory.join("serve.log")).expect("the log");
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        line(directory, &["INFO", "its journal was replayed"]);
        line(directory, &["INFO", "the content of the cache was counted", "dirty=\"64k\""]);
        daemon.stop();
        line(directory, &["INFO", "stopping", "clients=0"]);
        line(directory, &["INFO", "its dirty data stays in the cache", "dirty=\"64k\""]);
        line(directory, &["INFO", "stopped"]);

        std::fs::remove_file(directory.join("serve.log")).expect("the log");
        Daemon::start(io, directory, &cache, &backings, &settings).stop();
        line(directory, &["INFO", "there was nothing to replay", "changes=0"]);
    });
}

/// A stop that waited for a disk named none.
#[test]
fn a_stop_that_waits_says_what_for() {
    let test = "a_stop_that_waits_says_what_for";
    if !have(test, &["nbdkit", "nbdfuse", "fusermount3"]) {
        return;
    }
    let directory = scratch();
    let directory = directory.path();
    let (cache, backings) = make_set(directory, &[16], &[]);
    let delay = filtered(directory, &backings[0], "delay", &["wdelay=8"]);
    let Some((_mount, _guards, slow)) = delay else {
        skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
        return;
    };
    let daemon = Daemon::start("pool", directory, &cache, &[slow], &[]);
    let mut client = daemon.client("disk");
    std::thread::scope(|scope| {
        // The stop may cut it off.
        scope.spawn(move || _ = client.write(0, &[7; 4096], false));
        std::thread::sleep(Duration::from_secs(1));
        let stop = ubcache().args(["stop", "--control"]).arg(&daemon.control).spawn();
        line(directory, &["WARN", "the stop waits for "]);
        let _ = stop.expect("ubcache runs").wait();
    });
    daemon.wait();
}
