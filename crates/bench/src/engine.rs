//! Loads for the engine in a null world, and what they cost: processor time, allocations, memory.

use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use serde_json::{Value, json};
use ubcache_engine::{DeviceCounters, EngineError, SetOptions};
use ubcache_env::{Env, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, SECTOR_BYTES};
use ubcache_ublk::{QueueOptions, serve_queue};

use crate::BLOCK_BYTES;
use crate::allocations::Allocations;
use crate::cpu_time;
use crate::null::device::client_data;
use crate::null::rig::{REQUEST_TIME, REQUESTS_PER_TURN};
use crate::null::{BUCKET_SECTORS, NullDriver, Rig, Shape};
use crate::random::Random;

const GIB: u64 = 1 << 30;
/// Part of the volume that [`Load::HotHit`] reads.
const HOT_BYTES: u64 = 16 << 20;
/// A set has to have at least 513 buckets.
const CACHE_BYTES_MIN: u64 = 320 << 20;

/// Requests to the engine, 4 KiB at a time, at random places.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Load {
    /// Reads of a working set that is in the cache as a whole.
    Hit,
    /// The same of a part of 16 MiB, whose metadata fits the processor's caches.
    HotHit,
    /// [`Load::Hit`] through the server of a block device of ublk.
    UblkHit,
    /// Writes in writeback mode over the working set; nothing is written back.
    Write,
    /// The same in bursts of a quarter of the working set, each followed by writing back
    /// everything.
    WriteClean,
    /// Writes in writethrough mode over the working set, which leave a copy in the cache; the
    /// client never flushes.
    WriteThrough,
    /// Reads of data outside a full cache: each leaves a copy, for which another is evicted.
    Miss,
}

impl Load {
    /// All of them.
    pub const ALL: &[Load] = &[
        Load::Hit,
        Load::HotHit,
        Load::UblkHit,
        Load::Write,
        Load::WriteClean,
        Load::WriteThrough,
        Load::Miss,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Load::Hit => "hit",
            Load::HotHit => "hot-hit",
            Load::UblkHit => "ublk-hit",
            Load::Write => "write",
            Load::WriteClean => "write-clean",
            Load::WriteThrough => "write-through",
            Load::Miss => "miss",
        }
    }

    fn is_hit(self) -> bool {
        matches!(self, Load::Hit | Load::HotHit | Load::UblkHit)
    }

    fn is_write(self) -> bool {
        self.is_writeback() || self == Load::WriteThrough
    }

    fn is_writeback(self) -> bool {
        matches!(self, Load::Write | Load::WriteClean)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Load {
    type Err = String;
    fn from_str(text: &str) -> Result<Load, String> {
        let found = Load::ALL.iter().find(|load| load.name() == text).copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = Load::ALL.iter().map(|load| load.name()).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// Cost of a load, by request.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The load.
    pub load: Load,
    /// Requests measured.
    pub requests: u64,
    /// Bytes that the requests went to.
    pub working_set_bytes: u64,
    /// Processor time in nanoseconds: the median over slices of the run.
    pub nanos: f64,
    /// Processor time of the cheapest slice: closest to that on an idle machine.
    pub nanos_best: f64,
    /// Number of allocations.
    pub allocations: f64,
    /// Bytes allocated.
    pub allocated_bytes: f64,
    /// Counters of the cache device.
    pub cache: DeviceCounters,
    /// Counters of the backing device.
    pub backing: DeviceCounters,
}

impl Cost {
    /// The cost in JSON, all numbers by request.
    pub fn json(&self) -> Value {
        let each = |number: u64| number as f64 / self.requests as f64;
        let device = |counters: &DeviceCounters| {
            json!({
                "reads": each(counters.reads),
                "read_bytes": each(counters.read_bytes),
                "writes": each(counters.writes),
                "written_bytes": each(counters.written_bytes),
                "flushes": each(counters.flushes),
            })
        };
        json!({
            "load": self.load.name(),
            "requests": self.requests,
            "working_set_bytes": self.working_set_bytes,
            "cpu_ns": self.nanos,
            "cpu_ns_best": self.nanos_best,
            "allocations": self.allocations,
            "allocated_bytes": self.allocated_bytes,
            "cache": device(&self.cache),
            "backing": device(&self.backing),
        })
    }
}

/// A load on a set that has been prepared for it.
pub struct Bench {
    load: Load,
    rig: Rig,
    random: Random,
    span_bytes: u64,
}

impl Bench {
    /// Prepares: the set is formatted and filled, and the load runs until its cost is steady.
    pub fn new(
        load: Load,
        working_set_bytes: u64,
        options: SetOptions,
    ) -> Result<Bench, EngineError> {
        let cache_bytes = match load {
            Load::Hit | Load::HotHit | Load::UblkHit => working_set_bytes * 5 / 4 + GIB,
            // A bucket is free again when the last block in it has been written anew, which takes
            // until about five times the working set is written. All that must not look like a
            // cache that gets full.
            Load::Write | Load::WriteClean | Load::WriteThrough => working_set_bytes * 16,
            Load::Miss => working_set_bytes,
        };
        let cache_bytes = cache_bytes.max(CACHE_BYTES_MIN);
        // One in 64 of the misses is a hit after all.
        let volume_bytes = if load == Load::Miss { cache_bytes * 64 } else { working_set_bytes };
        let mode = if load.is_writeback() { CacheMode::Writeback } else { CacheMode::Writethrough };
        let rig = Rig::new(&Shape {
            cache_bytes,
            bucket_sectors: BUCKET_SECTORS,
            volume_bytes,
            mode,
            options,
        })?;
        let span_bytes = match load {
            Load::HotHit => working_set_bytes.min(HOT_BYTES),
            _ => volume_bytes,
        };
        let mut bench = Bench { load, rig, random: Random::new(7), span_bytes };
        let rig = &bench.rig;
        let blocks = working_set_bytes / BLOCK_BYTES;
        match load {
            Load::Hit | Load::HotHit | Load::UblkHit => {
                rig.fill(0, working_set_bytes, BLOCK_BYTES);
                bench.warm_up(bench.span_bytes / BLOCK_BYTES);
            }
            Load::Write => {
                rig.set("writeback_running", "0");
                bench.warm_up(2 * blocks);
            }
            Load::WriteClean => {
                rig.set("writeback_running", "0");
                rig.set("writeback_percent", "0");
                bench.warm_up(2 * blocks);
            }
            Load::WriteThrough => bench.warm_up(2 * blocks),
            Load::Miss => bench.warm_up(cache_bytes / BLOCK_BYTES * 5 / 4),
        }
        Ok(bench)
    }

    /// Restricts hits to the part that [`Load::HotHit`] reads.
    pub fn only_hot(&mut self) {
        assert_eq!(self.load, Load::Hit, "only hits can become hot");
        self.load = Load::HotHit;
        self.span_bytes = self.span_bytes.min(HOT_BYTES);
        self.warm_up(self.span_bytes / BLOCK_BYTES);
    }

    /// The world with its set.
    pub fn rig(&self) -> &Rig {
        &self.rig
    }

    fn warm_up(&mut self, requests: u64) {
        let Bench { load, rig, random, span_bytes } = self;
        requests_in_a_row(rig, *load, random, *span_bytes, requests);
    }

    /// Runs so many requests in so many slices.
    pub fn measure(&mut self, requests: u64, slices: u64) -> Cost {
        let mut nanos = Vec::new();
        let counters = |rig: &Rig| {
            let status = rig.set.status();
            (status.cache, status.volumes[0].backing, status.volumes[0].stats)
        };
        let (cache, backing, stats) = counters(&self.rig);
        let allocations = Allocations::now();
        let Bench { load, rig, random, span_bytes } = self;
        let slice = (requests / slices).max(1);
        for _ in 0..slices {
            let began = cpu_time::of_thread();
            measured_phase(&mut || requests_in_a_row(rig, *load, random, *span_bytes, slice));
            nanos.push((cpu_time::of_thread() - began).as_nanos() as f64 / slice as f64);
        }
        let allocated = Allocations::now().since(allocations);
        let requests = slice * slices;
        let (cache_after, backing_after, stats_after) = counters(&self.rig);
        if self.load.is_hit() {
            assert_eq!(stats_after.cache_hits - stats.cache_hits, requests, "every read was a hit");
        }
        if self.load == Load::Write {
            assert_eq!(backing_after.writes, backing.writes, "nothing was written through or back");
        }
        nanos.sort_by(f64::total_cmp);
        Cost {
            load: self.load,
            requests,
            working_set_bytes: self.span_bytes,
            nanos: nanos[nanos.len() / 2],
            nanos_best: nanos[0],
            // The vector `nanos` itself makes a handful of allocations.
            allocations: (allocated.count as f64 - 4.0).max(0.0) / requests as f64,
            allocated_bytes: allocated.bytes as f64 / requests as f64,
            cache: difference(cache_after, cache),
            backing: difference(backing_after, backing),
        }
    }
}

fn difference(after: DeviceCounters, before: DeviceCounters) -> DeviceCounters {
    DeviceCounters {
        reads: after.reads - before.reads,
        read_bytes: after.read_bytes - before.read_bytes,
        writes: after.writes - before.writes,
        written_bytes: after.written_bytes - before.written_bytes,
        flushes: after.flushes - before.flushes,
        discards: after.discards - before.discards,
        errors: after.errors - before.errors,
    }
}

/// Runs everything that is measured: callgrind collects while this function runs, by its name,
/// which no other function has.
#[inline(never)]
pub fn measured_phase(run: &mut dyn FnMut()) {
    run();
    // Prevents a tail call: the call above would be a jump.
    std::hint::black_box(());
}

fn requests_in_a_row(rig: &Rig, load: Load, random: &mut Random, span_bytes: u64, requests: u64) {
    let blocks = span_bytes / BLOCK_BYTES;
    if load == Load::UblkHit {
        return reads_of_a_device(rig, random, blocks, requests);
    }
    let data = client_data(BLOCK_BYTES as usize);
    let env = rig.world.env();
    rig.world.run(async {
        for count in 1..=requests {
            let at = random.below(blocks) * BLOCK_BYTES;
            if load.is_write() {
                rig.world.pass(REQUEST_TIME);
                let range = SectorRange::new(Sector(at / SECTOR_BYTES), BLOCK_BYTES / SECTOR_BYTES);
                let written = rig.volume.write(StreamId(0), range, data.clone(), false).await;
                written.unwrap_or_else(|error| panic!("writing {range}: {error}"));
            } else {
                rig.read(at, BLOCK_BYTES).await;
            }
            if count.is_multiple_of(REQUESTS_PER_TURN) {
                env.yield_now().await;
            }
            if load == Load::WriteClean
                && (count == requests || count.is_multiple_of(blocks.div_ceil(4)))
            {
                write_back_everything(rig).await;
            }
        }
    });
}

fn reads_of_a_device(rig: &Rig, random: &mut Random, blocks: u64, requests: u64) {
    let sectors = BLOCK_BYTES / SECTOR_BYTES;
    let mut drawn = random.clone();
    let next = move || drawn.below(blocks) * sectors;
    let driver = NullDriver::new(rig.world.env(), requests, sectors as u32, next);
    let options = QueueOptions {
        queue: 0,
        depth: 1,
        user_copy: true,
        places: false,
        max_io_bytes: 1 << 20,
        stream: StreamId(0),
        requests: Rc::default(),
        pace: None,
    };
    let served = serve_queue(rig.world.env(), driver, rig.volume.clone(), options);
    rig.world.run(async {
        served.await;
    });
    // Not the same places next time.
    random.below(blocks);
}

/// Writes everything back after the writes, not beside them. Writeback scans the whole index for
/// dirty data, and no time passes meanwhile in this world, so beside the writes it would scan for
/// next to nothing all the time.
async fn write_back_everything(rig: &Rig) {
    rig.set("writeback_running", "1");
    while rig.volume.status().dirty_bytes > 0 {
        rig.world.env().sleep(Nanos::from_millis(10)).await;
    }
    rig.set("writeback_running", "0");
}

/// Memory of a set with so much in its cache, in pieces of one size.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Bytes in the cache.
    pub cached_bytes: u64,
    /// Bytes in a piece.
    pub piece_bytes: u64,
    /// Bytes of the set when it is empty.
    pub empty_bytes: i64,
    /// Bytes of the set when it is full.
    pub full_bytes: i64,
}

impl Memory {
    /// Fills a set and sees what it holds.
    pub fn measure(
        cached_bytes: u64,
        piece_bytes: u64,
        options: SetOptions,
    ) -> Result<Memory, EngineError> {
        Memory::measure_for_hits(cached_bytes, piece_bytes, options).map(|(memory, _)| memory)
    }

    /// [`Memory::measure`], and the set to measure [`Load::Hit`] on: to fill it again may take
    /// minutes.
    pub fn measure_for_hits(
        cached_bytes: u64,
        piece_bytes: u64,
        options: SetOptions,
    ) -> Result<(Memory, Bench), EngineError> {
        let before = Allocations::now();
        let shape = Shape {
            cache_bytes: cached_bytes * 5 / 4 + GIB,
            bucket_sectors: BUCKET_SECTORS,
            volume_bytes: cached_bytes,
            mode: CacheMode::Writethrough,
            options,
        };
        let rig = Rig::new(&shape)?;
        let held = |rig: &Rig| {
            let kept = rig.cache.kept_bytes() + rig.backing.kept_bytes();
            Allocations::now().since(before).live_bytes - kept as i64
        };
        let empty_bytes = held(&rig);
        rig.fill(0, cached_bytes, piece_bytes);
        let misses = rig.volume.status().stats.cache_misses;
        rig.world.run(async {
            for at in (0..cached_bytes).step_by((97 * piece_bytes) as usize) {
                rig.read(at, piece_bytes).await;
            }
        });
        assert_eq!(rig.volume.status().stats.cache_misses, misses, "all of it is in the cache");
        let memory = Memory { cached_bytes, piece_bytes, empty_bytes, full_bytes: held(&rig) };
        Ok((
            memory,
            Bench { load: Load::Hit, rig, random: Random::new(7), span_bytes: cached_bytes },
        ))
    }

    /// Bytes for every GiB in the cache.
    pub fn bytes_per_gib(&self) -> f64 {
        (self.full_bytes - self.empty_bytes) as f64 / (self.cached_bytes as f64 / GIB as f64)
    }

    /// The measurements in JSON.
    pub fn json(&self) -> Value {
        json!({
            "cached_bytes": self.cached_bytes,
            "piece_bytes": self.piece_bytes,
            "empty_bytes": self.empty_bytes,
            "full_bytes": self.full_bytes,
            "bytes_per_cached_gib": self.bytes_per_gib(),
        })
    }
}
