//! Bad input: every refusal names the file, the value found, the value expected and the remedy, and
//! changes nothing.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Output;

use support::{
    Daemon, make_set, must, run, scratch, sha256_of, skipped, sparse, text, tool, ubcache,
};
use ubcache_format::{
    BackingState, Geometry, JournalSeq, SUPERBLOCK_BYTES, Superblock, crc64_we, scan_bucket,
};

const REFUSED: i32 = 1;
const COULD_NOT_RUN: i32 = 2;
const NO_DAEMON: i32 = 3;

/// `serve`, expected to end by itself: its sockets are in a scratch directory.
fn serve(directory: &Path, cache: Option<&Path>, backings: &[&Path]) -> Output {
    let mut command = ubcache();
    command.arg("serve");
    if let Some(cache) = cache {
        command.arg("-C").arg(cache);
    }
    for backing in backings {
        command.arg("-B").arg(backing);
    }
    command.arg("--nbd").arg(format!("unix:{}", directory.join("n").display()));
    command.arg("--control").arg(directory.join("c")).output().expect("ubcache runs")
}

/// Checks code and words of a refusal.
fn refuses(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "\"{word}\" is missing in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn superblock_bytes(path: &Path) -> Vec<u8> {
    let mut file = std::fs::File::open(path).expect("a device");
    file.seek(SeekFrom::Start(4096)).expect("a file");
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    file.read_exact(&mut bytes).expect("a superblock");
    bytes
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("a device");
    file.seek(SeekFrom::Start(at)).expect("a file");
    file.write_all(bytes).expect("room");
}

/// Changes bytes of a superblock and makes its checksum right again.
fn change_superblock(path: &Path, at: usize, to: &[u8]) {
    let mut bytes = superblock_bytes(path);
    bytes[at..at + to.len()].copy_from_slice(to);
    let keys = usize::from(u16::from_le_bytes([bytes[206], bytes[207]]));
    let csum = crc64_we(&bytes[8..208 + 8 * keys]);
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    write_at(path, 4096, &bytes);
}

fn set_state(path: &Path, state: BackingState) {
    let mut superblock = Superblock::parse(&superblock_bytes(path)).expect("a good superblock");
    superblock.set_state(state);
    write_at(path, 4096, &superblock.encode());
}

fn a_set(directory: &Path) -> (PathBuf, PathBuf) {
    let (cache, mut backings) = make_set(directory, &[16], &[]);
    (cache, backings.remove(0))
}

#[test]
fn foreign_device_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let plain = directory.path().join("plain.img");
    sparse(&plain, 16 << 20);
    let output = serve(directory.path(), Some(&cache), &[&plain]);
    refuses(
        &output,
        REFUSED,
        &["plain.img", "not a bcache device", "found", "expected", "ubcache make -B"],
    );
    let output = serve(directory.path(), Some(&plain), &[&backing]);
    refuses(&output, REFUSED, &["plain.img", "not a bcache device", "ubcache make -C"]);
    refuses(
        &run(&["show", text(&plain)]),
        REFUSED,
        &["plain.img", "not a bcache device", "byte 4120"],
    );
    // A known file system is called by its name.
    write_at(&plain, 1080, &[0x53, 0xef]);
    let output = serve(directory.path(), Some(&cache), &[&plain]);
    refuses(&output, REFUSED, &["plain.img", "ext4"]);
    // Cache and backing device the wrong way round.
    let output = serve(directory.path(), Some(&backing), &[&cache]);
    refuses(&output, REFUSED, &["disk0.img", "not a cache device", "name it with -B"]);
}

#[test]
fn truncated_device_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let shorten = |path: &Path, bytes: u64| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("a file")
            .set_len(bytes)
            .expect("a shorter file");
    };
    shorten(&cache, 32 << 20);
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["cache.img", "does not fit", "131072", "65536"]);
    shorten(&backing, 6000);
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["cache.img"]);
    refuses(
        &run(&["show", text(&backing)]),
        REFUSED,
        &["disk0.img", "too short", "6000 bytes", "at least 8192"],
    );
    shorten(&backing, 8192);
    let (cache, _) = make_set(directory.path(), &[], &["--wipe-bcache"]);
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["disk0.img", "does not fit"]);
}

#[test]
fn superblock_with_wrong_checksum_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    for (device, other) in [(&cache, None), (&backing, Some(&cache))] {
        write_at(device, 4096 + 72, b"X");
        let before = sha256_of(device);
        let output = match other {
            None => serve(directory.path(), Some(device), &[&backing]),
            Some(_) => run(&["show", text(device)]),
        };
        let name = device.file_name().expect("a name").to_string_lossy();
        refuses(&output, REFUSED, &[&name, "wrong checksum", "found", "expected"]);
        assert_eq!(sha256_of(device), before, "a refused device is not changed");
        let forced = run(&["show", "-f", text(device)]);
        assert!(forced.status.success());
        assert!(String::from_utf8_lossy(&forced.stdout).contains("[expected "));
    }
}

#[test]
fn unknown_version_or_feature_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    change_superblock(&backing, 16, &9_u64.to_le_bytes());
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["disk0.img", "unknown version", "9", "0, 1, 3, 4, 5 or 6"]);
    let good = superblock_bytes(&cache);
    for (at, name) in [(120, "compatible"), (128, "incompatible"), (136, "writing")] {
        write_at(&cache, 4096, &good);
        change_superblock(&cache, 16, &5_u64.to_le_bytes());
        change_superblock(&cache, at, &(1_u64 << 40).to_le_bytes());
        let output = serve(directory.path(), Some(&cache), &[&backing]);
        refuses(&output, REFUSED, &["cache.img", "unknown feature bits", name, "0x10000000000"]);
    }
}

#[test]
fn cache_and_backing_device_of_different_sets_are_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let own = Superblock::parse(&superblock_bytes(&backing))
        .expect("a good superblock")
        .set_uuid
        .to_string();
    set_state(&backing, BackingState::Clean);
    let (cache, _) = {
        std::fs::remove_file(&cache).expect("the cache of the first set");
        make_set(directory.path(), &[], &[])
    };
    let before = (sha256_of(&cache), sha256_of(&backing));
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["disk0.img", "another cache set", &own, "state clean"]);
    set_state(&backing, BackingState::Dirty);
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(
        &output,
        REFUSED,
        &["disk0.img", "another cache set", &own, "state dirty", "find the cache device"],
    );
    set_state(&backing, BackingState::Clean);
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before, "refused devices are not changed");
}

#[test]
fn dirty_backing_device_without_its_cache_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    set_state(&backing, BackingState::Dirty);
    let set = Superblock::parse(&superblock_bytes(&backing))
        .expect("a good superblock")
        .set_uuid
        .to_string();
    let before = sha256_of(&backing);
    let output = serve(directory.path(), None, &[&backing]);
    let words = [
        "disk0.img",
        "dirty",
        "cache is missing",
        &set,
        "find the cache device",
        "ubcache forget-cache",
    ];
    refuses(&output, REFUSED, &words);
    // A cache that was made later with the UUID of the set is not the cache that is missing.
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &words);
    // Nor is one that was started since.
    let other = directory.path().join("other.img");
    sparse(&other, 16 << 20);
    let uuid = ["--block", "4k", "--cset-uuid", &set, "-B"];
    must(ubcache().arg("make").args(uuid).arg(&other));
    Daemon::start("pool", directory.path(), &cache, std::slice::from_ref(&other), &[]).stop();
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["disk0.img", "dirty", &set]);
    assert_eq!(sha256_of(&backing), before, "a refused device is not changed");
    // Overwriting it needs more than --wipe-bcache.
    refuses(
        &run(&["make", "--wipe-bcache", "-B", text(&backing)]),
        REFUSED,
        &["disk0.img", "dirty", "--force"],
    );
    assert_eq!(sha256_of(&backing), before, "a refused device is not changed");
}

#[test]
fn impossible_sizes_are_refused() {
    let directory = scratch();
    let path = directory.path().join("new.img");
    let new = text(&path);
    for (arguments, words) in [
        (&["--size", "0", "-C", new][..], &["--size", "0"][..]),
        (&["--size", "1000000001", "-C", new], &["--size", "1000000001", "multiple of 512"]),
        (&["--size", "1000000512", "--block", "4k", "-B", new], &["--size", "multiple of 4096"]),
        (&["--bucket", "0", "--size", "1g", "-C", new], &["--bucket", "0 bytes", "power of two"]),
        (&["--bucket", "100k", "--size", "1g", "-C", new], &["--bucket", "102400", "power of two"]),
        (&["--block", "0", "--size", "1g", "-C", new], &["--block", "power of two from 512 to 4k"]),
        (&["--block", "600", "--size", "1g", "-C", new], &["--block", "power of two"]),
        (&["--size", "1g", "--data-offset", "8", "-B", new], &["--data-offset", "at least 16"]),
        (&["--size", "banana", "-B", new], &["banana", "suffix"]),
        (&["--size", "1g"], &["no device"]),
    ] {
        let output = ubcache().arg("make").args(arguments).output().expect("ubcache runs");
        refuses(&output, COULD_NOT_RUN, words);
        assert!(!path.exists(), "a refused command leaves no file: {arguments:?}");
    }
    let output = run(&["make", "--size", "256m", "-C", new]);
    refuses(
        &output,
        REFUSED,
        &["new.img", "too small", "512 buckets", "513", "268959744", "--bucket 256k"],
    );
    let output = run(&["make", "--size", "8k", "-B", new]);
    refuses(&output, REFUSED, &["new.img", "too small", "8192 bytes"]);
    assert!(!path.exists(), "a refused command leaves no file");
    sparse(&path, 0);
    refuses(&run(&["make", "-B", new]), REFUSED, &["new.img", "0 bytes"]);
    sparse(&path, (32 << 20) + 100);
    refuses(&run(&["make", "-B", new]), REFUSED, &["new.img", "multiple of 512"]);
    sparse(&path, (32 << 20) + 512);
    refuses(&run(&["make", "-w", "4k", "-B", new]), REFUSED, &["new.img", "multiple of 4096"]);
}

/// Pointers have 43 bits for a sector: sectors beyond were read and written at another place.
#[test]
fn caches_beyond_4_pib_are_refused() {
    let test = "caches_beyond_4_pib_are_refused";
    let directory = scratch();
    // ext4 has no files as large, a file system in memory has.
    let Some((point, _mount)) = support::devices::small(test, directory.path(), 64) else { return };
    let path = point.join("huge.img");
    let (path, most) = (text(&path), 1_u64 << 52);
    for bytes in [most + (1 << 30), 1 << 60] {
        let size = bytes.to_string();
        let output = run(&["make", "--bucket", "16m", "--sparse", "--size", &size, "-C", path]);
        refuses(&output, REFUSED, &["huge.img", "too large", "4 PiB", &size, &most.to_string()]);
        sparse(Path::new(path), bytes);
        let output = run(&["make", "--bucket", "16m", "-C", path]);
        refuses(&output, REFUSED, &["huge.img", "too large", "4 PiB", &size, &most.to_string()]);
        std::fs::remove_file(path).expect("the file");
    }
    // A superblock of such a device, made by another program.
    let (cache, backing) = a_set(directory.path());
    change_superblock(&cache, 184, &(1_u64 << 31).to_le_bytes());
    change_superblock(&cache, 194, &32768_u16.to_le_bytes());
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["cache.img", "number of sectors in all buckets", "4 PiB"]);
}

#[test]
fn device_in_use_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let daemon =
        Daemon::start("pool", directory.path(), &cache, std::slice::from_ref(&backing), &[]);
    let other = scratch();
    refuses(
        &serve(other.path(), Some(&cache), &[&backing]),
        REFUSED,
        &["cache.img", "in use", "ubcache stop"],
    );
    for (option, device) in [("-C", &cache), ("-B", &backing)] {
        let output = run(&["make", "--force", option, text(device)]);
        refuses(&output, REFUSED, &[text(device), "in use"]);
    }
    daemon.stop();
}

#[test]
fn inaccessible_path_is_reported_with_its_error() {
    let test = "inaccessible_path_is_reported_with_its_error";
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let nowhere = directory.path().join("nowhere/x.img");
    refuses(
        &run(&["show", text(&nowhere)]),
        COULD_NOT_RUN,
        &["x.img", "can't open", "check the path"],
    );
    refuses(&run(&["make", "-C", text(&nowhere)]), COULD_NOT_RUN, &["x.img", "can't open"]);
    refuses(
        &run(&["make", "--size", "1g", "-B", text(&nowhere)]),
        COULD_NOT_RUN,
        &["x.img", "can't create"],
    );
    refuses(
        &serve(directory.path(), Some(&nowhere), &[&backing]),
        COULD_NOT_RUN,
        &["x.img", "can't open"],
    );
    refuses(
        &run(&["show", text(directory.path())]),
        COULD_NOT_RUN,
        &["a directory", "a regular file or a block"],
    );
    refuses(&run(&["show", "/dev/null"]), COULD_NOT_RUN, &["/dev/null", "a character device"]);
    let output = run(&["status", "--control", text(&nowhere)]);
    refuses(&output, NO_DAEMON, &["x.img", "control socket", "ubcache serve"]);
    let output = run(&["stop", "--control", text(&nowhere)]);
    refuses(&output, NO_DAEMON, &["x.img", "control socket", "ubcache serve"]);

    // Modes mean nothing to root with all capabilities: without them they do.
    let mut permissions = std::fs::metadata(&backing).expect("a file").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o400);
    std::fs::set_permissions(&backing, permissions).expect("an own file");
    let is_root = must(tool("id").arg("-u")).trim() == "0";
    let mut command = if is_root { tool("setpriv") } else { tool("env") };
    if is_root {
        command.arg("--bounding-set=-dac_override,-dac_read_search").arg("--");
    }
    command
        .arg(env!("CARGO_BIN_EXE_ubcache"))
        .args(["serve", "-C"])
        .arg(&cache)
        .arg("-B")
        .arg(&backing);
    command.arg("--control").arg(directory.path().join("c"));
    let output = command.output().expect("a command");
    if String::from_utf8_lossy(&output.stderr).contains("setpriv") {
        skipped(test, "the part with file modes: no setpriv, or not allowed");
        return;
    }
    refuses(&output, COULD_NOT_RUN, &["disk0.img", "denied", "reading and writing"]);
}

/// The journal of a cache that was killed in the middle of its work.
fn entries(cache: &Path, geometry: &Geometry) -> Vec<(u64, JournalSeq, JournalSeq)> {
    let mut file = std::fs::File::open(cache).expect("a cache");
    let mut all = Vec::new();
    for index in 0..geometry.journal_buckets {
        let start = geometry.bucket_start(geometry.journal_bucket(index)).bytes();
        let mut bytes = vec![0; geometry.bucket_bytes() as usize];
        file.seek(SeekFrom::Start(start)).expect("a cache");
        file.read_exact(&mut bytes).expect("a journal bucket");
        for (at, entry) in scan_bucket(geometry, &bytes) {
            all.push((start + u64::from(at), entry.seq, entry.last_seq));
        }
    }
    all.sort_by_key(|(_, seq, _)| *seq);
    all
}

#[test]
fn journal_with_a_damaged_entry_is_refused() {
    let directory = scratch();
    let (cache, backing) = a_set(directory.path());
    let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
    let daemon =
        Daemon::start("pool", directory.path(), &cache, std::slice::from_ref(&backing), &settings);
    let mut client = daemon.client("disk0.img");
    for number in 0..80_u8 {
        client.write(u64::from(number) * 4096, &[number; 4096], true).expect("a write");
    }
    daemon.kill();
    let geometry =
        Superblock::parse(&superblock_bytes(&cache)).expect("a good superblock").geometry();
    let entries = entries(&cache, &geometry);
    let &(newest_at, newest, last) = entries.last().expect("a journal with entries");
    let bucket = |at: u64| at / geometry.bucket_bytes();
    // Damage at the end of the log looks like a torn write; so take an entry with a newer one in
    // another bucket.
    let &(at, seq, _) = entries
        .iter()
        .rfind(|(at, seq, _)| *seq >= last && bucket(*at) != bucket(newest_at))
        .unwrap_or_else(|| panic!("the journal spans two buckets: {entries:?}, newest {newest}"));
    write_at(&cache, at + 100, &[0xee; 64]);
    let before = (sha256_of(&cache), sha256_of(&backing));
    let output = serve(directory.path(), Some(&cache), &[&backing]);
    refuses(&output, REFUSED, &["cache.img", "journal", &seq.to_string(), "nothing was changed"]);
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before, "refused devices are not changed");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [&["frobnicate"][..], &[], &["serve", "--nbd", "udp:1"], &["make", "--bucket"]]
    {
        let output = ubcache().args(arguments).output().expect("ubcache runs");
        assert_eq!(output.status.code(), Some(COULD_NOT_RUN), "{arguments:?}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout);
    for word in ["Exit codes", "UBCACHE_IO", "make", "serve", "status", "stop", "demo"] {
        assert!(help.contains(word), "--help says nothing of {word}");
    }
}
