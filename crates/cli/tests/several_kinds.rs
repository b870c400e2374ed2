//! One cache for disks of several kinds: a file with a superblock, a disk that was adopted as it
//! is, an export of nbdkit, and a volume on an object store (moto), all of them under load.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::blocks::Blocks;
use support::moto::Moto;
use support::nbd_server::Server;
use support::volume_by_hand::volume_by_hand;
use support::{
    Daemon, NO_BYPASS, have, must, names_in, ring_works, scratch, serve_command, sparse, ubcache,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 32 * MIB;
/// Blocks of a load, from this byte of its volume on.
const START: u64 = 3 * MIB;
const BLOCKS: usize = 200;

/// A kind of disk: its export, its file if it ends in one, and the byte where its data begins.
struct Kind {
    export: &'static str,
    file: Option<&'static str>,
    data_at: u64,
}

static KINDS: [Kind; 4] = [
    Kind { export: "plain", file: Some("plain.img"), data_at: 8192 },
    Kind { export: "adopted", file: Some("adopted.img"), data_at: 0 },
    Kind { export: "remote", file: Some("remote.img"), data_at: 8192 },
    Kind { export: "stored", file: None, data_at: 8192 },
];

impl Kind {
    fn open(&self, directory: &Path) -> Option<File> {
        let path = directory.join(self.file?);
        Some(File::options().read(true).write(true).open(path).expect("a disk"))
    }

    /// Blocks of the load; on a disk that is a file they have data.
    fn blocks(&self, directory: &Path) -> Blocks {
        match self.open(directory) {
            None => Blocks::of_zeroes(START, BLOCKS),
            Some(disk) => Blocks::on_disk(&disk, self.data_at, START, BLOCKS),
        }
    }
}

/// A set with a disk of each kind.
struct Set<'a> {
    io: &'a str,
    directory: &'a Path,
    disks: [PathBuf; 4],
}

impl Set<'_> {
    fn cache(&self) -> PathBuf {
        self.directory.join("cache.img")
    }

    fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", self.directory.join("headers")).arg(command);
        ubcache
    }

    fn serve(&self) -> Daemon {
        let named = KINDS.iter().zip(&self.disks);
        let named = named.map(|(kind, disk)| format!("{}={}", kind.export, disk.display()).into());
        let named: Vec<PathBuf> = named.collect();
        let options = ["--mode", "writeback", "--set", "writeback_delay=1"];
        let options = [&options[..], &NO_BYPASS].concat();
        let (mut command, socket, control, log) =
            serve_command(self.io, self.directory, &self.cache(), &named, &options);
        command.env("UBCACHE_HEADERS", self.directory.join("headers"));
        Daemon::try_start_command((command, socket, control, log))
            .unwrap_or_else(|(_, said)| panic!("serve: {said}"))
    }
}

/// Loads all volumes at the same time, each with a client of its own, and kills the daemon.
fn load_and_kill(daemon: Daemon, blocks: [Blocks; 4]) -> [Blocks; 4] {
    let done = [const { AtomicU64::new(0) }; 4];
    let mut blocks = std::thread::scope(|scope| {
        let (mut kinds, mut counts) = (KINDS.iter(), done.iter());
        let clients = blocks.map(|mut blocks| {
            let kind = kinds.next().expect("a volume has a kind");
            let count = counts.next().expect("a volume has a count");
            let mut client = daemon.client(kind.export);
            scope.spawn(move || {
                while blocks.request(&mut client).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                blocks
            })
        });
        while done.iter().any(|count| count.load(Ordering::Relaxed) < 100) {
            assert!(clients.iter().all(|it| !it.is_finished()), "a client has ended: {done:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.kill();
        clients.map(|client| client.join().expect("a client that finds nothing wrong"))
    });
    blocks.iter_mut().for_each(Blocks::crashed);
    blocks
}

#[test]
fn disks_of_all_kinds_share_a_cache_under_load_and_after_a_kill() {
    const TEST: &str = "disks_of_all_kinds_share_a_cache_under_load_and_after_a_kill";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    // The way of doing I/O is no part of this, and the store in memory answers slowly.
    let io = if ring_works() { "ring" } else { "pool" };
    let scratch = scratch();
    let directory = scratch.path();
    let file = |name: &str| directory.join(name);
    for kind in &KINDS {
        kind.file.into_iter().for_each(|name| sparse(&file(name), DISK));
    }
    let blocks = KINDS.each_ref().map(|kind| kind.blocks(directory));
    let server = Server::file(directory, &file("remote.img"));
    let moto = Moto::start(directory);
    let stored = moto.uri("disk", "");
    let disks = [file("plain.img"), file("adopted.img"), server.uri(), stored];
    let set = Set { io, directory, disks };
    let mut make = set.ubcache("make");
    make.args(["--size", "96M", "--bucket", "64k", "-C"]).arg(set.cache());
    make.arg("-B").arg(&set.disks[0]).arg("-B").arg(&set.disks[2]);
    make.arg("-B").arg(moto.uri("disk", &format!("&size={DISK}&object=1M")));
    must(make.arg("--adopt").arg(&set.disks[1]));

    let mut blocks = load_and_kill(set.serve(), blocks);
    let daemon = set.serve();
    for (kind, blocks) in KINDS.iter().zip(&mut blocks) {
        blocks.settle(&mut daemon.client(kind.export));
    }
    let volumes = daemon.status()["sets"][0]["volumes"].clone();
    let found: Vec<&str> =
        volumes.as_array().expect("volumes").iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(found, KINDS.each_ref().map(|kind| kind.export), "{volumes}");
    daemon.stop();

    // Each goes its own way with all of its data.
    must(set.ubcache("release").arg(&set.disks[1]).arg("-C").arg(set.cache()));
    assert!(names_in(&directory.join("headers")).is_empty(), "the header is gone");
    for disk in [&set.disks[0], &set.disks[2], &set.disks[3]] {
        let mut recover = set.ubcache("recover");
        must(recover.arg("--detach").arg("-C").arg(set.cache()).arg("-B").arg(disk));
    }
    for (kind, blocks) in KINDS.iter().zip(&blocks) {
        match kind.open(directory) {
            Some(disk) => blocks.compare_disk(&disk, kind.data_at),
            None => {
                let volume = volume_by_hand(&moto, "disk");
                blocks.compare(|at, found| {
                    let at = (kind.data_at + at) as usize;
                    found.copy_from_slice(&volume[at..at + found.len()]);
                });
            }
        }
    }
    drop(server);
}
