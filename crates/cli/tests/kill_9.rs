//! `kill -9` of the daemon at random moments under load: what was answered is there after the
//! restart, flushed or not, as the kept memory outlives the process (V3).
//!
//! Several clients write 4 KiB blocks at random places of a region of their own, every sector
//! marked with its number and a version that grows, and flush now and then. After the kill every
//! sector has to hold a version that is not older than what was answered, and not newer than what
//! was ever sent.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Daemon, each_io, kills, make_set_sized, pseudo_random, serve_command};
use ubcache_cli::nbd_client::Client;

/// Kills of each test over each way of doing I/O, if no more are asked for.
const KILLS: u64 = 8;
const CLIENTS: u64 = 3;
const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const BLOCKS: u64 = 1024;

/// A client's record of its region.
struct Region {
    first: u64,
    /// Version of every block that was answered, flushed or not.
    answered: Vec<u64>,
    /// Newest version of every block that was ever sent.
    sent: Vec<u64>,
    version: u64,
    random: u64,
    flushes: u64,
}

impl Region {
    fn new(number: u64) -> Region {
        let zeroes = vec![0; BLOCKS as usize];
        Region {
            first: number * BLOCKS,
            answered: zeroes.clone(),
            sent: zeroes,
            version: 0,
            random: number + 77,
            flushes: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// Writes and flushes until the connection breaks.
    fn load(&mut self, mut client: Client, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let count = 1 + self.random(4);
            let block = self.random(BLOCKS - count);
            self.version += 1;
            let version = self.version;
            let fua = self.random(8) == 0;
            let mut data = vec![0; BLOCK * count as usize];
            for index in 0..count {
                self.sent[(block + index) as usize] = version;
                let at = index as usize * BLOCK;
                mark(self.first + block + index, version, &mut data[at..at + BLOCK]);
            }
            if client.write((self.first + block) * BLOCK as u64, &data, fua).is_err() {
                return;
            }
            for index in block as usize..(block + count) as usize {
                self.answered[index] = version;
            }
            if self.random(6) == 0 {
                if client.flush().is_err() {
                    return;
                }
                self.flushes += 1;
            }
        }
    }

    /// Reads everything and compares. From now on no older version may be read.
    fn check(&mut self, client: &mut Client, kill: u64) {
        let mut data = vec![0; BLOCK];
        for block in 0..BLOCKS {
            client
                .read((self.first + block) * BLOCK as u64, &mut data)
                .expect("a read after the restart");
            let (answered, sent) = (self.answered[block as usize], self.sent[block as usize]);
            let mut expected = vec![0; BLOCK];
            let mut oldest = u64::MAX;
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                let version = u64::from_le_bytes(sector[8..16].try_into().expect("eight bytes"));
                mark(self.first + block, version, &mut expected);
                let at = index * SECTOR;
                assert!(
                    sector == &expected[at..at + SECTOR],
                    "kill {kill}: sector {index} of block {} holds something else",
                    self.first + block
                );
                assert!(
                    (answered..=sent).contains(&version),
                    "kill {kill}: sector {index} of block {} has version {version}, answered was \
                     {answered}, sent {sent}",
                    self.first + block
                );
                oldest = oldest.min(version);
            }
            self.answered[block as usize] = oldest;
        }
    }
}

/// Fills a block: every sector has its place and its version. Version 0 is all zeroes.
fn mark(block: u64, version: u64, into: &mut [u8]) {
    into.fill(0);
    if version == 0 {
        return;
    }
    for (index, sector) in into.chunks_mut(SECTOR).enumerate() {
        pseudo_random(block << 32 ^ version << 3 ^ index as u64, sector);
        sector[..8].copy_from_slice(&(block * 8 + index as u64).to_le_bytes());
        sector[8..16].copy_from_slice(&version.to_le_bytes());
    }
}

/// Loads all regions, each from a client of its own, and kills the daemon after a while.
fn load_and_kill(daemon: Daemon, regions: &[Mutex<Region>], after: Duration) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for region in regions {
            let (stop, client) = (&stop, daemon.client("disk0.img"));
            scope.spawn(move || region.lock().expect("no panic").load(client, stop));
        }
        std::thread::sleep(after);
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
    });
}

fn survive(test: &str, cache_mib: u64, bucket: &str) {
    let kills = kills(KILLS);
    each_io(test, |io, directory| {
        let (cache, backings) =
            make_set_sized(directory, cache_mib, &[64], &["--writeback", "--bucket", bucket]);
        let regions: Vec<_> = (0..CLIENTS).map(|number| Mutex::new(Region::new(number))).collect();
        let modes = ["writeback", "writethrough", "writeback", "writearound"];
        for kill in 0..kills {
            let mode = modes[kill as usize % modes.len()];
            let settings = [
                "--mode",
                mode,
                "--set",
                "writeback_delay=0",
                "--set",
                "journal_delay_ms=20",
                "--set",
                "sequential_cutoff=0",
            ];
            let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
            let mut client = daemon.client("disk0.img");
            for region in &regions {
                region.lock().expect("no panic").check(&mut client, kill);
            }
            // Moments from just after the start to well into the load.
            load_and_kill(daemon, &regions, Duration::from_millis(20 + kill * 37 % 400));
        }
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut client = daemon.client("disk0.img");
        let mut flushes = 0;
        for region in &regions {
            let mut region = region.lock().expect("no panic");
            region.check(&mut client, kills);
            flushes += region.flushes;
        }
        assert!(flushes > kills, "the load flushes, or the test tests nothing: {flushes} flushes");
        client.disconnect().expect("a connection");
        daemon.stop();
    });
}

#[test]
fn everything_answered_survives_kill_9() {
    survive("everything_answered_survives_kill_9", 64, "64k");
}

#[test]
fn everything_answered_survives_kill_9_in_a_full_cache() {
    // 12 MiB of data in 6 MiB of cache: buckets are reused, the journal is small and goes round.
    survive("everything_answered_survives_kill_9_in_a_full_cache", 6, "8k");
}

/// A start that is killed leaves the set no worse than it was, however often.
#[test]
fn kills_during_the_start_lose_nothing() {
    each_io("kills_during_the_start_lose_nothing", |io, directory| {
        let (cache, backings) =
            make_set_sized(directory, 6, &[64], &["--writeback", "--bucket", "8k"]);
        let regions: Vec<_> = (0..CLIENTS).map(|number| Mutex::new(Region::new(number))).collect();
        for round in 0..KILLS {
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            let mut client = daemon.client("disk0.img");
            for region in &regions {
                region.lock().expect("no panic").check(&mut client, round);
            }
            load_and_kill(daemon, &regions, Duration::from_millis(200 + round * 31 % 200));
            for start in 0..8 {
                let mut command = serve_command(io, directory, &cache, &backings, &[]).0;
                let mut child = command.spawn().expect("ubcache runs");
                std::thread::sleep(Duration::from_millis(3 + (round * 7 + start * 5) % 40));
                child.kill().expect("a child can be killed");
                child.wait().expect("a child can be waited for");
            }
        }
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut client = daemon.client("disk0.img");
        for region in &regions {
            region.lock().expect("no panic").check(&mut client, KILLS);
        }
        daemon.stop();
    });
}
