//! A disk that is gone: data that only the cache has of it is reported, and dropped on request.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{Daemon, STAYS_DIRTY, each_io, make_set, must, text, ubcache};

const MIB: usize = 1 << 20;
/// Runs a `ubcache forget-disk` that has to be refused; returns its message.
fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = ubcache();
    command.arg("forget-disk").args(arguments).arg("--control").arg(&daemon.control);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The arguments of the command in a message, from this word on.
fn advised(said: &str, command: &str) -> Vec<String> {
    let from = said.find(command).unwrap_or_else(|| panic!("no {command} in: {said}"));
    let line = said[from..].lines().next().expect("a line");
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

fn of_set(daemon: &Daemon, pointer: &str) -> Value {
    daemon.status()["sets"][0].pointer(pointer).expect("a part of the report").clone()
}

/// Dirty data of a disk that was destroyed was in no report but that of `check`, held its room for
/// ever, and no command gave it up.
#[test]
fn absent_disk_is_listed_and_can_be_forgotten() {
    each_io("absent_disk_is_listed_and_can_be_forgotten", |io, directory| {
        let (cache, mut backings) = make_set(directory, &[16], &[]);
        backings.push(directory.join("gone.img"));
        must(ubcache().args(["make", "--size", "32M", "--label", "gone", "-B"]).arg(&backings[1]));
        let serve =
            |number: usize| Daemon::start(io, directory, &cache, &backings[..number], &STAYS_DIRTY);
        let daemon = serve(2);
        daemon.client("disk0.img").write(0, &vec![5; MIB], true).expect("a write");
        for at in 0..10 {
            daemon.client("gone").write((at * MIB) as u64, &vec![6; MIB], true).expect("a write");
        }
        daemon.stop();

        let daemon = serve(1);
        while of_set(&daemon, "/absent/0/dirty_bytes") != 10 * MIB {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(of_set(&daemon, "/absent/0/label"), "gone");
        let uuid = of_set(&daemon, "/absent/0/uuid").as_str().expect("a UUID").to_owned();
        let table = daemon.look(&[]).1;
        let line =
            table.lines().find(|line| line.contains("absent   disk")).expect("a line for it");
        assert!(
            line.contains(&uuid) && line.contains("gone") && line.contains("10M dirty"),
            "{line}"
        );

        let here =
            must(ubcache().args(["get", "backing_dev_uuid", "--control"]).arg(&daemon.control));
        for disk in ["disk0.img", here.trim()] {
            let said = refused(&daemon, &[disk, "--discard-dirty"]);
            assert!(
                said.contains("is being served") && said.contains("ubcache detach disk0.img"),
                "{said}"
            );
        }
        let said = refused(&daemon, &["nothing", "--discard-dirty"]);
        assert!(said.contains("nothing") && said.contains(&uuid), "{said}");
        // A label is no proof that this disk is meant.
        let said = refused(&daemon, &["gone", "--discard-dirty"]);
        assert!(said.contains("no disk with the UUID") && said.contains(&uuid), "{said}");
        let said = refused(&daemon, &[&uuid]);
        assert!(said.contains("10M") && said.contains(&uuid), "{said}");
        assert_eq!(of_set(&daemon, "/absent/0/dirty_bytes"), 10 * MIB, "nothing was given up");

        let available = of_set(&daemon, "/cache/available_percent").as_f64();
        let said = must(
            ubcache()
                .args(advised(&said, "ubcache forget-disk"))
                .arg("--control")
                .arg(&daemon.control),
        );
        assert!(said.contains(&uuid) && said.contains("10M"), "{said}");
        assert_eq!(of_set(&daemon, "/absent"), Value::Array(Vec::new()));
        daemon.kill();

        // A crash right afterwards keeps it forgotten, and its room becomes free.
        let daemon = serve(1);
        assert_eq!(of_set(&daemon, "/absent"), Value::Array(Vec::new()));
        while of_set(&daemon, "/cache/available_percent").as_f64() <= available {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(daemon.number(0, "/dirty_bytes"), MIB as u64);
        let holds = |daemon: &Daemon, export: &str, byte: u8| {
            let mut found = vec![0; MIB];
            daemon.client(export).read(0, &mut found).expect("a read");
            assert!(found == vec![byte; MIB], "{export}");
        };
        holds(&daemon, "disk0.img", 5);
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").arg(&backings[0]));

        // The disk was not destroyed after all. Its own data is older.
        let daemon = serve(2);
        let said = of_set(&daemon, "/down/0/why").as_str().expect("a reason").to_owned();
        assert!(said.contains(text(&backings[1])) && said.contains("state dirty"), "{said}");
        daemon.stop();
        must(ubcache().args(advised(&said, "ubcache forget-cache")));
        let daemon = serve(2);
        holds(&daemon, "disk0.img", 5);
        holds(&daemon, "gone", 0);
        daemon.stop();
    });
}

/// Only a daemon could forget a disk, so that its set had to be served first.
#[test]
fn disk_of_a_set_that_is_not_running_is_forgotten() {
    each_io("disk_of_a_set_that_is_not_running_is_forgotten", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 32], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &STAYS_DIRTY);
        daemon.client("disk0.img").write(0, &vec![5; MIB], true).expect("a write");
        daemon.client("disk1.img").write(0, &vec![6; 2 * MIB], true).expect("a write");
        let uuid = of_set(&daemon, "/volumes/1/uuid").as_str().expect("a UUID").to_owned();
        let forget = |arguments: &[&str]| {
            let mut command = ubcache();
            command.env("UBCACHE_IO", io).args(["forget-disk", "-C", text(&cache)]);
            let output = command.args(arguments).output().expect("it runs");
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = forget(&[&uuid, "--discard-dirty"]);
        assert!(said.contains("in use") && said.contains("without -C"), "{said}");
        daemon.stop();
        std::fs::remove_file(&backings[1]).expect("the disk is gone");
        let said = forget(&["disk1.img", "--discard-dirty"]);
        assert!(said.contains("no disk with the UUID") && said.contains(&uuid), "{said}");
        let said = forget(&[&uuid]);
        assert!(said.contains("2M"), "{said}");
        let said = must(ubcache().args(advised(&said, "ubcache forget-disk")));
        assert_eq!(said, format!("{uuid}: forgotten, with 2M of dirty data\n"));
        let disk = &backings[..1];
        must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disk[0]));
        let daemon = Daemon::start(io, directory, &cache, disk, &STAYS_DIRTY);
        assert_eq!(of_set(&daemon, "/absent"), Value::Array(Vec::new()));
        assert_eq!(daemon.number(0, "/dirty_bytes"), MIB as u64);
        let mut found = vec![0; MIB];
        daemon.client("disk0.img").read(0, &mut found).expect("a read");
        assert!(found == vec![5; MIB]);
        daemon.stop();
    });
}

#[test]
fn absent_clean_disk_is_forgotten_without_a_flag() {
    each_io("absent_clean_disk_is_forgotten_without_a_flag", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 32], &[]);
        Daemon::start(io, directory, &cache, &backings, &[]).stop();
        let daemon = Daemon::start(io, directory, &cache, &backings[..1], &[]);
        let uuid = of_set(&daemon, "/absent/0/uuid").as_str().expect("a UUID").to_owned();
        let mut command = ubcache();
        command.args(["forget", &uuid, "--json", "--control"]).arg(&daemon.control);
        let said: Value = serde_json::from_str(&must(&mut command)).expect("JSON");
        assert_eq!(said["forgotten"], format!("{uuid}: forgotten"));
        daemon.stop();
        // The disk comes back, and is attached again.
        Daemon::start(io, directory, &cache, &backings, &[]).stop();
    });
}
