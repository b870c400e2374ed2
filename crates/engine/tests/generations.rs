//! A set in which buckets were used again more than 128 times starts again, with all that was
//! flushed.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, EngineError, SetOptions, Tuning};
use ubcache_env::{Buf, Device, Durability, Env, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, Replacement, SECTOR_BYTES, Superblock, Uuid};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

/// Sectors of a request to the hot volume, and of those to the one with dirty data.
const STEP: u64 = 8;
const BUCKET: u64 = 16;
const BUCKETS: u32 = 1200;
const OFFSET: u64 = 16;
/// Requests that cover the hot volume: four times what the cache holds.
const HOT: u64 = 4 * BUCKETS as u64;
/// Extents of the cold volume. They do not join.
const COLD: u64 = 6000;
const DIRTY: u64 = 400;
/// Half of the generations that there are, and as many more as the old pointers needed to be
/// believed.
const TURNS: u64 = 175;

fn write(bytes: Vec<u8>) -> ubcache_env::IoVec {
    Buf::from_bytes(&bytes).into()
}

async fn format(cache: &SimDisk, backings: &[SimDisk]) {
    let set = Uuid([7; 16]);
    let policy = Replacement::Fifo;
    let superblock =
        Superblock::new_cache(Uuid([1; 16]), set, 1, BUCKET as u32, BUCKETS, policy, false);
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    for (number, backing) in backings.iter().enumerate() {
        let uuid = Uuid([2 + number as u8; 16]);
        let superblock =
            Superblock::new_backing(uuid, set, 1, Sector(OFFSET), CacheMode::Writethrough, "v");
        backing
            .write(Sector(8), write(superblock.encode()), Durability::Fua)
            .await
            .expect("a good disk");
    }
}

type Opened = (CacheSet<SimEnv>, Vec<Rc<CachedVolume<SimEnv>>>);

async fn open(env: &SimEnv, cache: &SimDisk, backings: &[SimDisk]) -> Result<Opened, EngineError> {
    let tuning = Tuning { node_keys_max: Some(64), lazy_start: false, ..Tuning::default() };
    let options = SetOptions { tuning, ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache.clone(), options).await?;
    for name in ["congested_read_threshold_us", "congested_write_threshold_us"] {
        set.set_attribute(name, "0").expect("sets");
    }
    let mut volumes = Vec::new();
    for backing in backings {
        let volume = set.attach(backing.clone(), AttachOptions::default()).await?;
        volume.set_attribute("sequential_cutoff", "0").expect("sets");
        volumes.push(volume);
    }
    Ok((set, volumes))
}

/// Caches the cold volume once: a deep tree, of which this part is left alone from then on.
async fn cache_the_cold_one(env: &SimEnv, volume: &CachedVolume<SimEnv>) {
    for slot in 0..COLD {
        let range = SectorRange::new(Sector(slot * 2), 1);
        volume.read(StreamId(slot), range).await.expect("reads");
        if slot.is_multiple_of(16) {
            env.sleep(Nanos::from_millis(1)).await;
        }
    }
    env.sleep(Nanos::from_secs(1)).await;
}

/// Reads the hot volume until all of the cache was written so many times.
async fn turn_over(
    env: &SimEnv,
    set: &CacheSet<SimEnv>,
    volume: &CachedVolume<SimEnv>,
    turns: u64,
) {
    let written = || set.status().cache.written_bytes;
    let end = written() + turns * BUCKET * SECTOR_BYTES * u64::from(BUCKETS);
    let mut next = 0;
    while written() < end {
        let range = SectorRange::new(Sector(next * 7 % HOT * STEP), STEP);
        volume.read(StreamId(1), range).await.expect("reads");
        next += 1;
        if next.is_multiple_of(64) {
            env.sleep(Nanos::from_millis(2)).await;
        }
    }
}

fn dirty_byte(slot: u64) -> u8 {
    1 + (slot % 250) as u8
}

async fn make_dirty(volume: &CachedVolume<SimEnv>) {
    volume.set_attribute("cache_mode", "writeback").expect("sets");
    volume.set_attribute("writeback_running", "0").expect("sets");
    for slot in 0..DIRTY {
        let mut data = Buf::for_sectors(STEP);
        data.as_mut_slice().fill(dirty_byte(slot));
        let range = SectorRange::new(Sector(slot * STEP), STEP);
        volume.write(StreamId(9), range, data.into(), false).await.expect("writes");
    }
    volume.flush(StreamId(9)).await.expect("flushes");
}

/// Bug: garbage collection looked for old pointers in leaves only. An interior node that nothing
/// changed any more kept pointers to freed leaves; after 129 reuses of such a bucket its pointer
/// looked newer than the bucket, and the next start took it for a child, and all that was in the
/// bucket for void: after 170 turns the set did not start, with flushed dirty data in it. Fix:
/// pointers of interior nodes age like all others (G1, G2). Several rules keep such a set now; that
/// each is needed is shown by its mutant in the simulator.
#[test]
fn set_starts_after_its_generations_wrapped_past_half() {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk = |name: &str, sectors| SimDisk::new(&world, DiskConfig::new(name, sectors));
    let cache = disk("cache", BUCKET * u64::from(BUCKETS));
    let backings = [
        disk("cold", OFFSET + 2 * COLD),
        disk("hot", OFFSET + HOT * STEP),
        disk("dirty", OFFSET + DIRTY * STEP),
    ];
    let env = world.new_instance();
    let ended = world.run(async move {
        format(&cache, &backings).await;
        let (set, volumes) = open(&env, &cache, &backings).await.expect("opens");
        cache_the_cold_one(&env, &volumes[0]).await;
        turn_over(&env, &set, &volumes[1], TURNS).await;
        make_dirty(&volumes[2]).await;
        set.stop().await.expect("stops");
        drop(volumes);

        let (set, volumes) = open(&env, &cache, &backings).await.expect("it starts again");
        volumes[2].set_attribute("writeback_running", "0").expect("sets");
        assert_eq!(volumes[2].status().dirty_bytes, DIRTY * STEP * SECTOR_BYTES);
        for slot in 0..DIRTY {
            let range = SectorRange::new(Sector(slot * STEP), STEP);
            let found = volumes[2].read(StreamId(9), range).await.expect("reads").to_buf();
            assert!(found.as_slice().iter().all(|&byte| byte == dirty_byte(slot)), "slot {slot}");
        }
        env.sleep(Nanos::from_secs(2)).await;
        assert_eq!(set.status().failed, None);
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
    // The rescue of sets that have such pointers would hide that they came to be.
    assert!(!world.marks().contains_key("pointers_outrun"), "a pointer was left behind");
}
