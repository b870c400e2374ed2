//! Kept memory (V3): what it holds outlives the process, and is used by the next run only if that
//! is the next.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, KeptOutcome, KeptState, SetOptions};
use ubcache_env::{Buf, Sector, SectorRange, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::crash::SimKept;
use ubcache_sim::{DiskConfig, SimDisk, SimWorld, WorldConfig};

#[expect(dead_code, reason = "other tests open a set with it")]
mod support;

const RANGE: SectorRange = SectorRange { start: Sector(64), end: Sector(72) };

/// The devices of a set whose process dies again and again.
struct Machine {
    world: SimWorld,
    cache: SimDisk,
    backing: SimDisk,
    kept: Rc<SimKept>,
}

impl Machine {
    async fn new(world: SimWorld) -> Machine {
        let cache = SimDisk::new(
            &world,
            DiskConfig::new("cache", support::STEP * u64::from(support::BUCKETS)),
        );
        let backing = SimDisk::new(&world, DiskConfig::new("backing", 4096));
        support::format(&cache, &backing, OwnPolicy::None).await;
        Machine { world, cache, backing, kept: Rc::new(SimKept::new(64 << 10)) }
    }

    /// A process opens the set, does this with its volume, and dies.
    async fn life(
        &self,
        keeps: bool,
        work: impl AsyncFnOnce(&CachedVolume<ubcache_sim::SimEnv>),
    ) -> Option<KeptState> {
        let env = self.world.new_instance();
        let mut options = SetOptions::default();
        if keeps {
            options.kept = Some(self.kept.clone());
        }
        let set = CacheSet::open(env.clone(), self.cache.clone(), options).await.expect("opens");
        let volume =
            set.attach(self.backing.clone(), AttachOptions::default()).await.expect("attaches");
        volume.set_attribute("cache_mode", "writeback").expect("sets");
        volume.set_attribute("sequential_cutoff", "0").expect("sets");
        work(&volume).await;
        let state = set.kept_state();
        drop((set, volume));
        self.world.kill(&env);
        self.cache.host_restart();
        self.backing.host_restart();
        state
    }
}

async fn put(volume: &CachedVolume<ubcache_sim::SimEnv>, value: u8) {
    let mut data = Buf::for_sectors(RANGE.sectors());
    data.as_mut_slice().fill(value);
    volume.write(StreamId(1), RANGE, data.into(), false).await.expect("writes");
}

async fn get(volume: &CachedVolume<ubcache_sim::SimEnv>) -> u8 {
    volume.read(StreamId(1), RANGE).await.expect("reads").to_buf().as_slice()[0]
}

fn in_a_world(test: impl AsyncFnOnce(Machine) + 'static) {
    let world = SimWorld::new(WorldConfig::new(1));
    let inside = world.clone();
    let done = world.run(async move { test(Machine::new(inside).await).await });
    done.expect("the test ends");
}

#[test]
fn answered_writes_outlive_the_process() {
    in_a_world(async |machine| {
        let first = machine.life(true, async |volume| put(volume, 1).await).await;
        let first = first.expect("there is kept memory");
        assert_eq!(first.outcome, KeptOutcome::Fresh);
        for value in 2..5 {
            let state = machine.life(true, async |volume| {
                assert_eq!(get(volume).await, value - 1);
                put(volume, value).await;
            });
            let state = state.await.expect("there is kept memory");
            assert_eq!(state.lineage, first.lineage);
            let KeptOutcome::Continued { records } = state.outcome else { panic!("{state:?}") };
            assert!(records > 0);
        }
    });
}

/// The other process writes no journal entry: the superblock alone tells that it was there.
#[test]
fn records_of_the_last_but_one_process_are_not_used() {
    in_a_world(async |machine| {
        let first = machine.life(true, async |volume| put(volume, 1).await).await;
        let other = machine.life(false, async |volume| assert_eq!(get(volume).await, 0)).await;
        assert_eq!(other, None);
        let third = machine.life(true, async |volume| assert_eq!(get(volume).await, 0)).await;
        let (first, third) = (first.expect("kept memory"), third.expect("kept memory"));
        assert_eq!(third.outcome, KeptOutcome::Mismatch);
        assert_ne!(third.lineage, first.lineage);
        let fourth = machine.life(true, async |_| ()).await.expect("kept memory");
        assert!(matches!(fourth.outcome, KeptOutcome::Continued { .. }), "{fourth:?}");
        assert_eq!(fourth.lineage, third.lineage);
    });
}

/// Data that a record names may be lost by the flush.
#[test]
fn failed_flush_gives_the_kept_memory_up() {
    in_a_world(async |machine| {
        let cache = machine.cache.clone();
        let first = machine.life(true, async |volume| {
            put(volume, 1).await;
            cache.fail_next_flush();
            assert!(volume.flush(StreamId(1)).await.is_err());
        });
        let first = first.await.expect("kept memory");
        let second = machine.life(true, async |_| ()).await.expect("kept memory");
        assert_eq!(second.outcome, KeptOutcome::Mismatch);
        assert_ne!(second.lineage, first.lineage);
    });
}

#[test]
fn power_failure_leaves_nothing_kept() {
    in_a_world(async |machine| {
        let first = machine.life(true, async |volume| put(volume, 1).await).await;
        machine.kept.lose();
        let second = machine.life(true, async |_| ()).await.expect("kept memory");
        assert_eq!(second.outcome, KeptOutcome::Fresh);
        assert_ne!(second.lineage, first.expect("kept memory").lineage);
    });
}
