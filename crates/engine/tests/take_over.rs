//! A set that the driver ran last may hold stale clean data: none of it is ever served.

use std::rc::Rc;

use ubcache_engine::{
    AttachOptions, CacheSet, CachedVolume, FormerRun, SetOptions, TakenOver, Tuning,
};
use ubcache_env::Env;
use ubcache_env::local::first;
use ubcache_env::{Buf, Device, Durability, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{
    CacheMode, JournalEntry, Padding, Replacement, SECTOR_BYTES, Superblock, Uuid, encode_entry,
    scan_bucket_strictly,
};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const SLOTS: u64 = 48;
const STEP: u64 = 8;
const OFFSET: u64 = 16;
/// Byte of a journal entry at which its mark begins.
const MARK_AT: usize = 64;

fn range(slot: u64) -> SectorRange {
    SectorRange::new(Sector(slot * STEP), STEP)
}

fn fill(value: u8) -> Buf {
    let mut data = Buf::for_sectors(STEP);
    data.as_mut_slice().fill(value);
    data
}

fn write(bytes: Vec<u8>) -> ubcache_env::IoVec {
    Buf::from_bytes(&bytes).into()
}

async fn open(
    env: &SimEnv,
    cache: &SimDisk,
    backing: &SimDisk,
    keep_clean: bool,
) -> (CacheSet<SimEnv>, Rc<CachedVolume<SimEnv>>) {
    let tuning = Tuning { node_keys_max: Some(8), ..Tuning::default() };
    let options = SetOptions { tuning, keep_clean, ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache.clone(), options).await.expect("the set opens");
    let volume =
        set.attach(backing.clone(), AttachOptions::default()).await.expect("the volume attaches");
    volume.set_attribute("writeback_running", "0").expect("sets");
    (set, volume)
}

async fn get(volume: &CachedVolume<SimEnv>, slot: u64) -> u8 {
    volume.read(StreamId(slot), range(slot)).await.expect("reads").to_buf().as_slice()[0]
}

/// A set whose even slots are clean in the cache and whose odd ones are dirty, side by side.
async fn used_set(env: &SimEnv, cache: &SimDisk, backing: &SimDisk) {
    let uuid = Uuid([7; 16]);
    let superblock =
        Superblock::new_cache(Uuid([1; 16]), uuid, 1, 64, 600, Replacement::Lru, false);
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    let mode = CacheMode::Writeback;
    let superblock = Superblock::new_backing(Uuid([2; 16]), uuid, 1, Sector(OFFSET), mode, "v");
    backing
        .write(Sector(8), write(superblock.encode()), Durability::Fua)
        .await
        .expect("a good disk");
    let (set, volume) = open(env, cache, backing, false).await;
    for slot in (0..SLOTS).step_by(2) {
        volume.write(StreamId(slot), range(slot), fill(1).into(), false).await.expect("writes");
    }
    volume.set_attribute("writeback_percent", "0").expect("sets");
    volume.set_attribute("writeback_running", "1").expect("sets");
    while volume.status().dirty_bytes > 0 {
        env.sleep(Nanos::from_millis(10)).await;
    }
    volume.set_attribute("writeback_running", "0").expect("sets");
    for slot in (1..SLOTS).step_by(2) {
        volume.write(StreamId(slot), range(slot), fill(2).into(), false).await.expect("writes");
    }
    volume.flush(StreamId(1)).await.expect("flushes");
    set.stop().await.expect("stops");
}

/// Content of the padding in the entry of the driver.
#[derive(Copy, Clone)]
enum Padded {
    /// Anything.
    Anyhow,
    /// The padding of an older entry of ubcache: it lay in the buffer into which the driver had
    /// read the journal.
    WithOurMark,
}

/// Makes the newest journal entry one of the driver, and what it calls clean stale.
async fn driver_ran_it(cache: &SimDisk, backing: &SimDisk, padded: Padded) {
    let superblock =
        Superblock::parse(&cache.peek(SectorRange::new(Sector(8), 8))).expect("a superblock");
    let geometry = superblock.geometry();
    let mut entries = Vec::new();
    for index in 0..geometry.journal_buckets {
        let at = geometry.bucket_start(geometry.journal_bucket(index));
        let bytes = cache.peek(SectorRange::new(at, u64::from(geometry.bucket_sectors)));
        for (offset, entry) in scan_bucket_strictly(&geometry, &bytes).expect("a good journal") {
            entries.push((at + u64::from(offset) / SECTOR_BYTES, entry));
        }
    }
    entries.sort_by_key(|(_, entry)| entry.seq);
    let (at, mut entry) = entries.pop().expect("a journal has entries");
    let (older, _) = entries.pop().expect("it has several");
    entry.padding = Padding::Other(match padded {
        Padded::Anyhow => [0x5a; 16],
        Padded::WithOurMark => {
            let bytes = cache.peek(SectorRange::new(older, 1));
            let mark = &bytes[MARK_AT..MARK_AT + 16];
            assert!(mark.starts_with(b"ubcache1"), "the older entry is of ubcache");
            mark.try_into().expect("sixteen bytes")
        }
    });
    cache
        .write(at, write(encode_entry(&geometry, &entry)), Durability::Fua)
        .await
        .expect("a good disk");
    for slot in (0..SLOTS).step_by(2) {
        let at = Sector(OFFSET) + slot * STEP;
        backing.write(at, fill(9).into(), Durability::Fua).await.expect("a good disk");
    }
}

/// The driver carries the padding of entries that it reads into every other entry of its own.
/// ubcache took its mark there for its own, kept the driver's clean data, stale or not, and said
/// nothing. Now the mark is bound to its entry.
#[test]
fn take_over_drops_clean_data_and_keeps_dirty_data() {
    for padded in [Padded::Anyhow, Padded::WithOurMark] {
        taken_over(padded);
    }
}

fn taken_over(padded: Padded) {
    let world = SimWorld::new(WorldConfig::new(1));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", 64 * 600));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SLOTS * STEP + OFFSET));
    let env = world.new_instance();
    let ended = world.run(async move {
        used_set(&env, &cache, &backing).await;
        // ubcache's own set keeps what it has.
        let (set, volume) = open(&env, &cache, &backing, false).await;
        assert_eq!(set.taken_over(), None);
        assert_eq!((get(&volume, 0).await, get(&volume, 1).await), (1, 2));
        assert_eq!(volume.status().stats.cache_misses, 0, "clean data was kept");
        set.stop().await.expect("stops");
        driver_ran_it(&cache, &backing, padded).await;
        let (set, volume) = open(&env, &cache, &backing, false).await;
        let dropped_bytes = Some(SLOTS / 2 * STEP * SECTOR_BYTES);
        assert_eq!(set.taken_over(), Some(TakenOver { from: FormerRun::Driver, dropped_bytes }));
        for slot in 0..SLOTS {
            assert_eq!(get(&volume, slot).await, if slot % 2 == 0 { 9 } else { 2 }, "slot {slot}");
        }
        set.stop().await.expect("stops");
        // Once: the set is ubcache's now.
        let (set, _volume) = open(&env, &cache, &backing, false).await;
        assert_eq!(set.taken_over(), None);
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

/// Gives every journal entry the mark that early ubcache would have written.
fn as_0_1_left_it(cache: &SimDisk) {
    let superblock =
        Superblock::parse(&cache.peek(SectorRange::new(Sector(8), 8))).expect("a superblock");
    let geometry = superblock.geometry();
    for index in 0..geometry.journal_buckets {
        let at = geometry.bucket_start(geometry.journal_bucket(index));
        let bytes = cache.peek(SectorRange::new(at, u64::from(geometry.bucket_sectors)));
        for (offset, entry) in scan_bucket_strictly(&geometry, &bytes).expect("a good journal") {
            let Padding::Bound(mark) = entry.padding else {
                panic!("{:?} is ubcache's", entry.seq)
            };
            let entry = JournalEntry { padding: Padding::Unbound(mark), ..entry };
            cache.poke(at + u64::from(offset) / SECTOR_BYTES, &encode_entry(&geometry, &entry));
        }
    }
}

/// 0.1 did not bind its marks to their entries. Two of them in a row in one journal bucket are its
/// own all the same: the cache stays warm over an upgrade.
#[test]
fn set_of_version_0_1_keeps_its_clean_data() {
    let world = SimWorld::new(WorldConfig::new(1));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", 64 * 600));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SLOTS * STEP + OFFSET));
    let env = world.new_instance();
    let ended = world.run(async move {
        used_set(&env, &cache, &backing).await;
        as_0_1_left_it(&cache);
        let (set, volume) = open(&env, &cache, &backing, false).await;
        assert_eq!(set.taken_over(), None);
        assert_eq!((get(&volume, 0).await, get(&volume, 1).await), (1, 2));
        assert_eq!(volume.status().stats.cache_misses, 0, "clean data was kept");
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

#[test]
fn take_over_with_keep_clean_keeps_clean_data() {
    let world = SimWorld::new(WorldConfig::new(1));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", 64 * 600));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SLOTS * STEP + OFFSET));
    let env = world.new_instance();
    let ended = world.run(async move {
        used_set(&env, &cache, &backing).await;
        driver_ran_it(&cache, &backing, Padded::Anyhow).await;
        let (set, volume) = open(&env, &cache, &backing, true).await;
        let kept = TakenOver { from: FormerRun::Driver, dropped_bytes: None };
        assert_eq!((set.taken_over(), get(&volume, 0).await), (Some(kept), 1));
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

#[test]
fn power_failure_during_take_over_leaves_no_stale_data() {
    let mut cut_short = 0;
    for step in 0..400 {
        let world = SimWorld::new(WorldConfig::new(step));
        let cache = SimDisk::new(&world, DiskConfig::new("cache", 64 * 600));
        let backing = SimDisk::new(&world, DiskConfig::new("backing", SLOTS * STEP + OFFSET));
        let env = world.new_instance();
        let handle = env.clone();
        let (cache2, backing2) = (cache.clone(), backing.clone());
        let opened = world.run(async move {
            used_set(&env, &cache2, &backing2).await;
            driver_ran_it(&cache2, &backing2, Padded::WithOurMark).await;
            let life = env.sleep(Nanos::from_micros(step * 25));
            let opening = open(&env, &cache2, &backing2, false);
            matches!(first(opening, life).await, ubcache_env::local::Either::Left(_))
        });
        cut_short += u64::from(!opened.expect("it ends"));
        world.kill(&handle);
        cache.power_failure();
        backing.power_failure();
        let env = world.new_instance();
        let ended = world.run(async move {
            let (_set, volume) = open(&env, &cache, &backing, false).await;
            for slot in 0..SLOTS {
                let expected = if slot % 2 == 0 { 9 } else { 2 };
                assert_eq!(get(&volume, slot).await, expected, "step {step} slot {slot}");
            }
        });
        ended.unwrap_or_else(|stuck| panic!("step {step}: {stuck:?}\n{}", world.waiting()));
    }
    assert!((50..400).contains(&cut_short), "the starts take a while: {cut_short} were cut short");
}
