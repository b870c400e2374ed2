//! Streams over a remote backing device are read ahead of (R6), in virtual time.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions, Tuning};
use ubcache_env::{
    Buf, Device, Distance, Durability, Env, IoVec, Nanos, Sector, SectorRange, StreamId, Volume,
};
use ubcache_format::{CacheMode, Replacement, Superblock, Uuid};
use ubcache_sim::{DiskConfig, Profile, SimDisk, SimEnv, SimWorld, WorldConfig};

const SECTORS: u64 = 64 << 11;
const OFFSET: u64 = 16;
/// Sectors of a read: 128 KiB.
const READ: u64 = 256;
const CLIENT: StreamId = StreamId(1);

type Opened = (CacheSet<SimEnv>, Rc<CachedVolume<SimEnv>>, SimDisk);

async fn open(world: &SimWorld, env: &SimEnv, distance: Distance) -> Opened {
    open_with(world, env, distance, Tuning::default()).await
}

async fn open_with(world: &SimWorld, env: &SimEnv, distance: Distance, tuning: Tuning) -> Opened {
    let cache = SimDisk::new(world, DiskConfig::new("cache", 256 * 1024));
    let config = DiskConfig::new("backing", SECTORS + OFFSET);
    let backing = SimDisk::new(world, DiskConfig { profile: Profile::Slow, distance, ..config });
    let set = Uuid([7; 16]);
    let write = |bytes: Vec<u8>| Buf::from_bytes(&bytes).into();
    let superblock =
        Superblock::new_cache(Uuid([1; 16]), set, 8, 256, 1024, Replacement::Lru, false);
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    let mode = CacheMode::Writearound;
    let superblock = Superblock::new_backing(Uuid([2; 16]), set, 8, Sector(OFFSET), mode, "v");
    backing
        .write(Sector(8), write(superblock.encode()), Durability::Fua)
        .await
        .expect("a good disk");
    let options = SetOptions { tuning, ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache, options).await.expect("opens");
    let attached = set.attach(backing.clone(), AttachOptions::default()).await;
    (set, attached.expect("the volume attaches"), backing)
}

fn in_a_world(test: impl AsyncFnOnce(&SimWorld, &SimEnv) + 'static) -> SimWorld {
    let world = SimWorld::new(WorldConfig::new(1));
    let env = world.new_instance();
    let inside = world.clone();
    let ended = world.run(async move { test(&inside, &env).await });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
    world
}

async fn read(volume: &CachedVolume<SimEnv>, at: u64) -> u8 {
    let range = SectorRange::new(Sector(at), READ);
    let data = volume.read(CLIENT, range).await.expect("reads").to_buf();
    let first = data.as_slice()[0];
    assert!(data.as_slice().iter().all(|byte| *byte == first), "one value at {at}");
    first
}

/// The time that a client takes for 16 MiB, one read after the other.
async fn time_of_a_stream(world: &SimWorld, env: &SimEnv, distance: Distance) -> Nanos {
    let (_set, volume, _) = open(world, env, distance).await;
    let began = env.now();
    for at in (0..16 << 11).step_by(READ as usize) {
        read(&volume, at).await;
    }
    env.now().since(began)
}

#[test]
fn stream_over_a_remote_disk_does_not_wait_for_each_request() {
    in_a_world(async |world, env| {
        let near = time_of_a_stream(world, env, Distance::Local).await;
        let far = time_of_a_stream(world, env, Distance::Remote).await;
        assert!(far.0 * 3 < near.0, "{far:?} with read-ahead, {near:?} without");
    });
}

#[test]
fn stream_sees_what_was_written_over_what_was_read_ahead() {
    let world = in_a_world(async |world, env| {
        let (_set, volume, _) = open(world, env, Distance::Remote).await;
        for at in (0..4 * READ).step_by(READ as usize) {
            assert_eq!(read(&volume, at).await, 0);
        }
        // The next pieces are there.
        env.sleep(Nanos::from_millis(200)).await;
        let mut ones = Buf::for_sectors(READ);
        ones.as_mut_slice().fill(1);
        let place = SectorRange::new(Sector(5 * READ), READ);
        volume.write(StreamId(2), place, IoVec::from(ones), false).await.expect("writes");
        assert_eq!(read(&volume, 4 * READ).await, 0);
        assert_eq!(read(&volume, 5 * READ).await, 1);
        assert_eq!(read(&volume, 6 * READ).await, 0);
    });
    assert!(world.marks().contains_key("read_ahead_used"));
    assert!(world.marks().contains_key("read_ahead_for_nothing"));
}

#[test]
fn nothing_is_kept_of_a_stream_that_has_ended() {
    let world = in_a_world(async |world, env| {
        let (set, volume, _) = open(world, env, Distance::Remote).await;
        volume.set_attribute("sequential_cutoff", "1k").expect("sets");
        for at in (0..8 * READ).step_by(READ as usize) {
            read(&volume, at).await;
        }
        assert!(set.held().in_flight > 0, "pieces wait");
        env.sleep(Nanos::from_secs(20)).await;
        assert_eq!(set.held().in_flight, 0);
    });
    assert!(world.marks().contains_key("read_ahead_unused"));
}

/// Defect: what waited for a stream that had ended kept all of the memory for five seconds, and the
/// next stream was not read ahead of.
#[test]
fn stream_that_has_ended_leaves_its_memory_to_the_next() {
    let world = in_a_world(async |world, env| {
        let tuning = Tuning { fill_bytes_max: 2 << 20, ..Tuning::default() };
        let (_set, volume, _) = open_with(world, env, Distance::Remote, tuning).await;
        volume.set_attribute("sequential_cutoff", "1k").expect("sets");
        let stream = async |first: u64| {
            let began = env.now();
            for at in 0..64 {
                read(&volume, first + at * READ).await;
            }
            env.now().since(began)
        };
        let alone = stream(0).await;
        let next = stream(SECTORS / 2).await;
        assert!(next.0 < alone.0 * 3 / 2, "{next:?} behind another stream, {alone:?} alone");
    });
    assert!(world.marks().contains_key("read_ahead_short_of_memory"));
}
