//! `make --adopt`, `serve` of an adopted disk, and `release`, killed at each step that changes
//! something: the same command finishes afterwards, and the disk is what it would be without
//! ubcache.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::file_system::{ext4_of, files};
use support::steps::{is_killed_at, killed_at};
use support::{
    Daemon, STAYS_DIRTY, have, must, names_in, scratch, serve_command, sha256_of, tool, ubcache,
};

const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 16;
const FILES: u64 = 4;
/// Programs that every test needs.
const PROGRAMS: [&str; 4] = ["strace", "mkfs.ext4", "e2fsck", "debugfs"];

/// An ext4 with files on a disk, and a place for a cache.
struct World {
    directory: tempfile::TempDir,
    /// Content of the disk as it should be.
    expected: Vec<u8>,
}

impl World {
    fn new() -> World {
        let directory = scratch();
        let disk = directory.path().join("disk.img");
        let bytes = DISK_MIB * MIB;
        ext4_of(&files(directory.path(), FILES, MIB / 2), &disk, bytes, bytes);
        let expected = std::fs::read(&disk).expect("the disk");
        World { directory, expected }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", self.path("headers")).env("UBCACHE_IO", "pool");
        ubcache.arg(command);
        ubcache
    }

    fn make(&self) -> Command {
        let mut make = self.ubcache("make");
        make.args(["--size", "40M", "--bucket", "64k", "--label", "data"]);
        make.arg("-C").arg(self.path("cache.img")).arg("--adopt").arg(self.path("disk.img"));
        make
    }

    fn release(&self) -> Command {
        let mut release = self.ubcache("release");
        release.arg(self.path("disk.img")).arg("-C").arg(self.path("cache.img"));
        release
    }

    /// The daemon, at the n-th step of one of its threads killed if there is an `n`.
    fn serve(&self, n: Option<u64>, options: &[&str]) -> Result<Daemon, String> {
        let (cache, disks) = (self.path("cache.img"), [self.path("disk.img")]);
        let directory = self.directory.path();
        let (mut serve, socket, control, log) =
            serve_command("pool", directory, &cache, &disks, options);
        serve.env("UBCACHE_HEADERS", self.path("headers"));
        if let Some(n) = n {
            let traced = killed_at(n, &serve);
            serve = traced;
            let log = std::fs::OpenOptions::new().append(true).open(&log).expect("the log");
            serve.stdout(std::process::Stdio::piped()).stderr(log);
        }
        Daemon::try_start_command((serve, socket, control, log)).map_err(|(_, said)| said)
    }

    /// Files that a test begins with again and again.
    fn keep(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut names = vec![self.path("cache.img"), self.path("disk.img")];
        names.extend(names_in(&self.path("headers")).iter().map(|name| self.header(name)));
        names.into_iter().map(|name| (name.clone(), std::fs::read(name).expect("a file"))).collect()
    }

    fn restore(&self, kept: &[(PathBuf, Vec<u8>)]) {
        self.forget_headers();
        for (path, content) in kept {
            let file = std::fs::File::create(path).expect("a file");
            file.set_len(content.len() as u64).expect("a size");
            let parts = (0..).step_by(65_536).zip(content.chunks(65_536));
            for (at, part) in parts.filter(|(_, part)| part.iter().any(|byte| *byte != 0)) {
                file.write_all_at(part, at).expect("room");
            }
        }
    }

    fn header(&self, name: &str) -> PathBuf {
        self.path("headers").join(name)
    }

    fn forget_headers(&self) {
        let headers = self.path("headers");
        for name in names_in(&headers) {
            std::fs::remove_file(self.header(&name)).expect("it goes");
        }
    }

    /// Number of headers; what a killed command began to write is none.
    fn headers(&self) -> usize {
        names_in(&self.path("headers")).iter().filter(|name| name.ends_with(".header")).count()
    }

    /// The disk is byte for byte the expected one.
    fn check_disk(&self, when: &str) {
        let disk = std::fs::read(self.path("disk.img")).expect("the disk");
        assert!(disk == self.expected, "{when}: other bytes");
    }

    /// Its file system is whole, with every file.
    fn check_files(&self) {
        let disk = self.path("disk.img");
        must(tool("e2fsck").arg("-fn").arg(&disk));
        for number in 0..FILES {
            let out = self.path("out");
            let dump = format!("dump file{number} {}", out.display());
            must(tool("debugfs").args(["-R", &dump]).arg(&disk));
            let original = self.path("files").join(format!("file{number}"));
            assert_eq!(sha256_of(&out), sha256_of(&original), "file{number}");
        }
    }
}

/// A later step, not always the next one: UBCACHE_TEST_KILLS asks for all.
fn later(n: u64) -> u64 {
    if std::env::var_os("UBCACHE_TEST_KILLS").is_some() { n + 1 } else { n + 1 + n / 10 }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_adoption_that_is_killed_at_any_step_is_finished_by_the_same_command() {
    if !have("an_adoption_that_is_killed_at_any_step", &PROGRAMS) {
        return;
    }
    let world = World::new();
    let mut n = 1;
    while is_killed_at(n, &world.make()) {
        let when = format!("make, step {n}");
        assert!(std::fs::read(world.path("disk.img")).expect("it") == world.expected, "{when}");
        must(&mut world.make());
        assert_eq!(world.headers(), 1, "{when}");
        if n % 4 == 1 {
            let served = world.serve(None, &STAYS_DIRTY);
            let served = served.unwrap_or_else(|said| panic!("{when}: {said}"));
            let mut block = vec![0; 4096];
            served.client("data").read(0, &mut block).expect("a read");
            assert!(block == world.expected[..4096], "{when}");
            served.stop();
        }
        must(&mut world.release());
        assert_eq!(world.headers(), 0, "{when}");
        world.check_disk(&when);
        world.forget_headers();
        std::fs::remove_file(world.path("cache.img")).expect("the cache");
        n = later(n);
    }
    world.check_files();
    println!("make --adopt: it has {} steps at most", n - 1);
    assert!(n > 8, "it has more steps than {n}");
}

#[test]
fn a_release_that_is_killed_at_any_step_is_finished_by_the_same_command() {
    if !have("a_release_that_is_killed_at_any_step", &PROGRAMS) {
        return;
    }
    let mut world = World::new();
    must(&mut world.make());
    let served = world.serve(None, &STAYS_DIRTY).expect("it starts");
    // Free blocks of the file system, and its last bytes.
    for at in [12 * MIB, DISK_MIB * MIB - 8192] {
        served.client("data").write(at, &[7; 8192], true).expect("a write");
        world.expected[at as usize..at as usize + 8192].fill(7);
    }
    assert!(served.number(0, "/dirty_bytes") >= 16_384);
    served.stop();
    let kept = world.keep();
    let mut n = 1;
    while is_killed_at(n, &world.release()) {
        let when = format!("release, step {n}");
        let is_done = world.headers() == 0;
        let again = world.release().output().expect("it runs");
        let nothing = said(&again).contains("nothing to release");
        assert!(again.status.success() || is_done && nothing, "{when}: {}", said(&again));
        assert_eq!(world.headers(), 0, "{when}");
        world.check_disk(&when);
        world.restore(&kept);
        n += 1;
    }
    println!("release: killed at {} steps", n - 1);
    assert!(n > 8, "it has more steps than {n}");
    world.check_disk("release without a kill");
    world.check_files();
}

#[test]
fn serving_an_adopted_disk_can_be_killed_at_any_step() {
    if !have("serving_an_adopted_disk_can_be_killed_at_any_step", &PROGRAMS) {
        return;
    }
    let mut world = World::new();
    must(&mut world.make());
    let at = 12 * MIB;
    let (mut n, mut kills) = (1, 0);
    loop {
        let value = (n % 250) as u8 + 1;
        let mut answered = false;
        let mut ended_well = false;
        let mode: &[&str] =
            if n % 2 == 0 { &STAYS_DIRTY } else { &["--set", "sequential_cutoff=0"] };
        if let Ok(served) = world.serve(Some(n), mode) {
            answered = write_block(&served, at, value);
            let stop = world.ubcache("stop").arg("--control").arg(&served.control).output();
            stop.expect("it runs");
            ended_well = served.wait_for_status().success();
        }
        let served = world.serve(None, &STAYS_DIRTY);
        let served = served.unwrap_or_else(|said| panic!("step {n}: {said}"));
        let mut block = vec![0; 4096];
        served.client("data").read(at, &mut block).expect("a read");
        let before = world.expected[at as usize];
        assert!(block[0] == value || !answered && block[0] == before, "step {n}: {}", block[0]);
        assert!(block.iter().all(|byte| *byte == block[0]), "step {n}: a mixture");
        world.expected[at as usize..at as usize + 4096].copy_from_slice(&block);
        served.stop();
        if ended_well {
            break;
        }
        kills += 1;
        n += 1 + n / 4;
    }
    println!("serve: killed {kills} times, last at step {n}");
    assert!(kills > 8, "it has more steps");
    must(&mut world.release());
    world.check_disk("after all kills");
    world.check_files();
}

/// Writes a block durably; true if that was answered. The daemon may die meanwhile.
fn write_block(served: &Daemon, at: u64, value: u8) -> bool {
    let connected = ubcache_cli::nbd_client::Client::connect(Path::new(&served.socket), "data");
    connected.is_ok_and(|mut client| client.write(at, &[value; 4096], true).is_ok())
}
