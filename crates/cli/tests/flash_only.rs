//! Flash-only volumes with real clients: made, served, filled, resized, removed.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use serde_json::Value;
use support::{Daemon, each_io, have, make_set, must, nbdsh, ubcache};

const MIB: usize = 1 << 20;

/// `ubcache flash …` of a daemon, which has to succeed; its output.
fn flash(daemon: &Daemon, arguments: &[&str]) -> String {
    must(ubcache().arg("flash").args(arguments).arg("--control").arg(&daemon.control))
}

/// `ubcache flash …` that has to be refused; its message.
fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = ubcache();
    command.arg("flash").args(arguments).arg("--control").arg(&daemon.control);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn of_set(daemon: &Daemon, pointer: &str) -> Value {
    daemon.status()["sets"][0].pointer(pointer).expect("a part of the report").clone()
}

fn is_filled(daemon: &Daemon, export: &str, at: u64, bytes: usize, value: u8) {
    let mut data = vec![!value; bytes];
    daemon.client(export).read(at, &mut data).expect("a read");
    assert!(data.iter().all(|byte| *byte == value), "{export} at {at}");
}

#[test]
fn volume_is_served_after_kill_9_and_needs_no_disk() {
    each_io("volume_is_served_after_kill_9_and_needs_no_disk", |io, directory| {
        let (cache, backings) = make_set(directory, &[8], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        assert!(
            flash(&daemon, &["create", "scratch", "--size", "1G"]).contains("scratch: created, 1G")
        );
        let said = refused(&daemon, &["create", "scratch", "--size", "1G"]);
        assert!(said.contains("there is an export \"scratch\" already"), "{said}");
        let mut client = daemon.client("scratch");
        assert_eq!(client.bytes(), 1 << 30);
        client.write(5 * MIB as u64, &vec![7; MIB], false).expect("a write");
        client.flush().expect("a flush");
        client.write(9 * MIB as u64, &vec![8; MIB], true).expect("a FUA write");
        daemon.kill();

        for disks in [&backings[..], &[]] {
            let daemon = Daemon::start(io, directory, &cache, disks, &[]);
            is_filled(&daemon, "scratch", 5 * MIB as u64, MIB, 7);
            is_filled(&daemon, "scratch", 9 * MIB as u64, MIB, 8);
            is_filled(&daemon, "scratch", (1 << 30) - MIB as u64, MIB, 0);
            assert_eq!(of_set(&daemon, "/flash/0/used_bytes"), 2 * MIB);
            let uuid = of_set(&daemon, "/flash/0/uuid");
            is_filled(&daemon, uuid.as_str().expect("a UUID"), 5 * MIB as u64, MIB, 7);
            assert!(daemon.look(&[]).1.contains("scratch  1G, 2M written"), "status names it");
            assert!(flash(&daemon, &["list"]).contains("scratch  1G, 2M written"));
            daemon.stop();
        }
    });
}

/// N6: a client that fills the cache gets ENOSPC, and nobody else anything.
#[test]
fn full_cache_says_so_and_a_discard_makes_room() {
    each_io("full_cache_says_so_and_a_discard_makes_room", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let serve = || {
            let mode = ["--mode", "writeback", "--set", "sequential_cutoff=0"];
            Daemon::start(io, directory, &cache, &backings, &mode)
        };
        let daemon = serve();
        flash(&daemon, &["create", "scratch", "--size", "256M"]);
        let mut client = daemon.client("scratch");
        let mut written = 0;
        let error = loop {
            match client.write((written * MIB) as u64, &vec![5; MIB], false) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(28), "{error} after {written} MiB");
        assert!((40..64).contains(&written), "{written} MiB of a cache of 64");
        assert!(of_set(&daemon, "/flash/0/refused_writes").as_u64() > Some(0));
        daemon.client("disk0.img").write(0, &vec![6; 4 * MIB], true).expect("others go on");
        is_filled(&daemon, "disk0.img", 0, 4 * MIB, 6);
        client.flush().expect("what was written is durable");
        drop(client);
        daemon.kill();

        let daemon = serve();
        is_filled(&daemon, "disk0.img", 0, 4 * MIB, 6);
        is_filled(&daemon, "scratch", 0, MIB, 5);
        let mut client = daemon.client("scratch");
        client.trim(0, 32 * MIB as u32).expect("a discard");
        is_filled(&daemon, "scratch", 0, 32 * MIB, 0);
        for at in 0..24 {
            client.write((at * MIB) as u64, &vec![9; MIB], false).expect("there is room again");
        }
        client.flush().expect("a flush");
        drop(client);
        daemon.stop();
    });
}

#[test]
fn volume_is_resized_and_removed() {
    each_io("volume_is_resized_and_removed", |io, directory| {
        let (cache, backings) = make_set(directory, &[8], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        flash(&daemon, &["create", "scratch", "--size", "16M"]);
        let mut client = daemon.client("scratch");
        client.write(12 * MIB as u64, &vec![3; MIB], true).expect("a write");
        assert!(refused(&daemon, &["resize", "scratch", "--size", "8M"]).contains("in use"));
        let said = flash(&daemon, &["resize", "scratch", "--size", "32M"]);
        assert!(said.contains("when they connect again"), "{said}");
        assert_eq!(daemon.client("scratch").bytes(), 32 << 20);
        client.disconnect().expect("a goodbye");
        while refused(&daemon, &["resize", "scratch", "--size", "8M"]).contains("in use") {
            std::thread::yield_now();
        }
        let said = refused(&daemon, &["resize", "scratch", "--size", "8M"]);
        assert!(said.contains("1M of data beyond that size"), "{said}");
        flash(&daemon, &["resize", "scratch", "--size", "8M", "--discard-data"]);
        flash(&daemon, &["resize", "scratch", "--size", "64M"]);
        for at in 0..4 {
            is_filled(&daemon, "scratch", (at * 16 * MIB) as u64, 16 * MIB, 0);
        }
        let mut client = daemon.client("scratch");
        client.write(0, &vec![4; MIB], true).expect("a write");
        let said = refused(&daemon, &["remove", "scratch"]);
        assert!(said.contains("--force"), "{said}");
        let said = refused(&daemon, &["remove", "scratch", "--force"]);
        assert!(said.contains("1M of data") && said.contains("--discard-data"), "{said}");
        let said = flash(&daemon, &["remove", "scratch", "--force", "--discard-data"]);
        assert!(said.contains("removed, with 1M of data"), "{said}");
        assert!(client.write(0, &vec![4; MIB], true).is_err(), "it has ended");
        assert_eq!(of_set(&daemon, "/flash"), Value::Array(Vec::new()));
        daemon.stop();
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        assert_eq!(of_set(&daemon, "/flash"), Value::Array(Vec::new()));
        daemon.stop();
    });
}

/// The real client library: it is told "no space", not "I/O error".
#[test]
fn libnbd_gets_no_space_and_holes() {
    const TEST: &str = "libnbd_gets_no_space_and_holes";
    if !have(TEST, &["nbdsh"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let (cache, backings) = make_set(directory, &[8], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        flash(&daemon, &["create", "scratch", "--size", "256M"]);
        let script = "
import errno
M = 1 << 20
assert h.zero(M, 0) is None and h.pread(M, 0) == bytes(M)
h.pwrite(b'x' * M, 4 * M)
h.zero(M // 2, 4 * M)
assert h.pread(M, 4 * M) == bytes(M // 2) + b'x' * (M // 2)
error = None
for at in range(256):
    try:
        h.pwrite(b'y' * M, at * M)
    except nbd.Error as full:
        error = full.errno
        break
assert error == 'ENOSPC', error
h.trim(128 * M, 0)
h.flush()
h.pwrite(b'z' * M, 0)
";
        nbdsh(&daemon.uri("scratch"), script);
        daemon.stop();
    });
}
