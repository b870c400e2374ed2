//! A scrub finds what somebody else has changed on the backing device, and nothing else.

mod support;

use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::events::{SetEvent, VolumeChange};
use ubcache_engine::{CacheSet, CachedVolume, EngineError, ScrubState};
use ubcache_env::{Env, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

/// Sectors of the volume.
const SECTORS: u64 = 4096;
/// First sector of its data on the backing device.
const DATA_AT: u64 = 16;
/// Byte that nobody wrote through the cache.
const OTHER: u8 = 0xbd;
const STREAM: StreamId = StreamId(1);

/// A set in its world.
struct Machine {
    env: SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    set: CacheSet<SimEnv>,
    volume: Rc<CachedVolume<SimEnv>>,
}

impl Machine {
    async fn start(world: &SimWorld, cache: &SimDisk, backing: &SimDisk) -> Machine {
        let env = world.new_instance();
        let (cache, backing) = (cache.clone(), backing.clone());
        let (set, volume) = open(&env, &cache, &backing).await;
        Machine { env, cache, backing, set, volume }
    }

    /// Reads all of the volume, and waits until all of it has keys.
    async fn warm(&self) {
        for start in (0..SECTORS).step_by(64) {
            let range = SectorRange::new(Sector(start), 64);
            self.volume.read(STREAM, range).await.expect("reads");
        }
        self.volume.flush(STREAM).await.expect("flushes");
        self.env.sleep(Nanos::from_secs(20)).await;
    }

    /// Overwrites a sector of the volume on the backing device, past the cache.
    fn write_behind(&self, sector: u64) {
        self.backing.poke(Sector(DATA_AT + sector), &[OTHER; 512]);
    }

    async fn first_byte(&self, sector: u64) -> u8 {
        let range = SectorRange::new(Sector(sector), 8);
        self.volume.read(STREAM, range).await.expect("reads").to_buf().as_slice()[0]
    }

    async fn scrub(&self) -> ubcache_engine::ScrubStatus {
        assert!(self.volume.start_scrub().expect("starts"), "none is under way");
        self.volume.scrub_ends().await;
        self.volume.scrub_status()
    }
}

/// Runs the body with a warm cache.
fn with_warm_cache<F: Future<Output = ()> + 'static>(
    body: impl FnOnce(Machine, SimWorld) -> F + 'static,
) {
    let world = SimWorld::new(WorldConfig::new(1));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SECTORS + DATA_AT));
    let inner = world.clone();
    let ended = world.run(async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let machine = Machine::start(&inner, &cache, &backing).await;
        machine.warm().await;
        body(machine, inner).await;
    });
    ended.unwrap_or_else(|stuck| panic!("stuck: {stuck:?}"));
}

#[test]
fn a_scrub_of_equal_data_compares_all_of_it_and_drops_nothing() {
    with_warm_cache(async |machine, _| {
        let pass = machine.scrub().await;
        assert_eq!(pass.state, ScrubState::Complete);
        assert_eq!(pass.compared_bytes, SECTORS * 512);
        assert_eq!((pass.differing_bytes, pass.skipped_bytes, pass.unreadable_bytes), (0, 0, 0));
        assert_eq!(pass.position_bytes, pass.size_bytes);
        let before = machine.volume.status().stats;
        assert_eq!(before.scrubbed_bytes, SECTORS * 512);
        machine.first_byte(100).await;
        assert_eq!(machine.volume.status().stats.cache_hits, before.cache_hits + 1);
    });
}

#[test]
fn a_write_past_the_cache_is_found_reported_and_dropped_for_good() {
    with_warm_cache(async |machine, world| {
        for sector in [800, 808, 2000] {
            machine.write_behind(sector);
        }
        assert_eq!(machine.first_byte(800).await, 0, "the cache has the former data");
        let pass = machine.scrub().await;
        assert_eq!((pass.differing_bytes, pass.compared_bytes), (3 * 512, SECTORS * 512));
        let mut differs = 0;
        loop {
            match machine.set.next_event().await {
                SetEvent::Differs(found) => {
                    differs += found.sectors;
                    assert!(found.range.start >= Sector(DATA_AT + 800), "{}", found.range);
                }
                SetEvent::Volume { change: VolumeChange::ScrubEnds(ended), .. } => {
                    assert_eq!(ended, pass);
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(differs, 3);
        for sector in [800, 808, 2000] {
            assert_eq!(machine.first_byte(sector).await, OTHER);
        }
        // The removal was durable when the pass ended.
        let Machine { cache, backing, .. } = &machine;
        cache.power_failure();
        backing.power_failure();
        let again = Machine::start(&world, cache, backing).await;
        assert_eq!(again.first_byte(2000).await, OTHER);
    });
}

#[test]
fn the_rate_holds_a_scrub_back_and_a_new_rate_counts_at_once() {
    with_warm_cache(async |machine, _| {
        let set = |rate: &str| machine.volume.set_attribute("scrub_rate", rate).expect("sets");
        set("0");
        let free = machine.scrub().await.elapsed;
        set("256k");
        let slow = machine.scrub().await.elapsed;
        // 2 MiB; a second of them is let through in advance at most, as pauses are paid for.
        assert!(slow > Nanos::from_secs(4), "{slow:?} of {free:?}");
        set("1");
        assert!(machine.volume.start_scrub().expect("starts"));
        machine.env.sleep(Nanos::from_secs(1)).await;
        assert_eq!(machine.volume.scrub_status().state, ScrubState::Running);
        assert!(!machine.volume.start_scrub().expect("is under way"));
        set("0");
        machine.volume.scrub_ends().await;
        assert!(machine.volume.scrub_status().elapsed < slow);
    });
}

#[test]
fn a_scrub_ends_when_it_is_stopped_and_with_its_volume() {
    with_warm_cache(async |machine, _| {
        machine.volume.set_attribute("scrub_rate", "1k").expect("sets");
        assert!(machine.volume.start_scrub().expect("starts"));
        machine.volume.stop_scrub().await;
        assert_eq!(machine.volume.scrub_status().state, ScrubState::Stopped);
        assert!(machine.volume.start_scrub().expect("starts again"));
        machine.set.stop().await.expect("stops");
        assert_eq!(machine.volume.scrub_status().state, ScrubState::Stopped);
        assert!(matches!(machine.volume.start_scrub(), Err(EngineError::Stopping)));
    });
}
