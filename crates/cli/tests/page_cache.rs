//! Devices that are used through the kernel's page cache: only on request, and no more after a
//! flush that failed.
//!
//! The device that fails its flushes is a loop device over a sparse file, on a file system that is
//! full: the page cache takes every write, and can't write it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::ops::Range;
use std::path::{Path, PathBuf};

use support::devices::{Loop, small, without_direct_io};
use support::{
    Daemon, Mount, each_io, have, make_set, must, sha256_of, skipped, sparse, text, tool, ubcache,
};
use ubcache_cli::nbd_client::Client;

const PIECE: usize = 64 << 10;
const ALWAYS: &str = "--page-cache=always";

/// `serve` used the page cache wherever O_DIRECT did not work, and only a log line said so.
#[test]
fn serve_refuses_a_device_without_direct_io_unless_page_cache_is_given() {
    let test = "serve_refuses_a_device_without_direct_io_unless_page_cache_is_given";
    each_io(test, |io, directory| {
        let Some((point, _mount)) = without_direct_io(test, directory) else { return };
        let (cache, backings) = make_set(&point, &[16], &[]);
        let before = [&cache, &backings[0]].map(|path| sha256_of(path));
        let Err((status, said)) = Daemon::try_start(io, directory, &cache, &backings, &[]) else {
            panic!("a device without O_DIRECT is served");
        };
        assert_eq!(status.code(), Some(1), "{said}");
        for word in [text(&cache), "found:", "O_DIRECT", "expected:", "to do:", "--page-cache"] {
            assert!(said.contains(word), "{word} is missing in: {said}");
        }
        assert!(
            before == [&cache, &backings[0]].map(|path| sha256_of(path)),
            "nothing was changed"
        );
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--page-cache"]);
        let mut client = daemon.client("disk0.img");
        client.write(0, &[7; PIECE], true).expect("a write");
        let mut found = [0; PIECE];
        client.read(0, &mut found).expect("a read");
        assert!(found == [7; PIECE]);
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").arg(&backings[0]));
    });
}

/// A device of 64 MiB with room for a part of it.
fn thin(test: &str, directory: &Path) -> Option<(PathBuf, Mount, Loop)> {
    if !have(test, &["losetup"]) {
        return None;
    }
    let (point, mount) = small(test, directory, 26)?;
    let file = point.join("thin.img");
    sparse(&file, 64 << 20);
    let Some(device) = Loop::new(&file, &[]) else {
        skipped(test, "no loop devices here");
        return None;
    };
    Some((point, mount, device))
}

fn fill(point: &Path) {
    std::fs::write(point.join("full"), vec![1; 64 << 20]).expect_err("the file system is small");
}

fn give_room(point: &Path) {
    must(tool("mount").args(["-o", "remount,size=200m"]).arg(point));
}

/// Returns the number of pieces that the page cache took. It takes all of them, unless ubcache
/// flushes for itself meanwhile.
fn write_until_refused(client: &mut Client, pieces: Range<u64>) -> u64 {
    let written =
        pieces.take_while(|index| client.write(index * PIECE as u64, &[7; PIECE], false).is_ok());
    written.count() as u64
}

fn state(daemon: &Daemon, pointer: &str) -> String {
    daemon.status().pointer(pointer).and_then(|state| state.as_str()).expect("a state").to_owned()
}

/// `ubcache stop` of a daemon that can't end well.
fn stop_fails(daemon: Daemon) {
    let output =
        ubcache().args(["stop", "--control"]).arg(&daemon.control).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    daemon.kill();
}

/// The page cache reports a failed write once, and counts it as written from then on. The next
/// flush succeeded over the loss, the volume was clean, and the next start trusted the data left in
/// memory.
#[test]
fn a_failed_flush_of_a_disk_in_the_page_cache_fails_the_volume() {
    let test = "a_failed_flush_of_a_disk_in_the_page_cache_fails_the_volume";
    each_io(test, |io, directory| {
        let Some((point, _mount, device)) = thin(test, directory) else { return };
        let (cache, _) = make_set(directory, &[], &[]);
        must(ubcache().args(["make", "--label", "data", "-B"]).arg(&device.0));
        let backings = [device.0.clone()];
        let serve =
            || Daemon::start(io, directory, &cache, &backings, &[ALWAYS, "--mode", "writearound"]);
        let daemon = serve();
        fill(&point);
        let mut client = daemon.client("data");
        let written = write_until_refused(&mut client, 0..16);
        client.flush().expect_err("a flush that nothing has room for");
        give_room(&point);
        client.write(40 << 20, &[8; PIECE], false).expect_err("a write after it");
        client.write(41 << 20, &[8; PIECE], true).expect_err("a durable write after it");
        client.flush().expect_err("a flush after it");
        daemon.client("data").flush().expect_err("a flush of somebody else");
        assert_eq!(state(&daemon, "/sets/0/volumes/0/state"), "failed");
        let get = must(ubcache().args(["get", "state", "--control"]).arg(&daemon.control));
        assert_eq!(get.trim(), "failed");
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        for word in ["ERROR", text(&device.0), "a flush failed", "page cache", "To do"] {
            assert!(log.contains(word), "{word} is missing in: {log}");
        }
        stop_fails(daemon);

        // A start reads what the device has, and all of it can be written again.
        let daemon = serve();
        let mut client = daemon.client("data");
        let mut found = [0; PIECE];
        let lost = (0..written).filter(|index| {
            client.read(index * PIECE as u64, &mut found).expect("a read");
            found != [7; PIECE]
        });
        assert!(lost.count() > 0, "the page cache has kept what the device refused");
        for index in 0..16 {
            client.write(index * PIECE as u64, &[9; PIECE], false).expect("a write");
        }
        client.flush().expect("a flush");
        daemon.stop();
        must(ubcache().arg("check").arg(&cache).arg("-B").arg(&device.0));
    });
}

/// A failed flush of the cache device in the page cache, which fails the set.
#[test]
fn a_failed_flush_of_a_cache_in_the_page_cache_fails_the_set() {
    let test = "a_failed_flush_of_a_cache_in_the_page_cache_fails_the_set";
    each_io(test, |io, directory| {
        let Some((point, _mount, device)) = thin(test, directory) else { return };
        let disk = directory.join("disk.img");
        sparse(&disk, 32 << 20);
        must(
            ubcache()
                .args(["make", "--bucket", "64k", "--writeback", "-C"])
                .arg(&device.0)
                .arg("-B")
                .arg(&disk),
        );
        let backings = [disk];
        let settings = [ALWAYS, "--set", "writeback_running=0", "--set", "sequential_cutoff=0"];
        let daemon = Daemon::start(io, directory, &device.0, &backings, &settings);
        let mut client = daemon.client("disk.img");
        client.write(0, &[6; PIECE], true).expect("a write while there is room");
        fill(&point);
        let written = write_until_refused(&mut client, 1..16);
        client.flush().expect_err("a flush that nothing has room for");
        give_room(&point);
        client.flush().expect_err("a flush after it");
        let failed = state(&daemon, "/sets/0/state");
        assert!(failed.starts_with("failed: "), "{failed}");
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert!(log.contains("ERROR") && log.contains(text(&device.0)), "{log}");
        let mut found = [0; PIECE];
        for index in 1..=written {
            client
                .read(index * PIECE as u64, &mut found)
                .expect_err("what may be lost is not read");
        }
        stop_fails(daemon);

        let daemon = Daemon::start(io, directory, &device.0, &backings, &settings);
        let mut client = daemon.client("disk.img");
        client.read(0, &mut found).expect("what was flushed");
        assert!(found == [6; PIECE]);
        daemon.stop();
        must(ubcache().arg("check").arg(&device.0).arg("-B").arg(&backings[0]));
    });
}
