//! File systems that are full: a cache there does not grow, and clients get no errors.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::devices::small;
use support::pieces::{PIECE, read_pieces, write_pieces};
use support::{
    Daemon, NO_BYPASS, each_io, must, names_in, pseudo_random, run, sparse, text, tool, ubcache,
};

/// A sparse cache of 80 MiB on a file system of its own with room for less, and a disk of 100 MiB
/// beside it.
fn make_on(point: &Path, directory: &Path, extra: &[&str]) -> (PathBuf, PathBuf) {
    let (cache, disk) = (point.join("cache.img"), directory.join("disk.img"));
    sparse(&disk, 100 << 20);
    let make = ["make", "--bucket", "64k", "--cache-size", "80M", "--sparse"];
    must(ubcache().args(make).args(extra).arg("-C").arg(&cache).arg("-B").arg(&disk));
    (cache, disk)
}

/// Eight writes without space made the set fail: with dirty data every later write ended with an
/// error, without it the cache was thrown away. Now such data is not cached, and the set goes on,
/// over restarts as well.
#[test]
fn cache_on_a_full_file_system_keeps_serving() {
    let test = "cache_on_a_full_file_system_keeps_serving";
    each_io(test, |io, directory| {
        let Some((point, _mount)) = small(test, directory, 26) else { return };
        let (cache, disk) = make_on(&point, directory, &["--writeback"]);
        let backings = [disk.clone()];
        let settings = ["--set", "writeback_running=0", "--set", "sequential_cutoff=0"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        let mut data = vec![0; 60 << 20];
        pseudo_random(7, &mut data);
        let mut client = daemon.client("disk.img");
        write_pieces(&mut client, &data);
        read_pieces(&mut daemon.client("disk.img"), &data);
        let status = daemon.status();
        assert_eq!(status["sets"][0]["state"], "running", "{status:#}");
        assert_eq!(status["sets"][0]["volumes"][0]["state"], "dirty");
        says_that_there_is_no_room(&daemon);
        daemon.kill();
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        read_pieces(&mut daemon.client("disk.img"), &data);
        daemon.stop();
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert!(log.contains("a sparse file") && log.contains(text(&cache)), "{log}");
        must(ubcache().arg("check").arg(&cache).arg("-B").arg(&disk));
    });
}

/// Without dirty data there was no error: after eight refused writes the disk disowned its cache,
/// and a start threw away all that was cached. Now the volume keeps its cache, and what had room is
/// warm after a crash.
#[test]
fn a_clean_cache_on_a_full_file_system_is_kept() {
    let test = "a_clean_cache_on_a_full_file_system_is_kept";
    each_io(test, |io, directory| {
        let Some((point, _mount)) = small(test, directory, 26) else { return };
        let (cache, disk) = make_on(&point, directory, &[]);
        let backings = [disk];
        let daemon = Daemon::start(io, directory, &cache, &backings, &NO_BYPASS);
        let mut data = vec![0; 60 << 20];
        pseudo_random(8, &mut data);
        let mut client = daemon.client("disk.img");
        write_pieces(&mut client, &data);
        let errors = daemon.status()["sets"][0]["cache"]["errors"].as_u64();
        assert!(errors > Some(8), "{errors:?} writes were refused");
        let kept = |daemon: &Daemon| {
            assert_eq!(daemon.status()["sets"][0]["volumes"][0]["state"], "clean");
        };
        kept(&daemon);
        daemon.kill();
        let daemon = Daemon::start(io, directory, &cache, &backings, &NO_BYPASS);
        read_pieces(&mut daemon.client("disk.img"), &data);
        assert!(
            daemon.number(0, "/stats/cache_hits") > 0,
            "nothing of it is warm: {:#}",
            daemon.status()
        );
        kept(&daemon);
        daemon.stop();
    });
}

/// Writes to the cache were refused, so both reports have to mention it.
fn says_that_there_is_no_room(daemon: &Daemon) {
    let status = daemon.status();
    let cache = &status["sets"][0]["cache"];
    assert!(cache["errors"].as_u64() > Some(0), "no write was refused: {status:#}");
    assert!(cache["put_aside_bytes"].as_u64() > Some(0), "{status:#}");
    let table = daemon.look(&[]).1;
    assert!(table.contains("no room for") && table.contains("its file system is full"), "{table}");
}

/// A bucket whose write was refused was put aside only when the allocator wanted buckets, which
/// with few writes is never: the status did not report the missing room. Now a refused write is
/// enough, and the room is requested again while no client writes.
#[test]
fn status_reports_missing_room_while_it_is_missing() {
    let test = "status_reports_missing_room_while_it_is_missing";
    each_io(test, |io, directory| {
        let Some((point, _mount)) = small(test, directory, 26) else { return };
        let (cache, disk) = make_on(&point, directory, &["--writeback"]);
        let settings = ["--set", "writeback_running=0", "--set", "sequential_cutoff=0"];
        let daemon = Daemon::start(io, directory, &cache, &[disk], &settings);
        let mut client = daemon.client("disk.img");
        let errors = || daemon.status()["sets"][0]["cache"]["errors"].as_u64();
        for index in 0.. {
            client
                .write(index * PIECE as u64, &[7; PIECE], false)
                .expect("a write on a full file system");
            if errors() > Some(2) {
                break;
            }
        }
        says_that_there_is_no_room(&daemon);
        must(tool("mount").args(["-o", "remount,size=200m"]).arg(&point));
        while daemon.status()["sets"][0]["cache"]["put_aside_bytes"].as_u64() > Some(0) {
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon.stop();
    });
}

#[test]
fn make_allocates_cache_files_unless_sparse_is_given() {
    let directory = support::scratch();
    let directory = directory.path();
    let (whole, holes, disk) =
        (directory.join("whole"), directory.join("holes"), directory.join("disk"));
    let make = |path: &Path, more: &[&str]| {
        must(
            ubcache()
                .args(["make", "--bucket", "64k", "--size", "40M"])
                .args(more)
                .arg("-C")
                .arg(path),
        );
    };
    make(&whole, &["-B", text(&disk)]);
    make(&holes, &["--sparse"]);
    let allocated = |path: &Path| std::fs::metadata(path).expect("a file").blocks() * 512;
    assert!(allocated(&whole) >= 40 << 20, "{}", allocated(&whole));
    assert!(allocated(&holes) < 4 << 20 && allocated(&disk) < 4 << 20);
}

/// The message was that the disk had no room, where it was the cache.
#[test]
fn a_start_without_room_names_the_device_that_is_full() {
    let test = "a_start_without_room_names_the_device_that_is_full";
    each_io(test, |io, directory| {
        let Some((point, _mount)) = small(test, directory, 8) else { return };
        let (cache, disk) = (point.join("cache.img"), directory.join("disk.img"));
        sparse(&disk, 16 << 20);
        must(
            ubcache()
                .args(["make", "--bucket", "64k", "--size", "80M", "--sparse", "-C"])
                .arg(&cache),
        );
        must(ubcache().arg("make").arg("-B").arg(&disk));
        std::fs::write(point.join("full"), vec![1; 16 << 20])
            .expect_err("the file system is small");
        let before = support::sha256_of(&disk);
        let backings = [disk.clone()];
        let Err((status, said)) = Daemon::try_start(io, directory, &cache, &backings, &[]) else {
            panic!("a set is served that has no room for its journal");
        };
        assert_eq!(status.code(), Some(1), "{said}");
        let said = said.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN "));
        let said = said.collect::<Vec<_>>().join("\n");
        assert!(said.contains("No space left") && said.contains(text(&cache)), "{said}");
        assert!(!said.contains(text(&disk)), "{said}");
        assert!(before == support::sha256_of(&disk), "the disk is not changed");
        must(tool("mount").args(["-o", "remount,size=100m"]).arg(&point));
        Daemon::start(io, directory, &cache, &backings, &[]).stop();
    });
}

#[test]
fn make_without_room_leaves_no_file_and_names_it() {
    let test = "make_without_room_leaves_no_file_and_names_it";
    let directory = support::scratch();
    let Some((point, _mount)) = small(test, directory.path(), 8) else { return };
    let cache = point.join("cache.img");
    let output = run(&["make", "--bucket", "64k", "--size", "80M", "-C", text(&cache)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in [text(&cache), "no room", "80M", "--sparse"] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    assert!(names_in(&point).is_empty());
}
