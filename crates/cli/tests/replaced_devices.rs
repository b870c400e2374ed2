//! Changed members of a set: copies of earlier states, disks without their cache, other sizes.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::{Daemon, make_set, must, run, scratch, sha256_of, sparse, text, ubcache};
use ubcache_format::{Superblock, crc64_we};

/// Place of the tests' writes, in the volume.
const AT: u64 = 1 << 20;
const LENGTH: usize = 64 << 10;

fn serve(directory: &Path, cache: &Path, disk: &Path, extra: &[&str]) -> Daemon {
    Daemon::start("ring", directory, cache, &[disk.to_owned()], extra)
}

/// Log of a start that is refused.
fn refused(directory: &Path, cache: &Path, disk: &Path, extra: &[&str]) -> String {
    let log = directory.join("serve.log");
    let _ = std::fs::remove_file(&log);
    match Daemon::try_start("ring", directory, cache, &[disk.to_owned()], extra) {
        Ok(_) => panic!("it is served"),
        Err((status, _)) => assert_eq!(status.code(), Some(1)),
    }
    std::fs::read_to_string(log).expect("it has said why")
}

fn write(daemon: &Daemon, byte: u8) {
    let mut client = daemon.client("v");
    client.write(AT, &[byte; LENGTH], false).expect("a write");
    client.flush().expect("a flush");
    client.disconnect().expect("a goodbye");
}

/// The byte that all of the range has.
fn read(daemon: &Daemon, at: u64) -> u8 {
    let mut client = daemon.client("v");
    let mut bytes = vec![0; LENGTH];
    client.read(at, &mut bytes).expect("a read");
    client.disconnect().expect("a goodbye");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "all of the range is of one write");
    bytes[0]
}

fn wait_until_clean(daemon: &Daemon) {
    while daemon.status()["sets"][0]["volumes"][0]["state"] != "clean" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn copy(from: &Path, to: &str) -> PathBuf {
    let to = from.with_file_name(to);
    std::fs::copy(from, &to).expect("a copy in the scratch directory");
    to
}

fn check(cache: &Path, disk: &Path) -> (Option<i32>, serde_json::Value) {
    let output = run(&["check", text(cache), "-B", text(disk), "--json"]);
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// A copy of the cache from before was served without a warning: old data was read, and its dirty
/// data was written over newer data on the disk. Every start and every clean stop leaves a run
/// number on both now, and such a pair is refused.
#[test]
fn older_copy_of_a_dirty_cache_is_refused_until_a_choice_is_made() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v", "--writeback"]);
    let disk = &disks[0];
    let daemon = serve(directory, &cache, disk, &["--set", "writeback_running=0"]);
    write(&daemon, b'1');
    daemon.stop();
    let cold = copy(&cache, "cold.img");
    let daemon = serve(directory, &cache, disk, &["--set", "writeback_percent=0"]);
    write(&daemon, b'2');
    wait_until_clean(&daemon);
    daemon.stop();

    let before = (sha256_of(&cold), sha256_of(disk));
    let words = refused(directory, &cold, disk, &[]);
    for word in [
        "disk0.img: ",
        "cold.img",
        "the cache is an older copy",
        "--drop-clean-cache",
        "--believe-disk v",
    ] {
        assert!(words.contains(word), "{word}: {words}");
    }
    let (code, report) = check(&cold, disk);
    assert_eq!(code, Some(1));
    assert_eq!(report["counts"]["older-copy"], 1, "{report}");
    assert!(report["counts"]["dirty-under-clean"].is_null(), "{report}");
    for command in ["recover", "cat"] {
        let output = run(&[command, "-C", text(&cold), "-B", text(disk)]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("not of one run"), "{command}");
    }
    // Nothing is damaged: a repair would give them back as they are, and call that repaired.
    let new = directory.join("new.img");
    let output = run(&["repair", text(&cold), "-B", text(disk), "--out", text(&new)]);
    assert_eq!((output.status.code(), new.exists()), (Some(1), false));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not fit the disk"));
    assert_eq!((sha256_of(&cold), sha256_of(disk)), before, "nothing was changed");

    let words = refused(directory, &copy(&cold, "cold2.img"), disk, &["--drop-clean-cache"]);
    assert!(words.contains("the cache has dirty data"), "{words}");
    assert_eq!(sha256_of(disk), before.1);

    // The cache counts: its dirty data is newer than the disk, whatever the disk has.
    let disk2 = copy(disk, "disk2.img");
    let cold3 = copy(&cold, "cold3.img");
    let daemon = serve(directory, &cold3, &disk2, &["--believe-cache", "v"]);
    assert_eq!(read(&daemon, AT), b'1');
    daemon.stop();
    assert_eq!(check(&cold3, &disk2).0, Some(0));

    // The disk counts.
    let daemon = serve(directory, &cold, disk, &["--believe-disk", text(disk)]);
    assert_eq!(read(&daemon, AT), b'2');
    daemon.stop();
    assert_eq!(check(&cold, disk).0, Some(0));
    // It has gone on with another cache: the first one is the older one now.
    let words = refused(directory, &cache, disk, &[]);
    assert!(words.contains("the cache is an older copy"), "{words}");
}

/// Bug: `--drop-clean-cache` attached the disks one after the other, so the first one had lost its
/// cached data and had a new run number when the second one was refused. Fix: all choices are
/// checked before the first disk is attached.
#[test]
fn refused_disk_leaves_the_disks_before_it_unchanged() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64, 64], &["--writeback"]);
    let start =
        |cache: &Path, extra: &[&str]| Daemon::try_start("ring", directory, cache, &disks, extra);
    let write = |daemon: &Daemon, volume: &str| {
        let mut client = daemon.client(volume);
        client.write(AT, &[b'1'; LENGTH], true).expect("a write");
        client.disconnect().expect("a goodbye");
    };
    let daemon = start(&cache, &["--set", "writeback_running=0"]).expect("a start");
    write(&daemon, "disk1.img");
    daemon.stop();
    let cold = copy(&cache, "cold.img");
    let daemon = start(&cache, &["--set", "writeback_percent=0"]).expect("a start");
    let clean = |daemon: &Daemon| daemon.status()["sets"][0]["volumes"][1]["state"] == "clean";
    while !clean(&daemon) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    daemon.stop();
    let before: Vec<_> = disks.iter().map(|disk| sha256_of(disk)).collect();
    let refused = start(&cold, &["--drop-clean-cache"]).err().expect("it is refused");
    assert_eq!(refused.0.code(), Some(1));
    let words = std::fs::read_to_string(directory.join("serve.log")).expect("it has said why");
    assert!(words.contains("disk1.img: ") && words.contains("has dirty data"), "{words}");
    let after: Vec<_> = disks.iter().map(|disk| sha256_of(disk)).collect();
    assert_eq!(before, after, "no disk was changed");
}

/// Without dirty data the devices did not show it: data of the older copy was read, although the
/// disk has newer data.
#[test]
fn older_copy_of_a_clean_cache_is_refused_until_its_data_is_dropped() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v"]);
    let disk = &disks[0];
    let daemon = serve(directory, &cache, disk, &[]);
    write(&daemon, b'1');
    daemon.stop();
    let old = copy(&cache, "old.img");
    let daemon = serve(directory, &cache, disk, &[]);
    write(&daemon, b'2');
    daemon.stop();
    let words = refused(directory, &old, disk, &[]);
    assert!(
        words.contains("the cache is an older copy") && words.contains("--drop-clean-cache"),
        "{words}"
    );
    let daemon = serve(directory, &old, disk, &["--drop-clean-cache"]);
    assert_eq!(read(&daemon, AT), b'2');
    daemon.stop();
    assert_eq!(check(&old, disk).0, Some(0));
}

#[test]
fn older_copy_of_the_disk_is_refused_until_cached_data_is_dropped() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v"]);
    let disk = &disks[0];
    let daemon = serve(directory, &cache, disk, &[]);
    write(&daemon, b'1');
    daemon.stop();
    let rolled_back = copy(disk, "old.img");
    let daemon = serve(directory, &cache, disk, &[]);
    write(&daemon, b'2');
    assert_eq!(read(&daemon, AT), b'2');
    // No clean stop: a start is enough.
    daemon.kill();
    let words = refused(directory, &cache, &rolled_back, &[]);
    assert!(words.contains("the disk is an older copy"), "{words}");
    let cache2 = copy(&cache, "cache2.img");
    let daemon = serve(directory, &cache2, &rolled_back, &["--drop-clean-cache"]);
    assert_eq!(read(&daemon, AT), b'1');
    daemon.stop();
    // The newer disk is found after all.
    let daemon = serve(directory, &cache, disk, &[]);
    assert_eq!(read(&daemon, AT), b'2');
    daemon.stop();
}

/// Writes to a clean disk without its cache were hidden by old cached data when the cache came
/// back; nothing on the disk recorded them. The disk can be made to forget its cache now, and keeps
/// its name and its shape.
#[test]
fn disk_after_forget_cache_takes_a_new_cache() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v", "--data-offset", "2048"]);
    let disk = &disks[0];
    let daemon =
        serve(directory, &cache, disk, &["--mode", "writeback", "--set", "writeback_running=0"]);
    write(&daemon, b'1');
    daemon.stop();
    let shown = || -> serde_json::Value {
        serde_json::from_str(&must(ubcache().args(["show", "--json"]).arg(disk))).expect("JSON")
    };
    let before = shown();
    let output = run(&["forget-cache", text(disk)]);
    assert_eq!(output.status.code(), Some(1), "dirty");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--discard-dirty"));
    assert_eq!(shown(), before);

    let daemon =
        serve(directory, &cache, disk, &["--mode", "writethrough", "--set", "writeback_percent=0"]);
    wait_until_clean(&daemon);
    assert_eq!(read(&daemon, AT), b'1');
    daemon.stop();
    let said = must(ubcache().arg("forget-cache").arg(disk));
    assert!(said.contains("--offset 1048576"), "{said}");
    let after = shown();
    for name in ["dev.label", "dev.uuid", "dev.data.first_sector", "dev.sectors_per_block"] {
        assert_eq!(before[name], after[name], "{name}");
        assert!(!before[name].is_null(), "{name}: {before}");
    }
    let file = std::fs::OpenOptions::new().write(true).open(disk).expect("the disk");
    file.write_all_at(&[b'3'; LENGTH], (1 << 20) + AT).expect("a write without the cache");
    drop(file);
    let daemon = serve(directory, &cache, disk, &[]);
    assert_eq!(read(&daemon, AT), b'3', "not what the old cache has");
    daemon.kill();

    // The cache is lost.
    must(ubcache().arg("forget-cache").arg(disk));
    let new = directory.join("new.img");
    sparse(&new, 64 << 20);
    must(ubcache().args(["make", "--bucket", "64k", "-C"]).arg(&new));
    let daemon = serve(directory, &new, disk, &[]);
    assert_eq!(read(&daemon, AT), b'3');
    daemon.stop();
}

/// A disk that was made shorter, served, and made longer again showed its old cached data where
/// there were zeroes.
#[test]
fn cached_data_beyond_the_end_of_a_shorter_disk_does_not_return() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v"]);
    let disk = &disks[0];
    let beyond = 40 << 20;
    let daemon = serve(directory, &cache, disk, &[]);
    let mut client = daemon.client("v");
    client.write(beyond, &[b'X'; LENGTH], false).expect("a write");
    client.flush().expect("a flush");
    client.disconnect().expect("a goodbye");
    assert_eq!(read(&daemon, beyond), b'X');
    daemon.stop();
    let resize = |bytes: u64| {
        let file = std::fs::OpenOptions::new().write(true).open(disk).expect("the disk");
        file.set_len(bytes).expect("another size");
    };
    resize(30 << 20);
    serve(directory, &cache, disk, &[]).stop();
    resize(64 << 20);
    let daemon =
        serve(directory, &cache, disk, &["--mode", "writeback", "--set", "writeback_running=0"]);
    assert_eq!(read(&daemon, beyond), 0);
    let mut client = daemon.client("v");
    client.write(beyond, &[b'Y'; LENGTH], false).expect("a write");
    client.flush().expect("a flush");
    client.disconnect().expect("a goodbye");
    daemon.stop();

    // Now it is dirty.
    resize(30 << 20);
    let words = refused(directory, &cache, disk, &[]);
    assert!(
        words.contains("shorter than it was") && words.contains("65536 bytes of dirty data"),
        "{words}"
    );
    let (code, report) = check(&cache, disk);
    assert_eq!(
        (code, &report["counts"]["beyond-end-dirty"]),
        (Some(1), &serde_json::json!(1)),
        "{report}"
    );
    // The tools leave nothing out in silence.
    let file = directory.join("volume.img");
    let members = ["-C", text(&cache), "-B", text(disk)];
    for command in [&["recover"][..], &["cat", "-o", text(&file)]] {
        let output = run(&[command, &members].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("128 dirty sectors lie beyond the end"), "{command:?}: {said}");
    }
    assert!(!file.exists());
    let output = run(&[&["cat", "--damaged", "-o", text(&file)], &members[..]].concat());
    assert_eq!((output.status.code(), file.exists()), (Some(1), true));
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out: 128 dirty sectors"));
    resize(64 << 20);
    let daemon = serve(directory, &cache, disk, &[]);
    assert_eq!(read(&daemon, beyond), b'Y');
    daemon.stop();
}

/// No message reported that a part of the device lies idle. The commands in the log are run as they
/// stand.
#[test]
fn logged_commands_use_all_of_a_longer_cache() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64, 16], &[]);
    let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
    let daemon = Daemon::start("pool", directory, &cache, &disks, &settings);
    daemon.client("disk0.img").write(AT, &[b'1'; LENGTH], true).expect("a write");
    daemon.stop();
    let file = std::fs::OpenOptions::new().write(true).open(&cache).expect("the cache");
    file.set_len(300 << 20).expect("room");
    drop(file);
    let size = |daemon: &Daemon| daemon.status()["sets"][0]["cache"]["size_bytes"].as_u64();
    let daemon = Daemon::start("pool", directory, &cache, &disks, &settings);
    assert_eq!(size(&daemon), Some(64 << 20));
    assert_eq!(daemon.number(0, "/dirty_bytes"), LENGTH as u64);
    let mut line = None;
    while line.is_none() {
        // The log has a thread of its own.
        std::thread::sleep(std::time::Duration::from_millis(10));
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        let found = log.lines().rfind(|line| line.contains("the cache device is longer"));
        line = found.map(str::to_owned);
    }
    let line = line.expect("found");
    let commands: Vec<&str> = line.split('`').filter(|part| part.starts_with("ubcache ")).collect();
    assert_eq!(commands.len(), 2, "{line}");
    for command in commands {
        let words = command.split_whitespace().skip(1);
        must(ubcache().args(words).arg("--control").arg(directory.join("control.sock")));
    }
    assert_eq!(size(&daemon), Some(300 << 20));
    let mut found = [0; LENGTH];
    daemon.client("disk0.img").read(AT, &mut found).expect("a read");
    assert!(found == [b'1'; LENGTH]);
    daemon.stop();
}

/// One of several caches of a set (Linux before 5.10) was served: its pointers to the other devices
/// were followed on it.
#[test]
fn one_of_several_caches_is_refused_by_name() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[64], &["--label", "v"]);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&cache).expect("the cache");
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 4096).expect("its superblock");
    bytes[196] = 2;
    let csum = crc64_we(&bytes[8..208]);
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    file.write_all_at(&bytes, 4096).expect("its superblock");
    assert!(Superblock::parse(&bytes).is_err());
    let words = refused(directory, &cache, &disks[0], &[]);
    assert!(words.contains("one of several") && words.contains("Linux before 5.10"), "{words}");
    let (code, report) = check(&cache, &disks[0]);
    assert_eq!(
        (code, &report["counts"]["superblock-damaged"]),
        (Some(1), &serde_json::json!(1)),
        "{report}"
    );
    assert!(report.to_string().contains("number of cache devices in the set is 2"), "{report}");
}
