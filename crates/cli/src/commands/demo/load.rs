//! The load of the demo: several clients, each with blocks of its own and a record of their
//! content.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::open::target::{Access, Target};

use super::child::EXPORT;
use crate::nbd_client::Client;

/// A block, the unit of the load.
const BLOCK: usize = 4096;
/// Clients at the same time.
const CLIENTS: usize = 8;
/// Blocks that are used again and again: 32 MiB.
const BLOCKS: usize = 8 << 10;
/// A part of the disk that is read once, from one end to the other: 64 MiB behind the blocks.
const SCAN_BYTES: u64 = 64 << 20;
const SCAN_STEP: usize = 1 << 20;
/// Offset of the data on the backing file, in bytes.
const DATA_AT: u64 = 8192;

/// Work of the clients.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Random reads for a while.
    Reads,
    /// Random reads and writes for a while.
    Mixed,
    /// Every block once, so that it is in the cache afterwards.
    Warm,
    /// One client reads a part of the disk that no other client reads.
    Scan,
    /// Every block once, compared.
    CheckAll,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Reads => "random reads",
            Work::Mixed => "random reads and writes",
            Work::Warm => "every block once, to warm the cache",
            Work::Scan => "one long sequential read",
            Work::CheckAll => "every block once, compared",
        }
    }

    fn is_timed(self) -> bool {
        matches!(self, Work::Reads | Work::Mixed)
    }
}

/// Result of a load.
#[derive(Copy, Clone, Debug)]
pub struct Measured {
    /// Requests that were answered.
    pub operations: u64,
    elapsed: Duration,
}

impl Measured {
    /// Requests a second.
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.per_second() * BLOCK as f64
    }

    /// Time that a client waited for a reply, on average.
    pub fn latency(&self) -> Duration {
        self.elapsed.mul_f64(CLIENTS as f64)
            / u32::try_from(self.operations.max(1)).unwrap_or(u32::MAX)
    }
}

/// The versions of all blocks, by client.
pub struct Disk {
    versions: Vec<Mutex<Vec<u32>>>,
}

impl Disk {
    /// Gives every block its first content, on the backing file itself.
    pub fn prepare(path: &Path) -> Result<Disk, Failure> {
        let target = Target::open(path, Access::Change)?;
        let mut piece = vec![0; 256 * BLOCK];
        for first in (0..BLOCKS).step_by(256) {
            for (index, block) in piece.chunks_mut(BLOCK).enumerate() {
                content(first + index, 1, block);
            }
            target.write(DATA_AT + (first * BLOCK) as u64, &piece)?;
        }
        target.sync()?;
        Ok(Disk { versions: (0..CLIENTS).map(|_| Mutex::new(vec![1; BLOCKS / CLIENTS])).collect() })
    }

    /// Runs all clients until the work is done, or until `span` is over if the work has no end.
    pub fn run(&self, socket: &Path, work: Work, span: Duration) -> Result<Measured, Failure> {
        let done = AtomicU64::new(0);
        let begin = Instant::now();
        let bar = progress(work, span);
        let results: Vec<std::io::Result<()>> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .filter(|client| work != Work::Scan || *client == 0)
                .map(|client| {
                    let done = &done;
                    scope.spawn(move || self.client(socket, client, work, begin + span, done))
                })
                .collect();
            while clients.iter().any(|client| !client.is_finished()) {
                let at = if work.is_timed() {
                    begin.elapsed().as_millis() as u64
                } else {
                    done.load(Ordering::Relaxed)
                };
                bar.set_position(at);
                std::thread::sleep(Duration::from_millis(20));
            }
            clients
                .into_iter()
                .map(|client| client.join().unwrap_or_else(|_| Err(panicked())))
                .collect()
        });
        bar.finish_and_clear();
        let measured = Measured { operations: done.into_inner(), elapsed: begin.elapsed() };
        match results.into_iter().find_map(Result::err) {
            None => Ok(measured),
            Some(error) => {
                Err(Failure::refused_because("demo", format_args!("{}: {error}", work.name())))
            }
        }
    }

    fn client(
        &self,
        socket: &Path,
        number: usize,
        work: Work,
        end: Instant,
        done: &AtomicU64,
    ) -> std::io::Result<()> {
        let mut client = Client::connect(socket, EXPORT)?;
        let mut versions = self.versions[number].lock().map_err(|_| panicked())?;
        let mut random = number as u64 + 1;
        let (mut found, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
        if work == Work::Scan {
            let mut piece = vec![0; SCAN_STEP];
            for at in (0..SCAN_BYTES).step_by(SCAN_STEP) {
                client.read((BLOCKS * BLOCK) as u64 + at, &mut piece)?;
                done.fetch_add((SCAN_STEP / BLOCK) as u64, Ordering::Relaxed);
            }
            return client.disconnect();
        }
        for turn in 0.. {
            if work.is_timed() && Instant::now() >= end
                || !work.is_timed() && turn == versions.len()
            {
                break;
            }
            random = next_random(random);
            let own = if work.is_timed() { (random >> 16) as usize % versions.len() } else { turn };
            let block = own * CLIENTS + number;
            let at = (block * BLOCK) as u64;
            if work == Work::Mixed && (random >> 8) % 10 < 3 {
                versions[own] += 1;
                content(block, versions[own], &mut expected);
                client.write(at, &expected, false)?;
            } else {
                client.read(at, &mut found)?;
                content(block, versions[own], &mut expected);
                if found != expected {
                    return Err(std::io::Error::other(format!(
                        "block {block} holds the wrong data"
                    )));
                }
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        client.flush()?;
        client.disconnect()
    }
}

fn progress(work: Work, span: Duration) -> ProgressBar {
    let length = match work {
        Work::Reads | Work::Mixed => span.as_millis() as u64,
        Work::Warm | Work::CheckAll => BLOCKS as u64,
        Work::Scan => SCAN_BYTES / BLOCK as u64,
    };
    let bar = ProgressBar::new(length);
    if bar.is_hidden() {
        println!("  {}", work.name());
    }
    if let Ok(style) = ProgressStyle::with_template("  {msg:36} {bar:30} {percent:>3}%") {
        bar.set_style(style);
    }
    bar.set_message(work.name());
    bar
}

fn panicked() -> std::io::Error {
    std::io::Error::other("a client of the demo panicked")
}

fn next_random(state: u64) -> u64 {
    let mut state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// Fills a block with its content at a version.
fn content(block: usize, version: u32, into: &mut [u8]) {
    let mut state = next_random((block as u64) << 32 | u64::from(version));
    for word in into.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}
