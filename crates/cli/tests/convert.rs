//! `ubcache convert` and `ubcache unmake --in-place`: an ext4 with files is moved behind a
//! superblock, served, and moved back; killed at many of its steps; and what is refused.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::crashed::{json, run};
use support::file_system::{ext4_of, files};
use support::steps::is_killed_at;
use support::{
    Daemon, STAYS_DIRTY, have, must, names_in, scratch, sha256_of, sparse, tool, ubcache,
};

const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 16;
/// The file system leaves the last mebibyte free.
const DATA: usize = 15 << 20;
const FILES: u64 = 4;
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "debugfs"];

/// A disk with an ext4, and a directory for work files.
struct World {
    directory: tempfile::TempDir,
    disk: PathBuf,
    /// Content of the file system as it should be.
    expected: Vec<u8>,
}

/// Writes into a file that is there.
fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).expect("a file");
    file.write_all_at(bytes, at).expect("a write");
}

impl World {
    /// A world without a disk.
    fn empty() -> World {
        let directory = scratch();
        let disk = directory.path().join("disk.img");
        std::fs::create_dir(directory.path().join("work")).expect("a directory");
        World { directory, disk, expected: Vec::new() }
    }

    fn new() -> World {
        let World { directory, disk, .. } = World::empty();
        let files = files(directory.path(), FILES, MIB / 2);
        ext4_of(&files, &disk, DISK_MIB * MIB, DATA as u64);
        let mut expected = std::fs::read(&disk).expect("the disk");
        expected.truncate(DATA);
        World { directory, disk, expected }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", self.path("work")).env("UBCACHE_IO", "pool").arg(command);
        ubcache
    }

    fn convert(&self) -> Command {
        let mut convert = self.ubcache("convert");
        convert.args(["--chunk", "1M", "--label", "data"]).arg(&self.disk);
        convert
    }

    fn unmake(&self) -> Command {
        let mut unmake = self.ubcache("unmake");
        unmake.args(["--in-place", "--chunk", "1M"]).arg(&self.disk);
        unmake
    }

    fn make_cache(&self) -> PathBuf {
        let cache = self.path("cache.img");
        must(self.ubcache("make").args(["--size", "40M", "--bucket", "64k", "-C"]).arg(&cache));
        cache
    }

    fn serve(&self, cache: &Path, options: &[&str]) -> Daemon {
        Daemon::start(
            "pool",
            self.directory.path(),
            cache,
            std::slice::from_ref(&self.disk),
            options,
        )
    }

    /// The data is at this byte of the disk, and nothing is left of the move.
    fn check(&self, at: usize) {
        let disk = std::fs::read(&self.disk).expect("the disk");
        assert!(disk[at..at + DATA] == self.expected, "other bytes");
        let left = names_in(&self.path("work"));
        assert!(left.is_empty(), "{left:?}");
    }

    /// The file system is at the begin of the disk, and whole.
    fn check_files(&self) {
        self.check(0);
        must(tool("e2fsck").arg("-fn").arg(&self.disk));
        for number in 0..FILES {
            let out = self.path("out");
            let dump = format!("dump file{number} {}", out.display());
            must(tool("debugfs").args(["-R", &dump]).arg(&self.disk));
            assert_eq!(
                sha256_of(&out),
                sha256_of(&self.path("files").join(format!("file{number}")))
            );
        }
    }

    /// Errors of a command that has to end with this code.
    fn said(&self, command: &mut Command, code: i32) -> String {
        String::from_utf8_lossy(&run(command, code).stderr).into_owned()
    }
}

#[test]
fn a_file_system_is_converted_served_and_moved_back() {
    if !have("a_file_system_is_converted_served_and_moved_back", &PROGRAMS) {
        return;
    }
    let mut world = World::new();
    let planned = json(&run(world.convert().args(["--dry-run", "--json"]), 0));
    assert_eq!((&planned["to_byte"], &planned["done"]), (&8192.into(), &false.into()));
    world.check(0);
    let done = json(&run(world.convert().arg("--json"), 0));
    assert_eq!((&done["bytes"], &done["done"]), (&DATA.into(), &true.into()));
    world.check(8192);
    let cache = world.make_cache();
    let served = world.serve(&cache, &STAYS_DIRTY);
    let mut first = vec![0; 65_536];
    served.client("data").read(0, &mut first).expect("a read");
    assert!(first == world.expected[..65_536]);
    let at = 12 << 20;
    served.client("data").write(at as u64, &[9; 8192], true).expect("a write");
    world.expected[at..at + 8192].fill(9);
    let refused = world.said(&mut world.unmake(), 1);
    assert!(refused.contains("in use"), "{refused}");
    served.stop();
    let refused = world.said(&mut world.unmake(), 1);
    assert!(refused.contains("state dirty"), "{refused}");
    let mut recover = world.ubcache("recover");
    must(recover.arg("-C").arg(&cache).arg("-B").arg(&world.disk));
    let refused = world.said(&mut world.unmake(), 1);
    assert!(refused.contains("attached to a cache"), "{refused}");
    must(recover.arg("--detach"));
    must(&mut world.unmake());
    world.check_files();
}

#[test]
fn moves_that_are_killed_at_any_step_are_finished_by_the_same_command() {
    const TEST: &str = "moves_that_are_killed_at_any_step_are_finished_by_the_same_command";
    if !have(TEST, &PROGRAMS) || !have(TEST, &["strace"]) {
        return;
    }
    let world = World::new();
    let (mut n, mut kills, mut goes_up) = (1, 0, true);
    loop {
        let command = || if goes_up { world.convert() } else { world.unmake() };
        let is_killed = is_killed_at(n, &command());
        if is_killed {
            kills += 1;
            let again = command().output().expect("it runs");
            let done = if goes_up { "has a bcache superblock already" } else { "not a bcache" };
            let said = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.success() || said.contains(done), "step {n}: {said}");
        }
        world.check(if goes_up { 8192 } else { 0 });
        goes_up = !goes_up;
        if !is_killed && goes_up {
            break;
        }
        n += 1 + n / 6;
    }
    println!("killed {kills} times, last at step {n}");
    assert!(kills > 10, "it has more steps");
    world.check_files();
}

#[test]
fn a_disk_in_the_middle_of_a_move_is_neither_served_nor_overwritten() {
    const TEST: &str = "a_disk_in_the_middle_of_a_move_is_neither_served_nor_overwritten";
    if !have(TEST, &PROGRAMS) || !have(TEST, &["strace"]) {
        return;
    }
    let world = World::new();
    // Within the third chunk of sixteen.
    assert!(is_killed_at(12, &world.convert()), "it has more steps");
    let cache = world.make_cache();
    let before = sha256_of(&world.disk);
    let mark = "its data is being moved in place";
    let mut serve = world.ubcache("serve");
    let refused = world.said(serve.arg("-C").arg(&cache).arg("-B").arg(&world.disk), 1);
    assert!(refused.contains(mark), "{refused}");
    let refused = world.said(world.ubcache("make").arg("--adopt").arg(&world.disk), 1);
    assert!(refused.contains(mark), "{refused}");
    let refused = world.said(world.ubcache("make").arg("-B").arg(&world.disk), 1);
    assert!(refused.contains("is being moved in place"), "{refused}");
    let refused = world.said(&mut world.unmake(), 1);
    assert!(refused.contains("in the middle of `ubcache convert`"), "{refused}");
    let mut elsewhere = world.convert();
    let refused = world.said(elsewhere.env("UBCACHE_HEADERS", world.path("nowhere")), 1);
    assert!(refused.contains("the work file is not found"), "{refused}");
    let planned = json(&run(world.convert().args(["--dry-run", "--json"]), 0));
    assert_eq!(planned["resumed"], true);
    assert_eq!(sha256_of(&world.disk), before, "nothing was changed");
    must(&mut world.convert());
    world.check(8192);
}

#[test]
fn a_disk_without_room_or_of_unknown_content_is_refused() {
    if !have("a_disk_without_room_or_of_unknown_content_is_refused", &PROGRAMS) {
        return;
    }
    let world = World::new();
    let disk = std::fs::File::options().write(true).open(&world.disk).expect("the disk");
    disk.set_len(DATA as u64).expect("no room");
    let before = sha256_of(&world.disk);
    let refused = world.said(&mut world.convert(), 1);
    for word in ["no room", "resize2fs", "make --adopt", &(DATA - 8192).to_string()] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    assert_eq!(sha256_of(&world.disk), before);
    let other = world.path("other.img");
    sparse(&other, MIB);
    let refused = world.said(world.ubcache("convert").arg(&other), 1);
    assert!(refused.contains("--data-size"), "{refused}");
    let mut sized = world.ubcache("convert");
    must(sized.args(["--data-size", "1000k"]).arg(&other));
    let refused = world.said(&mut sized, 1);
    assert!(refused.contains("superblock already"), "{refused}");
    must(world.ubcache("unmake").arg("--in-place").arg(&other));
    assert!(std::fs::read(&other).expect("it")[..1000 << 10].iter().all(|byte| *byte == 0));
}

#[test]
fn room_before_the_data_takes_a_superblock_without_a_move() {
    if !have("room_before_the_data_takes_a_superblock_without_a_move", &PROGRAMS) {
        return;
    }
    let world = World::new();
    let refused = world.said(world.ubcache("convert").arg("--room-before").arg(&world.disk), 1);
    assert!(refused.contains("the first 8 KiB are not free"), "{refused}");
    // The same partition, from 16 sectors before its begin.
    let mut longer = vec![0; 8192];
    longer.extend_from_slice(&world.expected);
    std::fs::write(&world.disk, &longer).expect("a longer disk");
    must(world.ubcache("convert").args(["--room-before", "--label", "data"]).arg(&world.disk));
    world.check(8192);
    let cache = world.make_cache();
    let served = world.serve(&cache, &[]);
    let mut first = vec![0; 4096];
    served.client("data").read(0, &mut first).expect("a read");
    assert!(first == world.expected[..4096]);
    served.stop();
}

/// Signatures of content that is found by more than its first 4 KiB.
const FOUND_ELSEWHERE: [(u64, &[u8], &str); 5] = [
    (65_600, b"_BHRfS_M", "a btrfs file system"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an MD array"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a GPT partition table"),
];

#[test]
fn content_that_is_found_by_more_than_its_first_block_is_not_moved() {
    let world = World::empty();
    let ext4: (u64, &[u8]) = (1080, &[0x53, 0xef]);
    for (at, magic, name) in FOUND_ELSEWHERE {
        for beside in [None, Some(ext4)] {
            sparse(&world.disk, 4 * MIB);
            write_at(&world.disk, at, magic);
            if let Some((at, magic)) = beside {
                write_at(&world.disk, at, magic);
            }
            let before = sha256_of(&world.disk);
            for option in [None, Some("--data-size=1M"), Some("--dry-run")] {
                let refused = world.said(world.convert().args(option), 1);
                for word in [name, "can't be moved in place", "make --adopt"] {
                    assert!(refused.contains(word), "{name}, {beside:?}, {option:?}: {refused}");
                }
            }
            assert_eq!(sha256_of(&world.disk), before);
            std::fs::remove_file(&world.disk).expect("it is removed");
            sparse(&world.disk, 4 * MIB);
            must(world.ubcache("make").arg("-B").arg(&world.disk));
            write_at(&world.disk, 8192 + at, magic);
            if let Some((at, magic)) = beside {
                write_at(&world.disk, 8192 + at, magic);
            }
            let before = sha256_of(&world.disk);
            let refused = world.said(&mut world.unmake(), 1);
            for word in [name, "can't be moved in place", "prints how"] {
                assert!(refused.contains(word), "{name}, {beside:?}: {refused}");
            }
            assert_eq!(sha256_of(&world.disk), before);
            std::fs::remove_file(&world.disk).expect("it is removed");
        }
    }
}

#[test]
fn a_boot_sector_before_a_file_system_is_moved_with_it() {
    if !have("a_boot_sector_before_a_file_system_is_moved_with_it", &PROGRAMS) {
        return;
    }
    let mut world = World::new();
    write_at(&world.disk, 510, &[0x55, 0xaa]);
    world.expected[510..512].copy_from_slice(&[0x55, 0xaa]);
    must(&mut world.convert());
    world.check(8192);
    must(&mut world.unmake());
    world.check(0);
}

#[test]
fn a_file_that_is_no_work_file_is_not_removed() {
    if !have("a_file_that_is_no_work_file_is_not_removed", &PROGRAMS) {
        return;
    }
    let world = World::new();
    let planned = json(&run(world.convert().args(["--dry-run", "--json"]), 0));
    let usual = PathBuf::from(planned["work"].as_str().expect("a path"));
    let given = world.path("image");
    for (path, content_at) in [(&usual, 65_536), (&given, 65_536), (&given, 16), (&given, 4096)] {
        sparse(path, MIB);
        write_at(path, content_at, b"of the user");
        let before = sha256_of(path);
        let mut convert = world.convert();
        if path == &given {
            convert.arg("--work").arg(path);
        }
        let refused = world.said(&mut convert, 1);
        assert!(refused.contains("there is a file of that name"), "{refused}");
        assert_eq!(sha256_of(path), before);
        std::fs::remove_file(path).expect("it is removed");
    }
    let other_name = world.path("link");
    std::os::unix::fs::symlink(&world.disk, &other_name).expect("a link");
    for itself in [&world.disk, &other_name] {
        let refused = world.said(world.convert().arg("--work").arg(itself), 1);
        assert!(refused.contains("the disk itself"), "{refused}");
    }
    world.check(0);
    std::fs::write(&given, []).expect("an empty file");
    must(world.convert().arg("--work").arg(&given));
    world.check(8192);
}

#[test]
fn the_work_file_of_a_disk_that_was_renamed_is_kept_for_it() {
    const TEST: &str = "the_work_file_of_a_disk_that_was_renamed_is_kept_for_it";
    if !have(TEST, &PROGRAMS) || !have(TEST, &["strace"]) {
        return;
    }
    let world = World::new();
    let veil = b"ubcache is moved";
    let mut n = 1;
    while !std::fs::read(&world.disk).expect("the disk")[4096..].starts_with(veil) {
        assert!(is_killed_at(n, &world.convert()), "it has more steps");
        n += 1;
    }
    let renamed = world.path("renamed.img");
    std::fs::rename(&world.disk, &renamed).expect("a new name");
    let mut other = world.expected.clone();
    other[200] = 1;
    other.resize((DISK_MIB * MIB) as usize, 0);
    std::fs::write(&world.disk, &other).expect("another disk");
    let work = names_in(&world.path("work"));
    let refused = world.said(&mut world.convert(), 1);
    for word in ["nothing of it is on this disk", &work[0]] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    assert_eq!(names_in(&world.path("work")), work);
    assert!(std::fs::read(&world.disk).expect("the disk") == other, "nothing was changed");
    must(world.ubcache("convert").arg(&renamed));
    let moved = std::fs::read(&renamed).expect("the disk");
    assert!(moved[8192..8192 + DATA] == world.expected, "other bytes");
    must(&mut world.convert());
    let moved = std::fs::read(&world.disk).expect("the disk");
    assert!(moved[8192..8192 + DATA] == other[..DATA], "other bytes");
    assert!(names_in(&world.path("work")).is_empty());
}
