//! Volumes that come and go while others are served.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use support::devices::{Fragile, filtered};
use support::{
    Daemon, Guard, each_io, have, make_set, must, scratch, skipped, sparse, text, tool, ubcache,
};
use ubcache_cli::nbd_client::Client;
use ubcache_daemon::control::{ControlRequest, ask};

const PIECE: usize = 64 << 10;
/// Dirty data stays dirty.
const DIRTY: [&str; 4] = ["--mode", "writeback", "--set", "writeback_running=0"];

fn tell(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = ubcache();
    command.args(arguments).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

fn done(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = tell(daemon, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = tell(daemon, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(daemon: &Daemon, export: &str, byte: u8) {
    daemon.client(export).write(0, &[byte; PIECE], true).expect("a write");
}

fn holds(daemon: &Daemon, export: &str, byte: u8) {
    let mut found = [0; PIECE];
    daemon.client(export).read(0, &mut found).expect("a read");
    assert!(found == [byte; PIECE], "{export}");
}

fn one_more(directory: &Path, name: &str) -> PathBuf {
    let disk = directory.join(name);
    sparse(&disk, 16 << 20);
    must(ubcache().args(["make", "-B"]).arg(&disk));
    disk
}

/// The thread of the set opened the disk itself: until that was done, nobody else was served.
#[test]
fn clients_are_served_while_a_slow_disk_is_opened() {
    let test = "clients_are_served_while_a_slow_disk_is_opened";
    if !have(test, &["nbdkit", "nbdfuse", "fusermount3"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let more = one_more(directory, "more.img");
        let Some((_mount, [fuse, _server], slow)) = filtered(directory, &more, "delay", &[]) else {
            return skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
        };
        let daemon = Daemon::start(io, directory, &cache, &disks, &[]);
        write(&daemon, "disk0.img", 1);
        // If nobody else is served, the reads below end when the disk goes on, and it is open.
        let goes_on = format!("kill -STOP {0}; sleep 20; kill -CONT {0}", fuse.0.id());
        let _goes_on = Guard(tool("sh").args(["-c", &goes_on]).spawn().expect("a shell"));
        let stopped = format!("/proc/{}/stat", fuse.0.id());
        while !std::fs::read_to_string(&stopped).expect("it runs").contains(") T ") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // Not by the command, which looks at the disk itself.
        let control = daemon.control.clone();
        let request = ControlRequest::Add { backing: slow.clone(), name: Some("slow".into()) };
        let add = std::thread::spawn(move || ask(&control, &request));
        for _ in 0..30 {
            holds(&daemon, "disk0.img", 1);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!add.is_finished(), "the disk is open");
        must(tool("kill").args(["-CONT", &fuse.0.id().to_string()]));
        add.join().expect("a thread").expect("it is added");
        holds(&daemon, "slow", 0);
    });
}

/// A ninth disk stopped the other eight: the daemon had to be started again with it.
#[test]
fn disks_are_added_and_removed_while_another_one_is_used() {
    each_io("disks_are_added_and_removed_while_another_one_is_used", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let more = one_more(directory, "more.img");
        let daemon = Daemon::start(io, directory, &cache, &disks, &DIRTY);
        let mut busy = daemon.client("disk0.img");
        busy.write(0, &[1; PIECE], false).expect("a write");

        assert_eq!(done(&daemon, &["add", "-B", text(&more)]), "more.img: added\n");
        write(&daemon, "more.img", 2);
        assert!(daemon.number(1, "/dirty_bytes") > 0, "settings of the start hold for it as well");
        let said = refused(&daemon, &["add", "-B", text(&more)]);
        assert!(said.contains("is served already, as \"more.img\""), "{said}");
        let other = one_more(directory, "other.img");
        let named = format!("more.img={}", text(&other));
        let said = refused(&daemon, &["add", "-B", &named]);
        assert!(said.contains("NAME="), "{said}");
        let said = refused(&daemon, &["add", "-B", text(&directory.join("nothing.img"))]);
        assert!(said.contains("nothing.img: can't open"), "{said}");

        // Dirty data is written back, and clients of that export only are cut off.
        let mut cut = daemon.client("more.img");
        assert_eq!(done(&daemon, &["remove", "more.img"]), "more.img: removed\n");
        assert!(cut.read(0, &mut [0; PIECE]).is_err(), "the export is gone");
        assert!(Client::connect(&daemon.socket, "more.img").is_err());
        busy.write(PIECE as u64, &[3; PIECE], false).expect("the others go on");
        let start = 8192;
        let raw = std::fs::read(&more).expect("a disk");
        assert!(raw[start..start + PIECE] == [2; PIECE], "everything is on the disk");
        let absent = &daemon.status()["sets"][0]["absent"];
        assert_eq!(absent.as_array().map(Vec::len), Some(1), "{absent}");

        // It comes back, with a name, and goes with its dirty data left behind.
        let named = format!("back={}", text(&more));
        done(&daemon, &["add", "-B", &named]);
        holds(&daemon, "back", 2);
        write(&daemon, "back", 4);
        let said = done(&daemon, &["remove", "back", "--keep-dirty"]);
        assert_eq!(said, "back: removed; 64k of dirty data stay in the cache\n");
        assert_eq!(daemon.status()["sets"][0]["absent"][0]["dirty_bytes"], PIECE);
        done(&daemon, &["add", "-B", &named]);
        holds(&daemon, "back", 4);
        done(&daemon, &["remove", "back", "--keep-dirty"]);
        drop(busy);
        daemon.kill();

        let daemon =
            Daemon::start(io, directory, &cache, &[disks[0].clone(), more.clone()], &DIRTY);
        holds(&daemon, "disk0.img", 1);
        holds(&daemon, "more.img", 4);
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").args([&disks[0], &more]));
    });
}

/// The default export is the first one. When that is gone, the empty name means no other one.
#[test]
fn empty_name_never_means_another_disk() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[8, 8], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    assert!(Client::connect(&daemon.socket, "").is_ok());
    done(&daemon, &["remove", "disk0.img"]);
    assert!(Client::connect(&daemon.socket, "").is_err());
    assert!(Client::connect(&daemon.socket, "disk1.img").is_ok());
    daemon.stop();
    std::fs::remove_file(&disks[0]).expect("the disk is gone");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    assert!(Client::connect(&daemon.socket, "").is_err());
    assert!(Client::connect(&daemon.socket, "disk1.img").is_ok());
    daemon.stop();
}

/// A disk that was down at the start comes back when it is asked for.
#[test]
fn disk_that_was_down_is_added_with_its_dirty_data() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[8, 8], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    write(&daemon, "disk1.img", 7);
    daemon.stop();
    let away = directory.join("away.img");
    std::fs::rename(&disks[1], &away).expect("pulled out");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    assert_eq!(daemon.status()["sets"][0]["down"][0]["name"], "disk1.img");
    std::fs::rename(&away, &disks[1]).expect("back");
    // The command that `status` prints.
    let warning = daemon.status()["sets"][0]["warnings"][0].to_string();
    let added = format!("disk1.img={}", text(&disks[1]));
    assert!(warning.contains(&format!("ubcache add -B {added}")), "{warning}");
    done(&daemon, &["add", "-B", &added]);
    holds(&daemon, "disk1.img", 7);
    let set = &daemon.status()["sets"][0];
    assert!(set["down"] == serde_json::json!([]) && set["absent"] == serde_json::json!([]));
    daemon.stop();
}

/// A disk that died could be had again only by a stop of everything.
#[test]
fn disk_that_fails_and_returns_is_added_again_with_its_dirty_data() {
    let test = "disk_that_fails_and_returns_is_added_again_with_its_dirty_data";
    each_io(test, |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16], &[]);
        let Some(fragile) = Fragile::new(test, directory, &disks[1]) else { return };
        let served = [disks[0].clone(), format!("data={}", text(&fragile.path)).into()];
        let daemon = Daemon::start(io, directory, &cache, &served, &DIRTY);
        write(&daemon, "data", 7);
        write(&daemon, "disk0.img", 1);
        fragile.fail();
        daemon.client("data").read(8 << 20, &mut [0; 4096]).expect_err("the disk has failed");
        let (code, table) = daemon.look(&[]);
        assert!(code == 1 && table.contains("request failed"), "{code}: {table}");
        let said = refused(&daemon, &["remove", "data"]);
        assert!(said.contains("ubcache remove data --keep-dirty"), "{said}");
        holds(&daemon, "disk0.img", 1);
        // It waited for a drain that was under way.
        let drains = || {
            let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
            log.matches("all dirty data is being written back").count()
        };
        let before = drains();
        let mut drain = ubcache();
        drain.args(["drain", "data", "--wait", "--control"]).arg(&daemon.control);
        let drain = drain.stderr(std::process::Stdio::piped()).spawn().expect("ubcache runs");
        while drains() == before {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let output = tell(&daemon, &["remove", "data", "--keep-dirty"]);
        let ended = drain.wait_with_output().expect("it ends");
        let why = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(1) && why.contains("has been removed"), "{why}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("data: removed; 64k of dirty data stay in the cache"), "{said}");
        assert_eq!(daemon.status()["sets"][0]["absent"][0]["dirty_bytes"], PIECE);
        let back = format!("data={}", text(&fragile.path));
        refused(&daemon, &["add", "-B", &back]);
        fragile.mend();
        done(&daemon, &["add", "-B", &back]);
        holds(&daemon, "data", 7);
        holds(&daemon, "disk0.img", 1);
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").args(&disks));
    });
}

#[test]
fn drain_writes_back_and_flush_makes_durable() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    // Nothing but a drain writes back.
    let daemon = Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    for (export, byte) in [("disk0.img", 1), ("disk1.img", 2)] {
        daemon.client(export).write(0, &[byte; PIECE], false).expect("a write");
    }
    assert_eq!(done(&daemon, &["flush"]), "flushed\n");
    assert_eq!(done(&daemon, &["drain", "--wait", "--json"]), "{\"drained\": true}\n");
    for volume in 0..2 {
        assert_eq!(daemon.number(volume, "/dirty_bytes"), 0);
        assert_eq!(daemon.status()["sets"][0]["volumes"][volume]["state"], "clean");
        assert_eq!(daemon.status()["sets"][0]["volumes"][volume]["mode"], "writeback");
    }
    daemon.client("disk0.img").write(0, &[3; PIECE], false).expect("a write");
    assert_eq!(done(&daemon, &["drain", "disk0.img"]), "draining\n");
    while daemon.number(0, "/dirty_bytes") > 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let said = refused(&daemon, &["drain", "nothing", "--wait"]);
    assert!(said.contains("there is no export \"nothing\""), "{said}");
    // Flushed data is there after a crash.
    daemon.client("disk1.img").write(0, &[4; PIECE], false).expect("a write");
    done(&daemon, &["flush", "disk1.img"]);
    daemon.kill();
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    holds(&daemon, "disk0.img", 3);
    holds(&daemon, "disk1.img", 4);
    daemon.stop();
}

/// A client that asked for a disk by its UUID got the one that was added under that name.
#[test]
fn added_disk_never_takes_the_uuid_of_another_one() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks[..1], &[]);
    let volume = &daemon.status()["sets"][0]["volumes"][0];
    let uuid = volume["uuid"].as_str().expect("a UUID").to_owned();
    let said = refused(&daemon, &["add", "-B", &format!("{uuid}={}", text(&disks[1]))]);
    assert!(said.contains("must differ from the name and the UUID of \"disk0.img\""), "{said}");
    done(&daemon, &["add", "-B", text(&disks[1])]);
    daemon.stop();
}

/// A volume that was detached to retire its cache was attached again by the next start.
#[test]
fn detached_volume_stays_detached_over_a_restart() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let serve = || Daemon::start("pool", directory, &cache, &disks, &DIRTY);
    let daemon = serve();
    write(&daemon, "disk0.img", 1);
    done(&daemon, &["detach", "disk0.img"]);
    daemon.stop();
    for crash in [false, true] {
        let daemon = serve();
        let volumes = &daemon.status()["sets"][0]["volumes"];
        assert!(volumes[0]["state"] == "no cache" && volumes[1]["state"] == "clean", "{volumes}");
        holds(&daemon, "disk0.img", 1);
        write(&daemon, "disk0.img", 1);
        assert_eq!(daemon.number(0, "/dirty_bytes"), 0);
        if crash { daemon.kill() } else { daemon.stop() }
    }
    let daemon = serve();
    done(&daemon, &["attach", "disk0.img"]);
    write(&daemon, "disk0.img", 2);
    assert_eq!(daemon.number(0, "/dirty_bytes"), PIECE as u64);
    daemon.stop();
    let daemon = serve();
    // Writeback may have begun before it was switched off again.
    assert_ne!(daemon.status()["sets"][0]["volumes"][0]["state"], "no cache");
    holds(&daemon, "disk0.img", 2);
    daemon.stop();
}

/// A person who waits for a drain sees how far it is; a script must not have that in its log.
#[test]
fn waiting_drain_shows_progress_and_time_left_on_a_terminal_alone() {
    let test = "waiting_drain_shows_progress_and_time_left_on_a_terminal_alone";
    if !have(test, &["nbdkit", "nbdfuse", "fusermount3", "script"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let Some((_mount, _guards, slow)) = filtered(directory, &disks[0], "delay", &["wdelay=300ms"])
    else {
        skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
        return;
    };
    let disk = format!("data={}", text(&slow));
    let daemon = Daemon::start("pool", directory, &cache, &[disk.into()], &DIRTY);
    for terminal in [true, false] {
        // Pieces that writeback does not join.
        for piece in 0..8 {
            daemon.client("data").write(piece * (128 << 10), &[7; 4096], false).expect("a write");
        }
        let drain = ["drain", "data", "--wait", "--control", text(&daemon.control)];
        let mut command = match terminal {
            true => {
                let line = format!("{} {}", env!("CARGO_BIN_EXE_ubcache"), drain.join(" "));
                let mut command = tool("script");
                command.args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null());
                command
            }
            false => {
                let mut command = ubcache();
                command.args(drain);
                command
            }
        };
        let output = command.output().expect("it runs");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{shown}{errors}");
        assert_eq!(daemon.number(0, "/dirty_bytes"), 0);
        let progress = shown.contains("writing back ") && shown.contains(" left");
        assert!(progress == terminal && shown.contains("drained"), "{shown}");
    }
    daemon.stop();
}
