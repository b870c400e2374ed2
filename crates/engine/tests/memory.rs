//! Memory is held once, and within its limit (S2).

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions, Tuning};
use ubcache_env::{
    Buf, Device, Durability, Env, IoVec, Nanos, Priority, Sector, SectorRange, StreamId, Volume,
};
use ubcache_format::{CacheMode, Replacement, Superblock, Uuid};
use ubcache_sim::{DiskConfig, Profile, SimDisk, SimEnv, SimWorld, WorldConfig};

const SECTORS: u64 = 32 << 11;
const OFFSET: u64 = 16;
/// 16 MiB: more than `sequential_cutoff`, so that reads of it leave no copy.
const LONG: SectorRange = SectorRange::from_bounds(Sector(0), Sector(16 << 11));

type Opened = (CacheSet<SimEnv>, Rc<CachedVolume<SimEnv>>);

async fn open(world: &SimWorld, env: &SimEnv, block: u32, tuning: Tuning) -> Opened {
    let cache = SimDisk::new(world, DiskConfig::new("cache", 256 * 1024));
    let jitter =
        DiskConfig { profile: Profile::Jitter, ..DiskConfig::new("backing", SECTORS + OFFSET) };
    let backing = SimDisk::new(world, jitter);
    let set = Uuid([7; 16]);
    let write = |bytes: Vec<u8>| Buf::from_bytes(&bytes).into();
    let superblock =
        Superblock::new_cache(Uuid([1; 16]), set, block, 256, 1024, Replacement::Lru, false);
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    let mode = CacheMode::Writeback;
    let superblock = Superblock::new_backing(Uuid([2; 16]), set, block, Sector(OFFSET), mode, "v");
    backing
        .write(Sector(8), write(superblock.encode()), Durability::Fua)
        .await
        .expect("a good disk");
    let options = SetOptions { tuning, ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache, options).await.expect("the set opens");
    for name in ["congested_read_threshold_us", "congested_write_threshold_us"] {
        set.set_attribute(name, "0").expect("sets");
    }
    let volume = set.attach(backing, AttachOptions::default()).await.expect("the volume attaches");
    volume.set_attribute("writeback_running", "0").expect("sets");
    (set, volume)
}

fn of_ones(sectors: u64) -> IoVec {
    let mut data = Buf::for_sectors(sectors);
    data.as_mut_slice().fill(1);
    data.into()
}

/// Bug: a read that had to look again, because what it had missed was written and discarded
/// meanwhile (R5), kept what it had read, and read it once more: twice the memory of the request.
/// Fix: it lets go first.
#[test]
fn read_that_looks_again_holds_its_data_once() {
    let mut looked_again = 0;
    for seed in 0..60 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let env = world.new_instance();
        let inside = world.clone();
        let ended = world.run(async move {
            let (_set, volume) = open(&inside, &env, 8, Tuning::default()).await;
            let reader = volume.clone();
            env.spawn(Priority::Foreground, async move {
                let data = reader.read(StreamId(1), LONG).await.expect("reads");
                assert_eq!(data.len() as u64, LONG.bytes());
            });
            env.sleep(Nanos::from_micros(50)).await;
            let place = SectorRange::new(Sector(8000), 8);
            volume.write(StreamId(2), place, of_ones(8), false).await.expect("writes");
            volume.discard(StreamId(2), place, false).await.expect("discards");
            env.sleep(Nanos::from_secs(1)).await;
        });
        ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
        looked_again += u64::from(world.marks().contains_key("read_looks_up_again"));
        let held = world.buffers_held();
        assert!(held < LONG.bytes() * 3 / 2, "seed {seed}: {held} bytes for a read of 16 MiB");
    }
    assert!(looked_again >= 4, "only {looked_again} reads looked again");
}

/// Bug: the index kept to its limit when a leaf was read or appended to, but not when leaves were
/// split: filling a new cache kept every leaf in memory, 8 times the limit here. Fix: a split lets
/// go of a leaf, too.
#[test]
fn index_in_memory_keeps_to_its_limit() {
    const EXTENTS: u64 = 6000;
    const LIMIT: usize = 500;
    const LEAF: usize = 64;
    let tuning = Tuning {
        extents_in_memory_max: LIMIT,
        node_keys_max: Some(LEAF),
        lazy_start: false,
        ..Tuning::default()
    };
    let world = SimWorld::new(WorldConfig::new(1));
    let env = world.new_instance();
    let inside = world.clone();
    let ended = world.run(async move {
        let (set, volume) = open(&inside, &env, 1, tuning).await;
        volume.set_attribute("sequential_cutoff", "0").expect("sets");
        let mut most = [0; 2];
        for (turn, most) in most.iter_mut().enumerate() {
            for slot in 0..EXTENTS {
                // All over the place, and no two of them join.
                let place = SectorRange::new(Sector(slot * 4099 % EXTENTS * 4), 1);
                if turn == 0 {
                    volume.read(StreamId(slot), place).await.expect("reads");
                } else {
                    let written = volume.write(StreamId(slot), place, of_ones(1), false);
                    written.await.expect("writes");
                }
                *most = set.held().extents.max(*most);
            }
            volume.flush(StreamId(1)).await.expect("flushes");
        }
        // While the index grows, leaves stay that have something to write.
        assert!(most[0] < EXTENTS / 2, "{} of {EXTENTS} extents in memory", most[0]);
        assert!(most[1] > LIMIT as u64, "only {} extents: the limit was not reached", most[1]);
        assert!(most[1] <= (LIMIT + 8 * LEAF) as u64, "{} extents in memory", most[1]);
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}
