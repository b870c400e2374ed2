//! Volumes that move to another disk while a client writes, reads, and compares (`ubcache move`).
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use support::{
    Daemon, Guard, NO_BYPASS, each_io, have, kills, make_set, must, pseudo_random, sparse, text,
    tool, ubcache,
};
use ubcache_cli::nbd_client::Client;
use ubcache_format::{MoveRole, RunNumber, SUPERBLOCK_BYTES, Superblock};

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;
/// The data of a volume that `ubcache make` made begins here.
const DATA_AT: u64 = 8 << 10;
const BLOCK: u64 = 16 << 10;
const BLOCKS: u64 = 1024;

/// The content that each block has; 0 is zeroes. Of the block that was being written when the
/// daemon died, either.
#[derive(Clone)]
struct Content {
    versions: Vec<u64>,
    either: Option<(u64, u64)>,
}

fn block(index: u64, version: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK as usize];
    if version > 0 {
        pseudo_random(index * 1_000_003 + version, &mut data);
    }
    data
}

impl Content {
    fn new() -> Content {
        Content { versions: vec![0; BLOCKS as usize], either: None }
    }

    /// A disk full of data, before anything serves it.
    fn on(disk: &Path) -> Content {
        let file = File::options().write(true).open(disk).expect("the disk");
        for index in 0..BLOCKS {
            file.write_all_at(&block(index, 1), DATA_AT + index * BLOCK).expect("a write");
        }
        Content { versions: vec![1; BLOCKS as usize], either: None }
    }

    fn is_right(&self, index: u64, data: &[u8]) -> bool {
        let other = self.either.filter(|(at, _)| *at == index);
        data == block(index, self.versions[index as usize])
            || other.is_some_and(|(_, version)| data == block(index, version))
    }

    fn compare(&self, mut read: impl FnMut(u64, &mut [u8])) {
        let mut data = vec![0; BLOCK as usize];
        for index in 0..BLOCKS {
            read(index * BLOCK, &mut data);
            assert!(self.is_right(index, &data), "block {index}");
        }
    }

    /// Keeps the version that a client has read of the block that was being written. The next
    /// death has a block of its own.
    fn settle(&mut self, mut read: impl FnMut(u64, &mut [u8])) {
        if let Some((index, version)) = self.either.take() {
            let mut data = vec![0; BLOCK as usize];
            read(index * BLOCK, &mut data);
            if data == block(index, version) {
                self.versions[index as usize] = version;
            }
        }
    }
}

/// A client that goes on writing and comparing until it is told to end, or the daemon dies.
struct Load {
    ends: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<Content>,
}

impl Load {
    fn start(daemon: &Daemon, content: Content, seed: u64) -> Load {
        let (ends, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = daemon.client("disk0.img");
        let thread = std::thread::spawn({
            let (ends, written) = (ends.clone(), written.clone());
            move || load(client, content, seed, (&ends, &written))
        });
        let load = Load { ends, written, thread };
        load.goes_on();
        load
    }

    /// Waits until it has written some more.
    fn goes_on(&self) {
        let before = self.written.load(Ordering::Relaxed);
        while self.written.load(Ordering::Relaxed) < before + 50 {
            assert!(!self.thread.is_finished(), "the client goes on");
            std::thread::yield_now();
        }
    }

    fn end(self) -> Content {
        self.ends.store(true, Ordering::Relaxed);
        self.died()
    }

    fn died(self) -> Content {
        self.thread.join().expect("the client found nothing wrong")
    }
}

fn load(
    mut client: Client,
    mut content: Content,
    seed: u64,
    (ends, written): (&AtomicBool, &AtomicU64),
) -> Content {
    let mut random = vec![0; 8];
    let mut data = vec![0; BLOCK as usize];
    for step in 1_u64.. {
        if ends.load(Ordering::Relaxed) {
            return content;
        }
        pseudo_random(seed << 32 | step, &mut random);
        let number = u64::from_le_bytes(random.clone().try_into().expect("eight bytes"));
        let (index, other) = (number % BLOCKS, number / BLOCKS % BLOCKS);
        let version = if number >> 60 == 0 { 0 } else { seed << 32 | step };
        let done = match version {
            0 => client.write_zeroes(index * BLOCK, BLOCK as u32).and_then(|()| client.flush()),
            _ => client.write(index * BLOCK, &block(index, version), true),
        };
        if done.is_err() {
            content.either = Some((index, version));
            return content;
        }
        content.versions[index as usize] = version;
        if content.either.is_some_and(|(at, _)| at == index) {
            content.either = None;
        }
        written.fetch_add(1, Ordering::Relaxed);
        if client.read(other * BLOCK, &mut data).is_err() {
            return content;
        }
        assert!(content.is_right(other, &data), "block {other} under load");
    }
    unreachable!("the loop has no end")
}

fn move_command(daemon: &Daemon, to: &Path, extra: &[&str]) -> Output {
    let mut command = ubcache();
    command.args(["move", "disk0.img"]).arg(to).args(extra).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

fn moved(daemon: &Daemon, to: &Path, extra: &[&str]) -> String {
    let output = move_command(daemon, to, extra);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(daemon: &Daemon, to: &Path, extra: &[&str]) -> String {
    let output = move_command(daemon, to, extra);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path_of(daemon: &Daemon) -> String {
    let status = daemon.status();
    status["sets"][0]["volumes"][0]["backing"]["path"].as_str().expect("a path").to_owned()
}

fn new_disk(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = directory.join(name);
    sparse(&path, bytes);
    path
}

fn options(mode: &str) -> Vec<&str> {
    [["--mode", mode].as_slice(), &NO_BYPASS].concat()
}

#[test]
fn a_volume_moves_to_another_file_under_load() {
    each_io("a_volume_moves_to_another_file_under_load", |io, directory| {
        for mode in ["writeback", "writethrough", "writearound"] {
            let directory = &directory.join(mode);
            std::fs::create_dir(directory).expect("a directory");
            let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
            let new = new_disk(directory, "new.img", DISK);
            let content = match mode {
                "writethrough" => Content::on(&disks[0]),
                _ => Content::new(),
            };
            let daemon = Daemon::start(io, directory, &cache, &disks, &options(mode));
            let load = Load::start(&daemon, content, 2);
            let said = moved(&daemon, &new, &[]);
            assert!(said.contains("the next start needs -B"), "{said}");
            load.goes_on();
            assert_eq!(path_of(&daemon), text(&new));
            let content = load.end();
            let (status, why) = {
                daemon.stop();
                let other = directory.join("other");
                std::fs::create_dir(&other).expect("a directory");
                Daemon::try_start(io, &other, &cache, &disks, &[]).err().expect("the old disk")
            };
            assert_eq!(status.code(), Some(1), "{why}");
            assert!(why.contains("its volume was moved to another disk"), "{why}");
            assert!(why.contains(text(&new)), "{why}");
            std::fs::remove_file(&disks[0]).expect("the old disk may go");

            let daemon = Daemon::start(io, directory, &cache, &named(&new), &options(mode));
            let mut client = daemon.client("disk0.img");
            content.compare(|at, data| client.read(at, data).expect("a read"));
            must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
            daemon.stop();
            let file = File::open(&new).expect("the new disk");
            content.compare(|at, data| file.read_exact_at(data, DATA_AT + at).expect("a read"));
        }
    });
}

/// A server of an empty disk in memory, which takes so many bits a second.
fn memory_server(directory: &Path, rate: &str) -> (Guard, PathBuf) {
    let socket = directory.join("memory.sock");
    let _ = std::fs::remove_file(&socket);
    let mut command = tool("nbdkit");
    command.args(["-f", "-U", text(&socket), "--filter=rate", "memory"]);
    command.args([&format!("size={DISK}"), &format!("rate={rate}")]);
    let mut guard = Guard(command.stdin(Stdio::null()).spawn().expect("the server runs"));
    while !socket.exists() {
        assert!(guard.0.try_wait().expect("a child can be waited for").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    (guard, format!("nbd+unix:///?socket={}", socket.display()).into())
}

fn named(disk: &Path) -> Vec<PathBuf> {
    vec![format!("disk0.img={}", text(disk)).into()]
}

#[test]
fn a_move_that_is_killed_leaves_one_disk_and_begins_again() {
    each_io("a_move_that_is_killed_leaves_one_disk_and_begins_again", |io, directory| {
        let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
        let (mut old, mut new) = (disks[0].clone(), new_disk(directory, "new.img", DISK));
        let mut content = Content::on(&old);
        for seed in 2..2 + kills(5) {
            let daemon = Daemon::start(io, directory, &cache, &named(&old), &options("writeback"));
            let load = Load::start(&daemon, content, seed);
            // One that was killed just after its switch leaves an older superblock.
            let said = moved(&daemon, &new, &["--no-wait", "--force"]);
            assert!(said.contains("moves to"), "{said}");
            std::thread::sleep(Duration::from_millis(seed * 13 % 60));
            daemon.kill();
            content = load.died();
            let started =
                Daemon::try_start(io, directory, &cache, &named(&old), &options("writeback"));
            let daemon = started.unwrap_or_else(|(_, why)| {
                // It had moved already.
                assert!(why.contains("moved to another disk") || why.contains("older"), "{why}");
                std::mem::swap(&mut old, &mut new);
                Daemon::start(io, directory, &cache, &named(&old), &options("writeback"))
            });
            let mut client = daemon.client("disk0.img");
            content.compare(|at, data| client.read(at, data).expect("a read"));
            content.settle(|at, data| client.read(at, data).expect("a read"));
            daemon.kill();
        }
        let daemon = Daemon::start(io, directory, &cache, &named(&old), &options("writeback"));
        let load = Load::start(&daemon, content, 99);
        moved(&daemon, &new, &["--force"]);
        assert!(moved(&daemon, &new, &[]).contains("already"));
        load.goes_on();
        let content = load.end();
        std::fs::remove_file(&old).expect("the old disk may go");
        let mut client = daemon.client("disk0.img");
        content.compare(|at, data| client.read(at, data).expect("a read"));
        daemon.stop();
    });
}

#[test]
fn a_volume_moves_to_a_server_under_load() {
    const TEST: &str = "a_volume_moves_to_a_server_under_load";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
        let (_server, new) = memory_server(directory, "8G");
        let content = Content::on(&disks[0]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &options("writeback"));
        let load = Load::start(&daemon, content, 2);
        moved(&daemon, &new, &[]);
        load.goes_on();
        assert_eq!(path_of(&daemon), text(&new));
        let content = load.end();
        must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
        daemon.stop();
        std::fs::remove_file(&disks[0]).expect("the old disk may go");
        let daemon = Daemon::start(io, directory, &cache, &named(&new), &options("writeback"));
        let mut client = daemon.client("disk0.img");
        content.compare(|at, data| client.read(at, data).expect("a read"));
        daemon.stop();
    });
}

#[test]
fn a_disk_that_can_not_take_a_volume_is_refused() {
    each_io("a_disk_that_can_not_take_a_volume_is_refused", |io, directory| {
        let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &options("writeback"));
        let said = refused(&daemon, &new_disk(directory, "small.img", DISK - 4096), &[]);
        assert!(said.contains("too small") && said.contains(&format!("{DISK} bytes")), "{said}");
        let said = moved(&daemon, &disks[0], &[]);
        assert!(said.contains("already"), "{said}");
        let said = refused(&daemon, &cache, &[]);
        assert!(said.contains("a device of this set"), "{said}");
        let said = refused(&daemon, &directory.join("nothing.img"), &[]);
        assert!(said.contains("truncate -s"), "{said}");

        let full = new_disk(directory, "full.img", DISK);
        let file = File::options().write(true).open(&full).expect("a file");
        file.write_all_at(&[0x53, 0xef], 1080).expect("the magic number of a file system");
        let said = refused(&daemon, &full, &[]);
        assert!(said.contains("ext4") && said.contains("--force"), "{said}");

        let mut client = daemon.client("disk0.img");
        client.write(0, &block(0, 7), true).expect("a write");
        moved(&daemon, &full, &["--force"]);
        let mut data = block(0, 0);
        client.read(0, &mut data).expect("a read");
        assert!(data == block(0, 7));
        daemon.stop();
    });
}

#[test]
fn a_cancelled_move_leaves_the_volume_where_it_is() {
    const TEST: &str = "a_cancelled_move_leaves_the_volume_where_it_is";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
        let (_server, slow) = memory_server(directory, "20M");
        let content = Content::on(&disks[0]);
        let daemon = Daemon::start(io, directory, &cache, &disks, &options("writethrough"));
        let load = Load::start(&daemon, content, 2);
        let cancel = || {
            let mut cancel = ubcache();
            cancel.args(["move", "disk0.img", "--cancel", "--control"]).arg(&daemon.control);
            cancel.output().expect("it runs")
        };
        let said = String::from_utf8_lossy(&cancel().stderr).into_owned();
        assert!(said.contains("is not being moved"), "{said}");
        moved(&daemon, &slow, &["--no-wait"]);
        let said = refused(&daemon, &new_disk(directory, "new.img", DISK), &[]);
        assert!(said.contains("is being moved to") && said.contains("--cancel"), "{said}");
        let said = String::from_utf8_lossy(&cancel().stdout).into_owned();
        assert!(said.contains("stays on"), "{said}");
        load.goes_on();
        assert_eq!(path_of(&daemon), text(&disks[0]));
        assert!(daemon.status()["sets"][0]["volumes"][0]["moving"].is_null());

        // A stop ends a move as well.
        moved(&daemon, &slow, &["--no-wait"]);
        let content = load.end();
        daemon.stop();
        let daemon = Daemon::start(io, directory, &cache, &disks, &options("writethrough"));
        let mut client = daemon.client("disk0.img");
        content.compare(|at, data| client.read(at, data).expect("a read"));
        daemon.stop();
    });
}

fn moving(daemon: &Daemon) -> serde_json::Value {
    daemon.status()["sets"][0]["volumes"][0]["moving"].clone()
}

/// Waits until so many bytes of a move need not be copied again after a crash.
fn has_kept(daemon: &Daemon, bytes: u64) {
    while moving(daemon)["kept_bytes"].as_u64().expect("a move") < bytes {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_move_that_was_interrupted_does_not_copy_everything_again() {
    const SIZE: u64 = 512 * MIB;
    // The first parts are holes; at the data the move waits, as slow as it is.
    const FULL: u64 = 300 * MIB;
    const COUNT: u64 = 20 * MIB / BLOCK;
    each_io("a_move_that_was_interrupted_does_not_copy_everything_again", |io, directory| {
        for end in ["kill", "stop", "cancel"] {
            let directory = &directory.join(end);
            std::fs::create_dir(directory).expect("a directory");
            let (cache, disks) = make_set(directory, &[SIZE / MIB], &[]);
            let new = new_disk(directory, "new.img", SIZE);
            let file = File::options().write(true).open(&disks[0]).expect("the disk");
            for index in 0..COUNT {
                let at = DATA_AT + FULL + index * BLOCK;
                file.write_all_at(&block(index, 1), at).expect("a write");
            }
            let daemon = Daemon::start(io, directory, &cache, &disks, &options("writethrough"));
            let said = moved(&daemon, &new, &["--no-wait", "--rate", "1k"]);
            assert!(said.contains("moves to"), "{said}");
            has_kept(&daemon, 250 * MIB);
            assert_eq!(moving(&daemon)["rate_bytes"], 1024);
            let mut client = daemon.client("disk0.img");
            client.write(5 * MIB, &block(5, 2), true).expect("a write to both");
            drop(client);
            let daemon = match end {
                "kill" => {
                    daemon.kill();
                    Daemon::start(
                        io,
                        directory,
                        &cache,
                        &named(&disks[0]),
                        &options("writethrough"),
                    )
                }
                "stop" => {
                    daemon.stop();
                    Daemon::start(
                        io,
                        directory,
                        &cache,
                        &named(&disks[0]),
                        &options("writethrough"),
                    )
                }
                _ => {
                    let mut cancel = ubcache();
                    cancel.args(["move", "disk0.img", "--cancel", "--control"]);
                    must(cancel.arg(&daemon.control));
                    daemon
                }
            };
            let mut client = daemon.client("disk0.img");
            client.write(7 * MIB, &block(7, 3), true).expect("a write to the old disk alone");
            moved(&daemon, &new, &["--no-wait", "--rate", "1k"]);
            let earlier = moving(&daemon)["earlier_bytes"].as_u64().expect("a move");
            assert!((240 * MIB..FULL + 20 * MIB).contains(&earlier), "{end}: {earlier}");
            let shown = must(ubcache().args(["status", "--control"]).arg(&daemon.control));
            assert!(shown.contains("at most 1k/s") || shown.contains("at most 1K/s"), "{shown}");
            moved(&daemon, &new, &["--rate", "0"]);
            assert_eq!(path_of(&daemon), text(&new));
            drop(client);
            daemon.stop();
            let file = File::open(&new).expect("the new disk");
            let mut data = vec![0; BLOCK as usize];
            let known = [(5 * MIB, block(5, 2)), (7 * MIB, block(7, 3)), (9 * MIB, block(0, 0))];
            let full = (0..COUNT).map(|index| (FULL + index * BLOCK, block(index, 1)));
            for (at, expected) in known.into_iter().chain(full) {
                file.read_exact_at(&mut data, DATA_AT + at).expect("a read");
                assert!(data == expected, "{end}: byte {at} of the volume");
            }
        }
    });
}

#[test]
fn a_disk_that_a_killed_move_left_is_overwritten_and_a_copy_of_the_old_one_is_not() {
    const TEST: &str =
        "a_disk_that_a_killed_move_left_is_overwritten_and_a_copy_of_the_old_one_is_not";
    each_io(TEST, |io, directory| {
        let (cache, disks) = make_set(directory, &[DISK / MIB], &[]);
        // Before the first start: a backup, of an older run.
        let backup = directory.join("backup.img");
        std::fs::copy(&disks[0], &backup).expect("a copy");
        let daemon = Daemon::start(io, directory, &cache, &disks, &options("writeback"));
        let said = refused(&daemon, &backup, &[]);
        assert!(said.contains("a bcache superblock") && said.contains("--force"), "{said}");

        // The new disk as a power cut leaves it when its superblock was written, and the cache does
        // not say yet that it counts.
        let left = directory.join("left.img");
        std::fs::copy(&disks[0], &left).expect("a copy");
        let file = File::options().read(true).write(true).open(&left).expect("the copy");
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut bytes, 4096).expect("a read");
        let mut superblock = Superblock::parse(&bytes).expect("a superblock");
        superblock.set_run(Some(RunNumber::after(superblock.run().number(), 7)));
        file.write_all_at(&superblock.encode(), 4096).expect("a write");
        let said = refused(&daemon, &left, &[]);
        assert!(said.contains("a bcache superblock"), "without the mark of a move: {said}");
        superblock.set_attempt(Some((MoveRole::Target, 5)));
        file.write_all_at(&superblock.encode(), 4096).expect("a write");
        let said = moved(&daemon, &left, &[]);
        assert!(said.contains("moved from"), "{said}");
        daemon.stop();
        let read = std::fs::read(&left).expect("the disk");
        let superblock = Superblock::parse(&read[4096..]).expect("a superblock");
        assert_eq!(superblock.attempt(MoveRole::Target), None, "it counts");
    });
}
