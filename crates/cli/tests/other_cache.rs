//! A cache that is missing at the start, and one that is replaced while clients go on.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::pieces::{PIECE, write_and_compare};
use support::{Daemon, each_io, make_set, must, run, scratch, sparse, text, ubcache};

const DIRTY: [&str; 4] = ["--mode", "writeback", "--set", "writeback_running=0"];

fn new_cache(directory: &Path, name: &str) -> PathBuf {
    let cache = directory.join(name);
    sparse(&cache, 64 << 20);
    must(ubcache().args(["make", "--bucket", "64k", "-C"]).arg(&cache));
    cache
}

fn write(daemon: &Daemon, export: &str, byte: u8) {
    daemon.client(export).write(0, &[byte; PIECE], true).expect("a write");
}

fn holds(daemon: &Daemon, export: &str, byte: u8) {
    let mut found = [0; PIECE];
    daemon.client(export).read(0, &mut found).expect("a read");
    assert!(found == [byte; PIECE], "{export}");
}

fn set(daemon: &Daemon) -> Value {
    daemon.status()["sets"][0].clone()
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

fn attach(daemon: &Daemon, cache: &Path) -> std::process::Output {
    let mut command = ubcache();
    command.args(["attach", "--cache"]).arg(cache).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

/// An SSD that was dead at boot kept down disks that were complete.
#[test]
fn clean_disks_come_up_without_their_cache() {
    each_io("clean_disks_come_up_without_their_cache", |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &DIRTY);
        write(&daemon, "disk0.img", 1);
        write(&daemon, "disk1.img", 2);
        must(ubcache().args(["drain", "disk0.img", "--wait", "--control"]).arg(&daemon.control));
        holds(&daemon, "disk0.img", 1);
        daemon.stop();
        let away = directory.join("away.img");
        std::fs::rename(&cache, &away).expect("the SSD is dead");

        let Err((status, said)) = Daemon::try_start(io, directory, &cache, &disks, &[]) else {
            panic!("without the option a missing cache is refused");
        };
        let optional = ["--cache-optional"];
        assert!(status.code() == Some(2) && said.contains(optional[0]), "{said}");
        let daemon = Daemon::start(io, directory, &cache, &disks, &optional);
        let found = set(&daemon);
        let state = found["state"].as_str().expect("a state");
        assert!(state.starts_with("no cache: ") && state.contains("can't open"), "{state}");
        let volumes = found["volumes"].as_array().expect("volumes");
        assert_eq!((volumes.len(), &volumes[0]["state"]), (1, &Value::from("no cache")));
        let why = found["down"][0]["why"].as_str().expect("a reason");
        assert!(why.contains("disk1.img") && why.contains("dirty"), "{why}");
        holds(&daemon, "disk0.img", 1);
        write(&daemon, "disk0.img", 3);
        let mut command = ubcache();
        command.args(["attach", "disk0.img", "--control"]).arg(&daemon.control);
        let said = String::from_utf8_lossy(&command.output().expect("it runs").stderr).into_owned();
        assert!(said.contains("there is no cache"), "{said}");
        // It said that the cache has no record of the disk, and how to give its dirty data up.
        let mut command = ubcache();
        command.args(["add", "-B"]).arg(&disks[1]).arg("--control").arg(&daemon.control);
        let said = String::from_utf8_lossy(&command.output().expect("it runs").stderr).into_owned();
        assert!(said.contains("the backing device is dirty, but its cache is missing"), "{said}");
        daemon.kill();

        // The cache comes back: nothing that it has of the clean disk is believed, and the dirty
        // data of the other one is there.
        std::fs::rename(&away, &cache).expect("the SSD is back");
        let daemon = Daemon::start(io, directory, &cache, &disks, &optional);
        assert_eq!(set(&daemon)["state"], "running");
        holds(&daemon, "disk0.img", 3);
        holds(&daemon, "disk1.img", 2);
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").args(&disks));
    });
}

#[test]
fn start_without_cache_and_without_a_clean_disk_is_refused() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    write(&daemon, "disk0.img", 1);
    daemon.stop();
    std::fs::remove_file(&cache).expect("the SSD is dead");
    let before = support::sha256_of(&disks[0]);
    let serve = ["serve", "--cache-optional", "-C", text(&cache), "-B", text(&disks[0])];
    let output = run(&serve);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("dirty"), "{said}");
    for command in ["ubcache forget-cache ", "ubcache attach disk0.img"] {
        assert!(said.contains(command), "{said}");
    }
    assert_eq!(support::sha256_of(&disks[0]), before, "it is not changed");
}

/// Replaces the cache under a client that writes and compares without a pause.
fn replaced_under_load(daemon: &Daemon, export: &str, cache: &Path) -> String {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut client = daemon.client(export);
        let over = &over;
        let load = scope.spawn(move || {
            let mut turn = 0_u8;
            while !over.load(Ordering::Relaxed) {
                turn = turn.wrapping_add(1);
                let at = (u64::from(turn) % 16) * PIECE as u64 + (1 << 20);
                write_and_compare(&mut client, turn, at);
            }
        });
        let output = attach(daemon, cache);
        std::thread::sleep(std::time::Duration::from_millis(100));
        over.store(true, Ordering::Relaxed);
        load.join().expect("no error of the client");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// A cache could be replaced only by a stop of everything.
#[test]
fn cache_is_replaced_under_load() {
    each_io("cache_is_replaced_under_load", |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16], &[]);
        let new = new_cache(directory, "new.img");
        let daemon = Daemon::start(io, directory, &cache, &disks, &["--mode", "writeback"]);
        write(&daemon, "disk0.img", 1);
        write(&daemon, "disk1.img", 2);
        let output = attach(&daemon, &new);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is in use") && said.contains("ubcache detach disk0.img"), "{said}");
        for export in ["disk0.img", "disk1.img"] {
            must(ubcache().args(["detach", export, "--control"]).arg(&daemon.control));
        }
        let said = replaced_under_load(&daemon, "disk0.img", &new);
        assert_eq!(said, "disk0.img: attached\ndisk1.img: attached\n");
        let found = set(&daemon);
        assert_eq!(
            (&found["cache"]["path"], &found["state"]),
            (&text(&new).into(), &"running".into())
        );
        holds(&daemon, "disk0.img", 1);
        daemon.set("writeback_running=0");
        write(&daemon, "disk1.img", 4);
        assert!(daemon.number(1, "/dirty_bytes") > 0);
        // The former cache can be used for something else when the log says so. The daemon kept it
        // open for the events of its set.
        while !log(directory).contains("the former cache is free") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        must(ubcache().args(["make", "--bucket", "64k", "--wipe-bcache", "-C"]).arg(&cache));
        daemon.kill();
        let daemon = Daemon::start(io, directory, &new, &disks, &[]);
        holds(&daemon, "disk0.img", 1);
        holds(&daemon, "disk1.img", 4);
        daemon.stop();
        must(ubcache().arg("check").arg(&new).arg("-B").args(&disks));
    });
}

#[test]
fn missing_cache_gets_a_successor_under_load() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    write(&daemon, "disk0.img", 1);
    daemon.stop();
    std::fs::remove_file(&cache).expect("the SSD is dead");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &["--cache-optional"]);
    let plain = directory.join("plain.img");
    sparse(&plain, 64 << 20);
    let output = attach(&daemon, &plain);
    assert!(!output.status.success() && set(&daemon)["state"] != "running");
    let new = new_cache(directory, "new.img");
    replaced_under_load(&daemon, "disk0.img", &new);
    assert_eq!(set(&daemon)["state"], "running");
    assert_eq!(set(&daemon)["volumes"][0]["state"], "clean");
    // It is cached; a fill may end after its read.
    while daemon.number(0, "/stats/cache_hits") == 0 {
        holds(&daemon, "disk0.img", 1);
    }
    daemon.stop();
    let daemon = Daemon::start("pool", directory, &new, &disks, &[]);
    holds(&daemon, "disk0.img", 1);
    daemon.stop();
}

/// A stop while volumes moved to another cache was a panic, and left some of them to the one and
/// some to the other.
#[test]
fn stop_waits_for_a_cache_that_is_being_replaced() {
    each_io("stop_waits_for_a_cache_that_is_being_replaced", |io, directory| {
        for millis in [2, 5, 8, 11, 15, 20, 25, 30] {
            let directory = directory.join(millis.to_string());
            std::fs::create_dir(&directory).expect("a directory");
            let (cache, disks) = make_set(&directory, &[8, 8], &[]);
            let new = new_cache(&directory, "new.img");
            let daemon = Daemon::start(io, &directory, &cache, &disks, &[]);
            write(&daemon, "disk0.img", 1);
            for export in ["disk0.img", "disk1.img"] {
                must(ubcache().args(["detach", export, "--control"]).arg(&daemon.control));
            }
            let replaced = std::thread::scope(|scope| {
                let replacing = scope.spawn(|| attach(&daemon, &new));
                std::thread::sleep(std::time::Duration::from_millis(millis));
                must(ubcache().args(["stop", "--control"]).arg(&daemon.control));
                replacing.join().expect("it ends")
            });
            daemon.wait();
            // All of it is done, or nothing; an answer may have been cut off.
            let [of_old, of_new] = [&cache, &new].map(|cache| {
                let Ok(daemon) = Daemon::try_start(io, &directory, cache, &disks, &[]) else {
                    return 0;
                };
                holds(&daemon, "disk0.img", 1);
                let status = daemon.status();
                daemon.stop();
                let volumes = status["sets"][0]["volumes"].as_array().expect("volumes");
                volumes.iter().filter(|volume| volume["state"] != "no cache").count()
            });
            assert!(of_old == 0 && [0, 2].contains(&of_new), "{millis} ms: {of_old}, {of_new}");
            assert!(!replaced.status.success() || of_new == 2, "{replaced:?}");
        }
    });
}
