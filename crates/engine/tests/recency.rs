//! Data that was used lately before a stop is not the first to go after the start.

mod support;

use support::{STEP, format, open};
use ubcache_engine::CachedVolume;
use ubcache_env::{Sector, SectorRange, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const SLOTS: u64 = 1200;

/// Reads every slot; says how many were hits.
async fn read(volume: &CachedVolume<SimEnv>, slots: impl Iterator<Item = u64>) -> u64 {
    let before = volume.status().stats.cache_hits;
    for slot in slots {
        let range = SectorRange::new(Sector(slot * STEP), STEP);
        volume.read(StreamId(slot), range).await.expect("reads");
    }
    volume.status().stats.cache_hits - before
}

#[test]
fn hot_data_outlives_cold_data_across_a_restart() {
    let world = SimWorld::new(WorldConfig::new(3));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", 16 * 1024));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SLOTS * STEP + 16));
    let env = world.new_instance();
    let ended = world.run(async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        // Cold data lies in lower buckets and in higher ones than hot data.
        let cold = || (0..200).chain(400..600);
        let hot = || 200..400;
        read(&volume, cold().take(200)).await;
        read(&volume, hot()).await;
        read(&volume, cold().skip(200)).await;
        volume.flush(StreamId(1)).await.expect("flushes");
        assert_eq!(read(&volume, hot()).await, 200, "all of it was cached");
        set.stop().await.expect("stops");
        let (set, volume) = open(&env, &cache, &backing).await;
        // Half of what is cached has to make room.
        read(&volume, 600..1100).await;
        volume.flush(StreamId(1)).await.expect("flushes");
        let (hot, cold) = (read(&volume, hot()).await, read(&volume, cold()).await);
        assert!(hot >= 190, "{hot} of 200 hot pieces are left, and {cold} of 400 cold ones");
        assert!(cold <= 200, "{cold} of 400 cold pieces are left although {hot} hot ones are");
        let stats = set.attribute("priority_stats").expect("an attribute");
        let quantiles =
            stats.split_once("Quantiles:\t[").expect("the last line").1.trim_end_matches(']');
        let ages: Vec<u32> =
            quantiles.split(' ').map(|age| age.parse().expect("a number")).collect();
        assert!(ages.len() == 31 && ages.is_sorted() && ages[30] > ages[0], "{stats}");
        set.stop().await.expect("stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}
