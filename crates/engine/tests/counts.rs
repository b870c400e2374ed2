//! Requests are counted on their paths, each once, and so are the requests of devices: the
//! histograms hold as many times as there were requests.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::stats::requests::{BypassReason, Path, PathStatus, RequestStatus};
use ubcache_engine::{CachedVolume, DeviceCounters, DeviceLatencies};
use ubcache_env::{Buf, Env, IoVec, Nanos, Priority, Sector, SectorRange, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::{DiskConfig, ForeignPage, Rng, SimDisk, SimEnv, SimWorld, WorldConfig};

/// Sectors of the volume: a few dozen buckets, so that requests meet.
const SECTORS: u64 = 64 * STEP;
const CLIENTS: u64 = 4;
const REQUESTS: u64 = 60;
/// Discards and writes of zeroes are made in steps of this many sectors.
const LONG_STEP: u64 = 16 << 11;

/// Requests that clients have made, and bytes of them.
#[derive(Default)]
struct Made {
    reads: Cell<(u64, u64)>,
    writes: Cell<(u64, u64)>,
    flushes: Cell<(u64, u64)>,
    discards: Cell<(u64, u64)>,
}

fn note(made: &Cell<(u64, u64)>, bytes: u64) {
    let (requests, before) = made.get();
    made.set((requests + 1, before + bytes));
}

async fn client(env: SimEnv, volume: Rc<CachedVolume<SimEnv>>, made: Rc<Made>, seed: u64) {
    let mut rng = Rng::fork(seed, "client");
    let stream = StreamId(seed);
    for _ in 0..REQUESTS {
        let sectors = 1 + rng.below(24);
        let range = SectorRange::new(Sector(rng.below(SECTORS - sectors)), sectors);
        let data = || IoVec::zeroes(range.bytes() as usize);
        let fua = rng.below(4) == 0;
        // A request that fails has been made, too.
        let _ = match rng.below(16) {
            0..3 => {
                note(&made.reads, range.bytes());
                volume.read(stream, range).await.map(drop)
            }
            3..6 => {
                note(&made.reads, range.bytes());
                let (_page, place) = ForeignPage::new(&env, range.bytes() as usize);
                volume.read_into(stream, range, place).await.map(drop)
            }
            6..11 => {
                note(&made.writes, range.bytes());
                volume.write(stream, range, data(), fua).await
            }
            11 => {
                // Of the bytes of a part of a block, those of the block are counted.
                note(&made.writes, range.bytes());
                volume.write_bytes(stream, range.start.bytes(), data(), fua).await
            }
            12 => {
                note(&made.writes, range.bytes());
                volume.write_zeroes(stream, range, fua, rng.below(2) == 0).await
            }
            13 => {
                note(&made.discards, range.bytes());
                volume.discard(stream, range, fua).await
            }
            14 => {
                note(&made.flushes, 0);
                volume.flush(stream).await
            }
            _ => volume.prefetch(stream, range).await,
        };
        if rng.below(8) == 0 {
            env.sleep(Nanos::from_millis(rng.below(3000))).await;
        }
    }
}

fn sum(status: &RequestStatus, paths: &[Path]) -> (u64, u64) {
    let of = |(path, status): &(Path, PathStatus)| {
        paths.contains(path).then_some((status.latencies.count(), status.bytes))
    };
    status.paths.iter().filter_map(of).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
}

fn assert_device(counters: &DeviceCounters, latencies: &DeviceLatencies, seed: u64) {
    for (counted, latencies) in [
        (counters.reads, &latencies.read),
        (counters.writes, &latencies.write),
        (counters.flushes, &latencies.flush),
    ] {
        assert_eq!(counted, latencies.count(), "seed {seed}: {counters:?}");
        let long = latencies.counts.iter().any(|(end, _)| *end > Nanos::from_secs(100));
        assert!(!long, "seed {seed}: {latencies:?}");
    }
}

/// Switches the settings that decide about paths.
async fn administrator(env: SimEnv, volume: Rc<CachedVolume<SimEnv>>, seed: u64) {
    let mut rng = Rng::fork(seed, "administrator");
    let modes = ["writeback", "writethrough", "writearound", "none", "writeback"];
    for _ in 0..4 {
        let mode = modes[rng.below(modes.len() as u64) as usize];
        volume.set_attribute("cache_mode", mode).expect("a mode");
        let cutoff = ["0", "16k", "4M"][rng.below(3) as usize];
        volume.set_attribute("sequential_cutoff", cutoff).expect("a size");
        env.sleep(Nanos::from_millis(rng.below(20_000))).await;
    }
}

async fn run(env: SimEnv, cache: SimDisk, backing: SimDisk, seed: u64) {
    let begins = if seed.is_multiple_of(2) { OwnPolicy::ScanResistant } else { OwnPolicy::None };
    format(&cache, &backing, begins).await;
    let (set, volume) = open(&env, &cache, &backing).await;
    let made = Rc::new(Made::default());
    let mut tasks =
        vec![env.spawn(Priority::Foreground, administrator(env.clone(), volume.clone(), seed))];
    for number in 0..CLIENTS {
        let client = client(env.clone(), volume.clone(), made.clone(), seed * CLIENTS + number);
        tasks.push(env.spawn(Priority::Foreground, client));
    }
    for task in tasks {
        task.join().await;
    }
    if seed.is_multiple_of(3) {
        set.detach(&volume).await.expect("detaches");
        note(&made.reads, STEP * 512);
        let read = volume.read(StreamId(0), SectorRange::new(Sector(0), STEP)).await;
        assert!(read.is_ok());
        note(&made.writes, 512);
        let data = IoVec::from(Buf::zeroed(512));
        let range = SectorRange::new(Sector(1), 1);
        volume.write(StreamId(0), range, data, false).await.expect("writes");
    }
    let status = volume.status();
    let requests = &status.requests;
    let reads = [Path::Hit, Path::Miss, Path::BypassRead];
    let writes = [Path::WritebackWrite, Path::WritethroughWrite, Path::BypassWrite];
    assert_eq!(sum(requests, &reads), made.reads.get(), "seed {seed}: {requests:?}");
    assert_eq!(sum(requests, &writes), made.writes.get(), "seed {seed}: {requests:?}");
    assert_eq!(sum(requests, &[Path::Flush]), made.flushes.get(), "seed {seed}");
    assert_eq!(sum(requests, &[Path::Discard]), made.discards.get(), "seed {seed}");
    // Each request that went past the cache did so for one reason.
    let mut past = [(0, 0); 2];
    for (_, bypassed) in &requests.bypassed {
        past[0].0 += bypassed.reads;
        past[0].1 += bypassed.read_bytes;
        past[1].0 += bypassed.writes;
        past[1].1 += bypassed.written_bytes;
    }
    assert_eq!(past[0], sum(requests, &[Path::BypassRead]), "seed {seed}");
    assert_eq!(past[1], sum(requests, &[Path::BypassWrite, Path::Discard]), "seed {seed}");
    let stats = &status.stats;
    assert_eq!(stats.cache_hits, requests.count(Path::Hit));
    assert_eq!(stats.cache_misses, requests.count(Path::Miss));
    let uncached = requests.bypassed.iter().find(|(reason, _)| *reason == BypassReason::NoCache);
    assert_eq!(
        stats.cache_bypass_hits + stats.cache_bypass_misses,
        requests.count(Path::BypassRead) - uncached.map_or(0, |(_, bypassed)| bypassed.reads)
    );
    set.stop().await.expect("stops");
    let (after, of_set) = (volume.status(), set.status());
    assert_device(&after.backing, &after.backing_latencies, seed);
    assert_device(&of_set.cache, &of_set.cache_latencies, seed);
}

#[test]
fn requests_are_counted_once_each() {
    for seed in 0..60 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
        let backing = SimDisk::new(&world, DiskConfig::new("backing", SECTORS + 16));
        let env = world.new_instance();
        let ended = world.run(run(env, cache, backing, seed));
        ended.unwrap_or_else(|stuck| panic!("seed {seed}: {stuck:?}\n{}", world.waiting()));
    }
}

/// Writes of zeroes and discards longer than a step are one request.
#[test]
fn long_requests_are_counted_once() {
    let world = SimWorld::new(WorldConfig::new(1));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", 3 * LONG_STEP + 16));
    let env = world.new_instance();
    let ended = world.run(async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        let whole = SectorRange::new(Sector(0), 3 * LONG_STEP);
        volume.write_zeroes(StreamId(1), whole, false, true).await.expect("zeroes");
        volume.discard(StreamId(1), whole, false).await.expect("discards");
        let requests = volume.status().requests;
        assert_eq!(sum(&requests, &[Path::BypassWrite]), (1, whole.bytes()));
        assert_eq!(sum(&requests, &[Path::Discard]), (1, whole.bytes()));
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

/// `stats_five_minute` and the others follow the counters, and `clear_stats` begins the total anew.
#[test]
fn statistics_by_period_are_attributes() {
    let world = SimWorld::new(WorldConfig::new(2));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SECTORS + 16));
    let env = world.new_instance();
    let ended = world.run(async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        let read = async || {
            let range = SectorRange::new(Sector(0), STEP);
            volume.read(StreamId(1), range).await.expect("reads");
            volume.flush(StreamId(1)).await.expect("flushes");
        };
        for _ in 0..4 {
            read().await;
            env.sleep(Nanos::from_secs(1)).await;
        }
        let get = |name: &str| volume.attribute(name).expect("an attribute");
        assert_eq!(
            (get("stats_total/cache_hits"), get("stats_total/cache_misses")),
            ("3".to_owned(), "1".to_owned())
        );
        assert_eq!(get("stats_total/cache_hit_ratio"), "75");
        assert_eq!(get("stats_hour/cache_hits"), "0", "no tick yet");
        env.sleep(Nanos::from_secs(20)).await;
        assert_eq!(get("stats_hour/cache_hits"), "3");
        assert_eq!(set.attribute("stats_hour/cache_hits").as_deref(), Some("3"));
        volume.set_attribute("clear_stats", "1").expect("clears");
        read().await;
        assert_eq!(get("stats_total/cache_hits"), "1");
        assert_eq!(set.attribute("stats_total/cache_hits").as_deref(), Some("1"));
        assert_eq!(get("stats_hour/cache_hits"), "3", "it goes on");
        assert_eq!(volume.status().stats.cache_hits, 4, "counters do not go back");
        assert_eq!(volume.attribute("stats_hour/hits"), None);
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}
