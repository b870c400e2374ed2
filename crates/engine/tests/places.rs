//! Reads to memory that only the cache device can reach.

mod support;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::CachedVolume;
use ubcache_env::{Buf, Sector, SectorRange, StreamId, Volume, VolumeError};
use ubcache_format::OwnPolicy;
use ubcache_sim::{DiskConfig, ForeignPage, SimDisk, SimEnv, SimWorld, WorldConfig};

const SECTORS: u64 = 64 * STEP;

/// Reads to a place: the data, wherever it went, and true if it went to the place.
async fn read(
    env: &SimEnv,
    volume: &CachedVolume<SimEnv>,
    range: SectorRange,
) -> Result<(Vec<u8>, bool), VolumeError> {
    let (page, place) = ForeignPage::new(env, range.bytes() as usize);
    let data = volume.read_into(StreamId(1), range, place).await?;
    Ok(match data.is_empty() {
        true => (page.content(), true),
        false => (data.to_buf().as_slice().to_vec(), false),
    })
}

/// Data that differs from sector to sector.
fn content(range: SectorRange, round: u8) -> Vec<u8> {
    let sectors = range.start.0..range.end.0;
    sectors.flat_map(|at| [round ^ (at % 251) as u8; 512]).collect()
}

async fn write(volume: &CachedVolume<SimEnv>, range: SectorRange, round: u8) {
    let data = Buf::from_bytes(&content(range, round));
    volume.write(StreamId(1), range, data.into(), false).await.expect("writes");
}

fn run<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(SimEnv, SimDisk, SimDisk) -> F + 'static,
) {
    let world = SimWorld::new(WorldConfig::new(5));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SECTORS + 16));
    let env = world.new_instance();
    let ended = world.run(test(env, cache, backing));
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

#[test]
fn what_the_cache_has_in_one_place_or_in_several_is_read_to_the_place() {
    run(|env, cache, backing| async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        volume.set_attribute("cache_mode", "writeback").expect("a mode");
        // Two writes, so two places.
        let (first, second) = (SectorRange::new(Sector(0), 8), SectorRange::new(Sector(8), 16));
        write(&volume, first, 1).await;
        write(&volume, second, 2).await;
        let both = SectorRange::from_bounds(first.start, second.end);
        let expected = [content(first, 1), content(second, 2)].concat();
        let (mut there, mut copied) = (0, 0);
        for _ in 0..64 {
            let (data, placed) = read(&env, &volume, first).await.expect("reads");
            assert_eq!(data, content(first, 1));
            there += u32::from(placed);
            let (data, placed) = read(&env, &volume, both).await.expect("reads");
            assert_eq!(data, expected);
            there += u32::from(placed);
            copied += u32::from(!placed);
        }
        assert!(there > 96, "{there} of 128 went to the place");
        assert!(copied > 0, "the disk could read to every place");
        // A part of it is not in the cache.
        let more = SectorRange::from_bounds(first.start, Sector(second.end.0 + 8));
        let (data, placed) = read(&env, &volume, more).await.expect("reads");
        assert!(!placed && data[..expected.len()] == expected);
        set.stop().await.expect("stops");
    });
}

#[test]
fn clean_data_that_the_cache_cant_return_comes_from_the_disk_and_dirty_data_fails() {
    run(|env, cache, backing| async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        let range = SectorRange::new(Sector(0), 8);
        write(&volume, range, 3).await;
        volume.flush(StreamId(1)).await.expect("flushes");
        read(&env, &volume, range).await.expect("reads");
        let before = volume.status().stats.cache_read_retries;
        let whole = SectorRange::new(Sector(STEP * 2), STEP * (u64::from(BUCKETS) - 2));
        cache.make_bad(whole);
        let (data, placed) = read(&env, &volume, range).await.expect("the disk has it");
        assert!(!placed && data == content(range, 3));
        assert_eq!(volume.status().stats.cache_read_retries, before + 1);
        cache.heal(whole);
        volume.set_attribute("cache_mode", "writeback").expect("a mode");
        volume.set_attribute("writeback_running", "0").expect("a switch");
        write(&volume, range, 4).await;
        cache.make_bad(whole);
        let failed = read(&env, &volume, range).await.expect_err("nobody else has it");
        assert!(matches!(failed, VolumeError::DirtyDataLost(_)), "{failed:?}");
        cache.heal(whole);
        set.stop().await.expect("stops");
    });
}
