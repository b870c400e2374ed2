//! Random requests of every kind and size against a model, in a cache much too small for them,
//! while modes and attributes change; over clean restarts. Nothing crashes here, so every read has
//! exactly one right answer.

#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::{Daemon, each_io, make_set_sized, pseudo_random};
use ubcache_cli::nbd_client::Client;

const CLIENTS: u64 = 3;
const REGION: u64 = 8 << 20;
const SECTOR: u64 = 512;
const LONGEST: u64 = 512;
const ROUNDS: u64 = 3;

/// Expected content of a client's region.
struct Region {
    start: u64,
    model: Vec<u8>,
    random: u64,
}

impl Region {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// A range of sectors: mostly short, sometimes long, often where others were.
    fn range(&mut self) -> (u64, usize) {
        let sectors = match self.random(8) {
            0 => 1 + self.random(LONGEST),
            1..=3 => 8 * (1 + self.random(16)),
            _ => 1 + self.random(16),
        };
        let places = REGION / SECTOR - sectors;
        let at = match self.random(3) {
            0 => self.random(places),
            1 => self.random(places.min(2048)),
            _ => self.random(places) / 8 * 8,
        };
        (at * SECTOR, (sectors * SECTOR) as usize)
    }

    fn compare(&self, at: u64, found: &[u8], what: &str) {
        let expected = &self.model[at as usize..at as usize + found.len()];
        if let Some(index) =
            found.iter().zip(expected).position(|(found, expected)| found != expected)
        {
            let place = self.start + at + index as u64;
            panic!("{what}: byte {place} is {:#x}, expected {:#x}", found[index], expected[index]);
        }
    }

    fn work(&mut self, client: &mut Client, stop: &AtomicBool) {
        let mut buffer = vec![0; (LONGEST * SECTOR) as usize];
        while !stop.load(Ordering::Relaxed) {
            let (at, length) = self.range();
            let place = self.start + at;
            let part = at as usize..at as usize + length;
            let kind = self.random(20);
            match kind {
                0..=8 => {
                    client.read(place, &mut buffer[..length]).expect("a read");
                    self.compare(at, &buffer[..length], "a read");
                }
                9..=15 => {
                    let seed = self.random(1 << 30);
                    pseudo_random(seed, &mut buffer[..length]);
                    client.write(place, &buffer[..length], kind == 9).expect("a write");
                    self.model[part].copy_from_slice(&buffer[..length]);
                }
                16 | 17 => {
                    client.write_zeroes(place, length as u32).expect("zeroes");
                    self.model[part].fill(0);
                }
                18 => {
                    // A trimmed range may read as anything: it is written again.
                    client.trim(place, length as u32).expect("a trim");
                    client.write(place, &self.model[part], false).expect("a write");
                }
                _ => client.flush().expect("a flush"),
            }
        }
    }
}

#[test]
fn random_requests_agree_with_a_model() {
    each_io("random_requests_agree_with_a_model", |io, directory| {
        let options = ["--bucket", "8k", "--block", "512"];
        let (cache, backings) = make_set_sized(directory, 6, &[32], &options);
        let regions: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (start, random) = (number * REGION, number * 7 + 3);
                Mutex::new(Region { start, model: vec![0; REGION as usize], random })
            })
            .collect();
        let changes = [
            "cache_mode=writeback",
            "sequential_cutoff=64k",
            "cache_mode=writearound",
            "writeback_percent=0",
            "cache_mode=writethrough",
            "sequential_cutoff=0",
            "cache_mode=writeback",
            "writeback_percent=20",
            "cache_mode=none",
        ];
        for round in 0..ROUNDS {
            let daemon =
                Daemon::start(io, directory, &cache, &backings, &["--set", "writeback_delay=0"]);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for region in &regions {
                    let (daemon, stop) = (&daemon, &stop);
                    scope.spawn(move || {
                        let mut region = region.lock().expect("no panic");
                        let mut client = daemon.client("disk0.img");
                        let mut found = vec![0; REGION as usize];
                        client.read(region.start, &mut found).expect("a read of everything");
                        region.compare(0, &found, &format!("at the start of round {round}"));
                        // A panic in here must end the others as well.
                        region.work(&mut client, stop);
                    });
                }
                let end = Instant::now() + Duration::from_secs(3);
                for change in changes.iter().cycle() {
                    if Instant::now() >= end {
                        break;
                    }
                    daemon.set(change);
                    std::thread::sleep(Duration::from_millis(120));
                }
                stop.store(true, Ordering::Relaxed);
            });
            daemon.stop();
        }
    });
}
