//! Flash-only volumes: what is durable of them, what becomes of a full cache, and their sizes.

mod support;

use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::{CacheSet, EngineError, FlashVolume};
use ubcache_env::{Buf, IoError, Sector, SectorRange, StreamId, Volume, VolumeError};
use ubcache_format::{OwnPolicy, Uuid};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const STREAM: StreamId = StreamId(1);
const ENOSPC: VolumeError = VolumeError::Io(IoError::Os(28));

/// A world with a cache device and a backing device.
fn world() -> (SimWorld, SimDisk, SimDisk) {
    let world = SimWorld::new(WorldConfig::new(5));
    let disk = |name: &str, sectors| {
        let config = DiskConfig { volatile_cache: true, ..DiskConfig::new(name, sectors) };
        SimDisk::new(&world, config)
    };
    let cache = disk("cache", STEP * u64::from(BUCKETS));
    let backing = disk("backing", 16 + 4096);
    (world, cache, backing)
}

/// Runs a task to its end, and then nothing of its instance any more.
fn run<F: Future<Output = ()> + 'static>(world: &SimWorld, main: impl FnOnce(SimEnv) -> F) {
    let env = world.new_instance();
    world.run(main(env.clone())).expect("it ends");
    world.kill(&env);
}

fn range(start: u64, sectors: u64) -> SectorRange {
    SectorRange::new(Sector(start), sectors)
}

fn filled(sectors: u64, value: u8) -> Buf {
    let mut data = Buf::for_sectors(sectors);
    data.as_mut_slice().fill(value);
    data
}

async fn write(volume: &impl Volume, at: SectorRange, value: u8) -> Result<(), VolumeError> {
    volume.write(STREAM, at, filled(at.sectors(), value).into(), false).await
}

/// The value of all bytes of a range.
async fn value<V: Volume>(volume: &V, at: SectorRange) -> u8 {
    let data = volume.read(STREAM, at).await.expect("reads").to_buf();
    assert!(data.as_slice().iter().all(|byte| *byte == data.as_slice()[0]), "{at} is of one write");
    data.as_slice()[0]
}

fn serve(set: &CacheSet<SimEnv>, uuid: Uuid) -> Rc<FlashVolume<SimEnv>> {
    set.open_flash(uuid, "scratch", false).expect("it is there")
}

fn only(set: &CacheSet<SimEnv>) -> Uuid {
    set.flash_volumes()[0].uuid
}

#[test]
fn flushed_data_survives_a_power_failure_and_the_rest_reads_as_zeroes() {
    let (world, cache, backing) = world();
    let disks = (cache.clone(), backing.clone());
    run(&world, |env| async move {
        let (cache, backing) = disks;
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, _volume) = open(&env, &cache, &backing).await;
        let uuid = set.create_flash("scratch", 1024).await.expect("a slot is free");
        let volume = serve(&set, uuid);
        assert_eq!(value(&volume, range(0, 1024)).await, 0, "nothing was written");
        write(&volume, range(8, 64), 7).await.expect("there is room");
        volume.discard(STREAM, range(16, 8), false).await.expect("it goes");
        volume.flush(STREAM).await.expect("it is durable");
        let parts = volume.block_status(range(0, 80)).await.expect("a status");
        let holes: Vec<_> = parts.iter().map(|(part, status)| (part.end.0, status.hole)).collect();
        assert_eq!(holes, [(8, true), (16, false), (24, true), (72, false), (80, true)]);
        cache.power_failure();
        backing.power_failure();
    });
    run(&world, |env| async move {
        let (set, _volume) = open(&env, &cache, &backing).await;
        let volume = serve(&set, only(&set));
        assert_eq!(value(&volume, range(8, 8)).await, 7);
        assert_eq!(value(&volume, range(16, 8)).await, 0);
        assert_eq!(value(&volume, range(24, 48)).await, 7);
        assert_eq!(volume.status().used_bytes, 56 * 512);
        set.stop().await.expect("stops");
    });
}

/// N6: a volume larger than the cache takes what it may have. Then writes fail at once, others and
/// a restart go on, and discards make room again.
#[test]
fn full_cache_refuses_writes_and_everything_else_goes_on() {
    let (world, cache, backing) = world();
    let disks = (cache.clone(), backing.clone());
    let all = STEP * u64::from(BUCKETS);
    run(&world, move |env| async move {
        let (cache, backing) = disks;
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, other) = open(&env, &cache, &backing).await;
        let uuid = set.create_flash("scratch", 2 * all).await.expect("a slot is free");
        let volume = serve(&set, uuid);
        let mut at = 0;
        let refused = loop {
            match write(&volume, range(at, 64), 1).await {
                Ok(()) => at += 64,
                Err(error) => break error,
            }
            assert!(at < all, "it can't have more than there is");
        };
        assert_eq!(refused, ENOSPC);
        assert!(at > all * 3 / 4, "most of the cache is for it: {at} sectors");
        for slot in 0..64 {
            write(&other, range(slot * 8, 8), 9).await.expect("other volumes go on");
            assert_eq!(value(&other, range(slot * 8, 8)).await, 9);
        }
        set.trigger_gc().await.expect("so does garbage collection");
        set.stop().await.expect("and a stop");
        assert!(at.is_multiple_of(64));
    });
    run(&world, move |env| async move {
        let (set, other) = open(&env, &cache, &backing).await;
        assert_eq!(value(&other, range(0, 8)).await, 9);
        let volume = serve(&set, only(&set));
        let used = volume.status().used_bytes / 512;
        assert_eq!(write(&volume, range(used, 512), 1).await, Err(ENOSPC), "still full");
        volume.discard(STREAM, range(0, 2048), false).await.expect("a discard needs no room");
        let mut written = 0;
        while write(&volume, range(written, 64), 2).await.is_ok() {
            written += 64;
        }
        assert!(written >= 1536, "{written} sectors of 2048 were there to be written again");
        assert_eq!(value(&volume, range(0, written)).await, 2);
        set.stop().await.expect("stops");
    });
}

/// Y2: what a shorter volume has lost does not come back when it is longer again.
#[test]
fn longer_volume_reads_as_zeroes_where_it_was_cut_off() {
    let (world, cache, backing) = world();
    run(&world, |env| async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, _volume) = open(&env, &cache, &backing).await;
        let uuid = set.create_flash("scratch", 256).await.expect("a slot is free");
        let volume = serve(&set, uuid);
        write(&volume, range(100, 100), 3).await.expect("there is room");
        let refused = set.resize_flash(uuid, 128, false).await;
        assert!(matches!(refused, Err(EngineError::HasFlashData(bytes)) if bytes == 72 * 512));
        assert_eq!(set.resize_flash(uuid, 128, true).await.ok(), Some(72 * 512));
        assert_eq!(volume.info().sectors, 128);
        assert!(volume.read(STREAM, range(120, 16)).await.is_err(), "it ends before");
        assert_eq!(set.resize_flash(uuid, 512, false).await.ok(), Some(0));
        assert_eq!(value(&volume, range(100, 28)).await, 3);
        assert_eq!(value(&volume, range(128, 384)).await, 0);
        set.stop().await.expect("stops");
    });
}

#[test]
fn removed_volume_gives_its_room_back_and_is_gone_after_a_restart() {
    let (world, cache, backing) = world();
    let disks = (cache.clone(), backing.clone());
    run(&world, |env| async move {
        let (cache, backing) = disks;
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, _volume) = open(&env, &cache, &backing).await;
        let uuid = set.create_flash("scratch", 4096).await.expect("a slot is free");
        let volume = serve(&set, uuid);
        write(&volume, range(0, 1024), 3).await.expect("there is room");
        let room = set.status().flash_room_bytes;
        let refused = set.remove_flash(uuid, false).await;
        assert!(matches!(refused, Err(EngineError::HasFlashData(bytes)) if bytes == 1024 * 512));
        assert_eq!(set.remove_flash(uuid, true).await.ok(), Some(1024 * 512));
        assert!(volume.read(STREAM, range(0, 8)).await.is_err(), "it has ended");
        assert!(set.flash_volumes().is_empty());
        set.trigger_gc().await.expect("its keys go");
        assert!(set.status().flash_room_bytes > room, "its buckets are free");
        set.stop().await.expect("stops");
    });
    run(&world, |env| async move {
        let (set, _volume) = open(&env, &cache, &backing).await;
        assert!(set.flash_volumes().is_empty() && set.absent().is_empty());
        set.stop().await.expect("stops");
    });
}
