//! One disk of several is missing, damaged or of another set when the daemon starts: the others are
//! served.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use support::{Daemon, each_io, make_set, must, run, scratch, sparse, text, ubcache};
use ubcache_cli::nbd_client::Client;

const PIECE: usize = 64 << 10;
/// Dirty data stays dirty.
const DIRTY: [&str; 4] = ["--mode", "writeback", "--set", "writeback_running=0"];

fn write(daemon: &Daemon, export: &str, byte: u8) {
    daemon.client(export).write(0, &[byte; PIECE], true).expect("a write");
}

fn holds(daemon: &Daemon, export: &str, byte: u8) {
    let mut found = [0; PIECE];
    daemon.client(export).read(0, &mut found).expect("a read");
    assert!(found == [byte; PIECE], "{export}");
}

fn down(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.status();
    status["sets"][0]["down"].as_array().expect("a list").clone()
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// One dead disk of eight kept all of them down: the checks before the start refused the whole
/// command. Only what can't be served is left out now.
#[test]
fn missing_and_damaged_disks_are_left_out() {
    each_io("missing_and_damaged_disks_are_left_out", |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16, 16], &[]);
        let serve = || Daemon::start(io, directory, &cache, &disks, &DIRTY);
        let daemon = serve();
        for (export, byte) in [("disk0.img", 1), ("disk1.img", 2), ("disk2.img", 3)] {
            write(&daemon, export, byte);
        }
        assert!(down(&daemon).is_empty());
        drop(daemon.client(""));
        daemon.stop();

        // The first one is missing, and the last one damaged.
        let away = directory.join("away.img");
        std::fs::rename(&disks[0], &away).expect("the disk is pulled out");
        let open = |path: &Path| std::fs::File::options().read(true).write(true).open(path);
        let file = open(&disks[2]).expect("a disk");
        let mut whole = [0; 512];
        file.read_exact_at(&mut whole, 4096).expect("a superblock");
        file.write_all_at(&[0xff; 512], 4096).expect("damage");
        let daemon = serve();
        // The empty name stands for the first disk of the command, and for no other in its place.
        assert!(Client::connect(&daemon.socket, "").is_err());
        holds(&daemon, "disk1.img", 2);
        write(&daemon, "disk1.img", 4);
        let said = daemon.greeting.join("\n");
        assert!(said.contains(&format!("down disk0.img {}", text(&disks[0]))), "{said}");
        let found = down(&daemon);
        assert_eq!((found.len(), &found[0]["name"]), (2, &Value::from("disk0.img")), "{found:?}");
        for (disk, found, why) in [(0, &found[0], "can't open"), (2, &found[1], "not a bcache")] {
            assert_eq!(found["path"], text(&disks[disk]));
            assert!(found["why"].as_str().is_some_and(|it| it.contains(why)), "{found}");
        }
        let table = daemon.look(&[]).1;
        assert!(table.contains("down     disk0.img") && table.contains("can't open"), "{table}");
        let log = log(directory);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("not served")).collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(lines[0].contains("ERROR") && lines[0].contains(text(&disks[0])), "{log}");
        daemon.stop();

        // Dirty data of theirs in the cache is there when they are back.
        std::fs::rename(&away, &disks[0]).expect("the disk is back");
        file.write_all_at(&whole, 4096).expect("a repaired disk");
        let daemon = serve();
        for (export, byte) in [("disk0.img", 1), ("disk1.img", 4), ("disk2.img", 3)] {
            holds(&daemon, export, byte);
        }
        assert!(down(&daemon).is_empty());
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").args(&disks));
    });
}

/// A disk that the engine itself refuses, after the checks: it has become shorter than what is
/// dirty.
#[test]
fn disk_that_is_refused_by_the_set_is_left_out() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    daemon.client("disk0.img").write(8 << 20, &[1; PIECE], true).expect("a write");
    write(&daemon, "disk1.img", 2);
    daemon.stop();
    let file = std::fs::File::options().write(true).open(&disks[0]).expect("a disk");
    file.set_len(4 << 20).expect("a shorter disk");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    holds(&daemon, "disk1.img", 2);
    let found = down(&daemon);
    assert!(found[0]["why"].as_str().is_some_and(|it| it.contains("shorter")), "{found:?}");
    daemon.stop();
    file.set_len(16 << 20).expect("its size");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    let mut found = [0; PIECE];
    daemon.client("disk0.img").read(8 << 20, &mut found).expect("a read");
    assert!(found == [1; PIECE]);
    daemon.stop();
}

/// Nothing is left to serve, or the command itself is wrong: that is no start.
#[test]
fn start_without_any_good_disk_is_refused() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[8], &[]);
    let plain = directory.join("plain.img");
    sparse(&plain, 8 << 20);
    let nowhere = directory.join("nowhere.img");
    let serve = |disks: &[&Path]| {
        let mut arguments = vec!["serve", "-C", text(&cache)];
        arguments.extend(disks.iter().flat_map(|disk| ["-B", text(disk)]));
        let output = run(&arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = serve(&[&nowhere, &plain]);
    assert!(code == Some(2) && said.contains("nowhere.img: can't open"), "{said}");
    let (code, said) = serve(&[&plain, &nowhere]);
    assert!(code == Some(1) && said.contains("plain.img: not a bcache device"), "{said}");
    let (code, said) = serve(&[&disks[0], &disks[0], &nowhere]);
    assert!(code == Some(1) && said.contains("given twice"), "{said}");
}
