//! Disks and caches that become longer or shorter while they are used (`ubcache resize`).
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;

use support::{Daemon, STAYS_DIRTY, each_io, make_set, ubcache};

const MIB: u64 = 1 << 20;
/// The data of a volume that `ubcache make` made begins here.
const DATA_AT: u64 = 8 << 10;

fn resize(daemon: &Daemon) -> Output {
    let mut command = ubcache();
    command.args(["resize", "disk0.img"]).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

fn resized(daemon: &Daemon) -> String {
    let output = resize(daemon);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(daemon: &Daemon) -> String {
    let output = resize(daemon);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn give_length(disk: &Path, bytes: u64) {
    let file = File::options().write(true).open(disk).expect("the disk");
    file.set_len(bytes).expect("another length");
}

fn read(daemon: &Daemon, at: u64) -> Vec<u8> {
    let mut data = vec![0x55; MIB as usize];
    daemon.client("disk0.img").read(at, &mut data).expect("a read");
    data
}

fn drain(daemon: &Daemon) {
    let mut drain = ubcache();
    drain.args(["drain", "disk0.img", "--wait", "--control"]).arg(&daemon.control);
    support::must(&mut drain);
}

/// Waits until clients that have said goodbye are gone for the daemon, too.
fn refused_for_data(daemon: &Daemon) -> String {
    loop {
        let said = refused(daemon);
        if !said.contains("in use") {
            return said;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_volume_grows_with_its_disk_while_a_client_goes_on() {
    each_io("a_volume_grows_with_its_disk_while_a_client_goes_on", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let mut before = daemon.client("disk0.img");
        let size = before.bytes();
        assert_eq!(size, 16 * MIB - DATA_AT);
        assert!(resized(&daemon).contains("as before"));
        give_length(&disks[0], 32 * MIB);
        let said = resized(&daemon);
        assert!(said.contains("when they connect again"), "{said}");
        before.write(0, &[1; 4096], true).expect("a write of a client from before");
        assert_eq!(daemon.status()["sets"][0]["volumes"][0]["size_bytes"], size + 16 * MIB);
        let mut after = daemon.client("disk0.img");
        assert_eq!(after.bytes(), size + 16 * MIB);
        after.write(size + 15 * MIB, &vec![7; MIB as usize], true).expect("a write at the new end");
        assert!(after.write(size + 16 * MIB, &[7; 4096], true).is_err(), "beyond the new end");
        daemon.kill();
        let daemon = Daemon::start(io, directory, &cache, &disks, &[]);
        assert!(read(&daemon, size + 15 * MIB) == vec![7; MIB as usize]);
        drain(&daemon);
        daemon.stop();
        let mut data = vec![0; MIB as usize];
        let disk = File::open(&disks[0]).expect("the disk");
        disk.read_exact_at(&mut data, DATA_AT + size + 15 * MIB).expect("a read of the disk");
        assert!(data == vec![7; MIB as usize], "it was written back");
    });
}

#[test]
fn a_shorter_disk_is_refused_until_nothing_counts_on_its_end() {
    each_io("a_shorter_disk_is_refused_until_nothing_counts_on_its_end", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let size = 16 * MIB - DATA_AT;
        let mut client = daemon.client("disk0.img");
        client.write(size - MIB, &vec![9; MIB as usize], true).expect("a write");
        give_length(&disks[0], 8 * MIB);
        let said = refused(&daemon);
        assert!(said.contains("in use by 1 connections"), "{said}");
        client.disconnect().expect("a goodbye");
        let said = refused_for_data(&daemon);
        assert!(said.contains("1M of dirty data beyond"), "{said}");
        assert!(said.contains("ubcache drain disk0.img --wait"), "{said}");

        // The advice.
        give_length(&disks[0], 16 * MIB);
        assert!(resized(&daemon).contains("as before"));
        assert!(read(&daemon, size - MIB) == vec![9; MIB as usize]);
        daemon.set("writeback_running=1");
        drain(&daemon);
        give_length(&disks[0], 8 * MIB);
        while !resize(&daemon).status.success() {
            std::thread::yield_now();
        }
        assert_eq!(daemon.client("disk0.img").bytes(), size - 8 * MIB);

        // Clean copies beyond the end went with it: the disk has something else there now.
        give_length(&disks[0], 16 * MIB);
        resized(&daemon);
        assert!(read(&daemon, size - MIB) == vec![0; MIB as usize]);
        daemon.stop();
    });
}

#[test]
fn a_flash_only_volume_has_no_disk_to_follow() {
    each_io("a_flash_only_volume_has_no_disk_to_follow", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &[]);
        let mut create = ubcache();
        create.args(["flash", "create", "scratch", "--size", "4M", "--control"]);
        support::must(create.arg(&daemon.control));
        let mut command = ubcache();
        command.args(["resize", "scratch", "--control"]).arg(&daemon.control);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("ubcache flash resize scratch --size SIZE"), "{said}");
        daemon.stop();
    });
}

fn cache_bytes(daemon: &Daemon) -> u64 {
    daemon.status()["sets"][0]["cache"]["size_bytes"].as_u64().expect("a size")
}

#[test]
fn a_cache_grows_with_its_device_and_keeps_what_it_has() {
    each_io("a_cache_grows_with_its_device_and_keeps_what_it_has", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let before = cache_bytes(&daemon);
        daemon.client("disk0.img").write(0, &vec![3; MIB as usize], true).expect("a write");
        let resize = |daemon: &Daemon| {
            let mut command = ubcache();
            command.args(["resize", "--cache", "--control"]).arg(&daemon.control);
            command.output().expect("it runs")
        };
        let output = resize(&daemon);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("make the device larger first"), "{said}");
        give_length(&cache, 96 * MIB);
        let output = resize(&daemon);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(cache_bytes(&daemon), before, "from the next start on");
        support::must(ubcache().args(["upgrade", "--control"]).arg(&daemon.control));
        assert_eq!(cache_bytes(&daemon), before + 32 * MIB);
        assert!(read(&daemon, 0) == vec![3; MIB as usize]);
        daemon.stop();

        // Of a set that does not run.
        give_length(&cache, 128 * MIB);
        let said = support::must(ubcache().args(["resize", "-C"]).arg(&cache));
        assert!(said.contains("128M, before 96M"), "{said}");
        support::must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disks[0]));
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        assert_eq!(cache_bytes(&daemon), before + 64 * MIB);
        assert!(read(&daemon, 0) == vec![3; MIB as usize]);
        daemon.stop();
    });
}

/// Bytes of the mebibyte at `at` that a round of writes leaves.
fn pattern(round: u64, at: u64) -> Vec<u8> {
    let words = (0..MIB / 8).map(|word| ((round << 48) | (at + 8 * word)).to_le_bytes());
    words.flatten().collect()
}

fn shrink(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = ubcache();
    command.args(["resize", "--cache"]).args(arguments).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

/// 14 MiB of dirty data are written so often that the newest are behind the first 40 MiB of the
/// cache, which then ends there.
#[test]
fn a_cache_becomes_smaller_while_it_is_used_and_its_device_is_cut() {
    each_io("a_cache_becomes_smaller_while_it_is_used_and_its_device_is_cut", |io, directory| {
        const ROUNDS: u64 = 4;
        let (cache, disks) = make_set(directory, &[16], &[]);
        let places: Vec<u64> = (0..14).map(|number| number * MIB).collect();
        let is_whole = |daemon: &Daemon| {
            for &at in &places {
                assert!(read(daemon, at) == pattern(ROUNDS, at), "at {at}");
            }
        };
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let mut client = daemon.client("disk0.img");
        for round in 1..=ROUNDS {
            for &at in &places {
                client.write(at, &pattern(round, at), true).expect("a write");
            }
        }
        drop(client);
        for (size, expected) in [("64M", "not less"), ("8M", "too few for a cache")] {
            let output = shrink(&daemon, &[size]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(expected), "{said}");
        }
        let output = shrink(&daemon, &["--cancel"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is not becoming smaller"), "{said}");

        // Killed in the middle, mostly.
        let output = shrink(&daemon, &["40M", "--no-wait"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        daemon.kill();
        support::must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disks[0]));
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        is_whole(&daemon);
        if cache_bytes(&daemon) > 40 * MIB {
            assert_eq!(cache_bytes(&daemon), 64 * MIB, "it can be begun again");
            let output = shrink(&daemon, &["40M"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let cut = format!("truncate -s {} {}", 40 * MIB, cache.display());
            assert!(said.contains(&cut), "{said}");
        }
        assert_eq!(cache_bytes(&daemon), 40 * MIB);
        give_length(&cache, 40 * MIB);
        is_whole(&daemon);
        daemon.client("disk0.img").write(0, &pattern(ROUNDS, 0), true).expect("a write");
        daemon.kill();

        // Of a set that does not run.
        let said =
            support::must(ubcache().args(["resize", "-C"]).arg(&cache).args(["--size", "37M"]));
        assert!(said.contains("37M, before 40M"), "{said}");
        give_length(&cache, 37 * MIB);
        support::must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disks[0]));
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        assert_eq!(cache_bytes(&daemon), 37 * MIB);
        is_whole(&daemon);
        daemon.set("writeback_running=1");
        drain(&daemon);
        daemon.stop();
        let disk = File::open(&disks[0]).expect("the disk");
        for &at in &places {
            let mut data = vec![0; MIB as usize];
            disk.read_exact_at(&mut data, DATA_AT + at).expect("a read of the disk");
            assert!(data == pattern(ROUNDS, at), "it was written back, at {at}");
        }
    });
}

#[test]
fn a_cache_keeps_the_room_that_it_needs_and_moves_flash_only_data() {
    each_io("a_cache_keeps_the_room_that_it_needs_and_moves_flash_only_data", |io, directory| {
        let (cache, disks) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        let mut create = ubcache();
        create.args(["flash", "create", "scratch", "--size", "24M", "--control"]);
        support::must(create.arg(&daemon.control));
        let write = |name: &str, round: u64, mebibytes: u64| {
            let mut client = daemon.client(name);
            for at in (0..mebibytes).map(|number| number * MIB) {
                client.write(at, &pattern(round, at), true).expect("a write");
            }
        };
        write("scratch", 1, 24);
        write("disk0.img", 2, 8);
        // The newest data is behind the first 32 MiB of the cache.
        write("scratch", 3, 24);
        let output = shrink(&daemon, &["34M"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("beyond the new end that can't be dropped"), "{said}");
        assert!(said.contains("ubcache drain EXPORT --wait"), "{said}");
        assert_eq!(cache_bytes(&daemon), 64 * MIB);
        let output = shrink(&daemon, &["44M"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        give_length(&cache, 44 * MIB);
        daemon.kill();
        let daemon = Daemon::start(io, directory, &cache, &disks, &STAYS_DIRTY);
        for (name, round, mebibytes) in [("scratch", 3, 24), ("disk0.img", 2, 8)] {
            let mut client = daemon.client(name);
            for at in (0..mebibytes).map(|number| number * MIB) {
                let mut data = vec![0; MIB as usize];
                client.read(at, &mut data).expect("a read");
                assert!(data == pattern(round, at), "{name} at {at}");
            }
        }
        daemon.stop();
        support::must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disks[0]));
    });
}
