//! Commands that would destroy the only copy of something, or mistake one disk for another, are
//! refused; and the advice in their messages is right.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::devices::Loop;
use support::{
    Daemon, have, make_set, must, run, scratch, sha256_of, skipped, sparse, text, ubcache,
};
use ubcache_format::{Replacement, Superblock, Uuid, crc64_we};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that has to be refused, and changes none of these files.
fn refused(arguments: &[&str], files: &[&Path]) -> String {
    let before: Vec<String> = files.iter().map(|path| sha256_of(path)).collect();
    let output = run(arguments);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {}", said(&output));
    let after: Vec<String> = files.iter().map(|path| sha256_of(path)).collect();
    assert!(before == after, "{arguments:?} has changed something");
    said(&output)
}

/// Some dirty data that only the cache has; the set is stopped.
fn make_dirty(directory: &Path, cache: &Path, backings: &[PathBuf], export: &str) {
    let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
    let daemon = Daemon::start("pool", directory, cache, backings, &settings);
    daemon.client(export).write(1 << 20, &vec![0x5a; 1 << 20], true).expect("a write");
    daemon.stop();
}

/// `make -C CACHE --wipe-bcache` destroyed the only copy of dirty data without a warning; only the
/// backing device was checked.
#[test]
fn make_refuses_a_cache_with_dirty_data() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backings) = make_set(directory, &[16], &["--label", "data"]);
    make_dirty(directory, &cache, &backings, "data");
    let make = ["make", "--bucket", "64k", "--wipe-bcache", "-C", text(&cache)];
    let words = refused(&make, &[&cache]);
    for word in [text(&cache), "1M", "data", "ubcache recover -C", "--force"] {
        assert!(words.contains(word), "{word} is missing in: {words}");
    }
    // The disk that is overwritten as well is recognised by its path.
    let both = [&make[..], &["-B", text(&backings[0])]].concat();
    assert!(refused(&both, &[&cache, &backings[0]]).contains(text(&backings[0])));
    // The advice in the message works.
    must(ubcache().args(["recover", "-C"]).arg(&cache).arg("-B").arg(&backings[0]));
    assert!(run(&make).status.success());
    let (_, backings) = make_set(directory, &[16], &["--label", "data"]);
    make_dirty(directory, &cache, &backings, "data");
    refused(&make, &[&cache]);
    assert!(run(&[&make[..], &["--force"]].concat()).status.success());
}

/// A second disk of the same label was served under a name with a number, and under the first one's
/// name when that was away.
#[test]
fn two_disks_of_one_name_are_refused() {
    let directory = scratch();
    let directory = directory.path();
    let cache = directory.join("cache.img");
    sparse(&cache, 64 << 20);
    let disks = ["a.img", "b.img"].map(|name| directory.join(name));
    must(ubcache().args(["make", "--bucket", "64k", "-C"]).arg(&cache));
    for disk in &disks {
        sparse(disk, 8 << 20);
        must(ubcache().args(["make", "--label", "data", "-B"]).arg(disk));
    }
    let (a, b) = (text(&disks[0]), text(&disks[1]));
    let words =
        refused(&["serve", "-C", text(&cache), "-B", a, b], &[&cache, &disks[0], &disks[1]]);
    for word in ["\"data\"", a, b, "-B NAME="] {
        assert!(words.contains(word), "{word} is missing in: {words}");
    }
    let words = refused(&["make", "--size", "8M", "--label", "x", "-B", "c.img", "d.img"], &[]);
    assert!(words.contains("--label"), "{words}");

    let named = [PathBuf::from(format!("first={a}")), PathBuf::from(format!("second={b}"))];
    let daemon = Daemon::start("pool", directory, &cache, &named, &[]);
    daemon.client("first").write(0, &[1; 4096], true).expect("a write");
    daemon.client("second").write(0, &[2; 4096], true).expect("a write");
    daemon.stop();
    let uuid = |disk: &Path| {
        let shown = must(ubcache().args(["show", "--json"]).arg(disk));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        shown["dev.uuid"].as_str().expect("a UUID").to_owned()
    };
    // No other disk gets the name of an absent one, and a UUID is always a name.
    let daemon = Daemon::start("pool", directory, &cache, &disks[1..], &[]);
    assert!(ubcache_cli::nbd_client::Client::connect(&daemon.socket, "first").is_err());
    let mut found = vec![0; 4096];
    daemon.client(&uuid(&disks[1])).read(0, &mut found).expect("a read");
    assert!(found == [2; 4096]);
    assert!(ubcache_cli::nbd_client::Client::connect(&daemon.socket, &uuid(&disks[0])).is_err());
    daemon.stop();
    // The UUID of another disk is no name: the client that asks for it would get this one.
    let (first, second) = (format!("{}={a}", uuid(&disks[1])), format!("second={b}"));
    let files: Vec<&Path> = [&cache, &disks[0], &disks[1]].map(PathBuf::as_path).to_vec();
    let words = refused(&["serve", "-C", text(&cache), "-B", &first, &second], &files);
    assert!(words.contains(a) && words.contains(b), "{words}");
    let own = [PathBuf::from(format!("{}={b}", uuid(&disks[1]))), PathBuf::from(format!("x={a}"))];
    Daemon::start("pool", directory, &cache, &own, &[]).stop();
}

/// `make -C z -B z` blamed another process; an odd size asked for a block below the smallest one;
/// and a label could have 31 bytes here, and 32 in `ubcache set`.
#[test]
fn make_names_the_mistake() {
    let directory = scratch();
    let directory = directory.path();
    let (disk, odd, new) = (directory.join("z"), directory.join("odd"), directory.join("new"));
    sparse(&disk, 64 << 20);
    sparse(&odd, 1_000_001);
    let link = directory.join("link");
    std::os::unix::fs::symlink(&disk, &link).expect("a link");
    for other in [&disk, &link] {
        let make = ["make", "--bucket", "64k", "-C", text(&disk), "-B", text(other)];
        let words = refused(&make, &[&disk]);
        assert!(words.contains("given twice") && words.contains(text(&disk)), "{words}");
    }
    let twice = ["make", "--size", "8M", "-B", text(&new), text(&new)];
    assert!(refused(&twice, &[]).contains("given twice") && !new.exists());
    let words = refused(&["make", "-B", text(&odd)], &[&odd]);
    assert!(words.contains("a multiple of 512") && !words.contains("--block"), "{words}");
    let words = refused(&["make", "--block", "4k", "-B", text(&odd)], &[&odd]);
    assert!(words.contains("a smaller --block"), "{words}");
    let label = "x".repeat(32);
    let long = format!("{label}x");
    let words = refused(&["make", "--label", &long, "-B", text(&disk)], &[&disk]);
    assert!(words.contains("at most 32 bytes"), "{words}");
    must(ubcache().args(["make", "--label", &label, "-B"]).arg(&disk));
    assert!(must(ubcache().arg("show").arg(&disk)).contains(&label));
    let cache = directory.join("cache.img");
    must(ubcache().args(["make", "--size", "64M", "--bucket", "64k", "-C"]).arg(&cache));
    let daemon = Daemon::start("pool", directory, &cache, std::slice::from_ref(&disk), &[]);
    assert!(daemon.greeting[0].starts_with(&format!("export {label} ")), "{:?}", daemon.greeting);
    daemon.stop();
}

/// `check` of a file that never was a bcache device called its superblock damaged, and sent the
/// operator to `repair`.
#[test]
fn check_says_that_a_device_has_no_superblock() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backings) = make_set(directory, &[16], &[]);
    let plain = directory.join("plain");
    sparse(&plain, 64 << 20);
    let mistaken = [[text(&cache), "-B", text(&plain)], [text(&plain), "-B", text(&backings[0])]];
    for arguments in mistaken {
        let output = run(&[&["check"], &arguments[..]].concat());
        let found = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
        assert_eq!(output.status.code(), Some(1), "{found}");
        assert!(found.contains("superblock-missing") && found.contains(text(&plain)), "{found}");
        assert!(!found.contains("superblock-damaged"), "{found}");
    }
}

/// Two daemons wrote to one disk, and `make` wrote over a superblock in use: the file under a loop
/// device was not checked.
#[test]
fn a_loop_device_over_a_served_file_is_in_use() {
    let test = "a_loop_device_over_a_served_file_is_in_use";
    if !have(test, &["losetup"]) {
        return;
    }
    let directory = scratch();
    let directory = directory.path();
    let (cache, backings) = make_set(directory, &[16], &[]);
    let copy = directory.join("copy.img");
    std::fs::copy(&cache, &copy).expect("room");
    let daemon = Daemon::start("pool", directory, &cache, &backings, &[]);
    let (Some(over), Some(other)) = (Loop::new(&backings[0], &[]), Loop::new(&backings[0], &[]))
    else {
        return skipped(test, "no loop devices here");
    };
    let (disk, copy) = (text(&over.0), text(&copy));
    for command in [
        &["serve", "-C", copy, "-B", disk][..],
        &["make", "--force", "-B", disk],
        &["check", copy, "-B", disk],
        &["recover", "-C", copy, "-B", disk],
    ] {
        let words = refused(command, &[]);
        assert!(words.contains("in use") && words.contains(disk), "{command:?}: {words}");
    }
    daemon.stop();
    // A disk served over one of two loop devices is in use for the other one.
    let served = [over.0.clone()];
    let daemon = Daemon::start("pool", directory, &cache, &served, &[]);
    let words = refused(&["make", "--force", "-B", text(&other.0)], &[]);
    assert!(words.contains("in use"), "{words}");
    daemon.stop();
}

/// The set was made and served, and no write could succeed.
#[test]
fn unaligned_data_offset_is_refused() {
    let test = "unaligned_data_offset_is_refused";
    if !have(test, &["losetup"]) {
        return;
    }
    let directory = scratch();
    let disk = directory.path().join("disk.img");
    sparse(&disk, 8 << 20);
    let Some(device) = Loop::new(&disk, &["-b", "4096"]) else {
        return skipped(test, "no loop devices here");
    };
    let words = refused(&["make", "-o", "17", "-B", text(&device.0)], &[&disk]);
    assert!(words.contains("17") && words.contains("a multiple of 8"), "{words}");
    must(ubcache().args(["make", "-o", "24", "-B"]).arg(&device.0));
    drop(device);

    // A disk that another program made so.
    let cache = directory.path().join("cache.img");
    sparse(&cache, 64 << 20);
    must(ubcache().args(["make", "--bucket", "64k", "-C"]).arg(&cache));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&disk).expect("the disk");
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 4096).expect("its superblock");
    bytes[184..192].copy_from_slice(&17_u64.to_le_bytes());
    let csum = crc64_we(&bytes[8..208]);
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    file.write_all_at(&bytes, 4096).expect("its superblock");
    let device = Loop::new(&disk, &["-b", "4096"]).expect("there were some");
    let words = refused(&["serve", "-C", text(&cache), "-B", text(&device.0)], &[&cache, &disk]);
    for word in [text(&device.0), "17", "a multiple of 8", "--data-offset"] {
        assert!(words.contains(word), "{word} is missing in: {words}");
    }
}

#[test]
fn set_with_blocks_above_4_kib_is_refused_with_its_origin() {
    let directory = scratch();
    let cache = directory.path().join("cache.img");
    sparse(&cache, 64 << 20);
    let uuid = Uuid([7; 16]);
    let superblock = Superblock::new_cache(uuid, uuid, 16, 128, 1000, Replacement::Lru, false);
    let file = std::fs::OpenOptions::new().write(true).open(&cache).expect("the file");
    file.write_all_at(&superblock.encode(), 4096).expect("room");
    let words = refused(&["serve", "-C", text(&cache), "-B", text(&cache)], &[&cache]);
    assert!(words.contains("larger pages"), "{words}");
    // `check` sent the operator to `repair`.
    let output = run(&["check", text(&cache)]);
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(found.contains("[larger-pages]") && !found.contains("repair"), "{found}");
}
