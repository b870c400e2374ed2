//! The replacement policy: which one a set begins with and keeps, and what the scan-resistant one
//! does.

mod support;

use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::CachedVolume;
use ubcache_env::{Buf, Device, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{OwnPolicy, Replacement, Superblock};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const POLICY: &str = "cache_replacement_policy";

fn in_a_world<F: Future<Output = ()> + 'static>(
    slots: u64,
    test: impl FnOnce(SimEnv, SimDisk, SimDisk) -> F,
) {
    let world = SimWorld::new(WorldConfig::new(3));
    let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", slots * STEP + 16));
    let env = world.new_instance();
    let ended = world.run(test(env, cache, backing));
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
}

/// Reads these slots; says how many were hits.
async fn read(volume: &CachedVolume<SimEnv>, slots: impl Iterator<Item = u64>) -> u64 {
    let before = volume.status().stats.cache_hits;
    for slot in slots {
        let range = SectorRange::new(Sector(slot * STEP), STEP);
        volume.read(StreamId(slot), range).await.expect("reads");
    }
    volume.flush(StreamId(1)).await.expect("flushes");
    volume.status().stats.cache_hits - before
}

#[test]
fn set_starts_with_the_policy_of_its_superblock_and_keeps_changes() {
    for begins in [OwnPolicy::None, OwnPolicy::ScanResistant, OwnPolicy::Adaptive] {
        in_a_world(10, async move |env, cache, backing| {
            format(&cache, &backing, begins).await;
            let first = match begins {
                OwnPolicy::None => "[lru] fifo random scan-resistant two-queue adaptive",
                OwnPolicy::ScanResistant => "lru fifo random [scan-resistant] two-queue adaptive",
                _ => "lru fifo random scan-resistant two-queue [adaptive]",
            };
            for _ in 0..2 {
                let (set, _volume) = open(&env, &cache, &backing).await;
                assert_eq!(set.attribute(POLICY).as_deref(), Some(first));
                let bytes = cache.read(Sector(8), Buf::for_sectors(8)).await.0;
                let superblock = Superblock::parse(bytes.as_slice()).expect("a superblock");
                assert_eq!(
                    (superblock.label_str(), superblock.replacement()),
                    (String::new(), Replacement::Lru)
                );
                set.stop().await.expect("stops");
            }
            for policy in ["fifo", "scan-resistant", "two-queue", "adaptive", "lru"] {
                let (set, _volume) = open(&env, &cache, &backing).await;
                set.set_attribute(POLICY, policy).expect("sets");
                set.stop().await.expect("stops");
                let (set, _volume) = open(&env, &cache, &backing).await;
                let found = set.attribute(POLICY).expect("an attribute");
                assert!(found.contains(&format!("[{policy}]")), "{found}");
                set.stop().await.expect("stops");
            }
        });
    }
}

/// A fifth of the cache is used again and again, while scans as large as the cache come through.
async fn hits_beside_scans(
    env: SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    begins: OwnPolicy,
) -> u64 {
    const HOT: u64 = 200;
    const ROUNDS: u64 = 40;
    const SCAN: u64 = 250;
    format(&cache, &backing, begins).await;
    let (set, volume) = open(&env, &cache, &backing).await;
    let mut hits = 0;
    for round in 0..ROUNDS {
        let scan = HOT + round * SCAN..HOT + (round + 1) * SCAN;
        // Hot data is used every four rounds only, so that lru has forgotten it.
        hits += read(&volume, round % 4 * 50..(round % 4 + 1) * 50).await;
        read(&volume, scan).await;
    }
    set.stop().await.expect("stops");
    hits
}

#[test]
fn scans_do_not_empty_the_cache() {
    let counts = Rc::new(std::cell::RefCell::new(Vec::new()));
    for begins in [OwnPolicy::None, OwnPolicy::ScanResistant, OwnPolicy::Adaptive] {
        let counts = counts.clone();
        in_a_world(200 + 40 * 250, async move |env, cache, backing| {
            let hits = hits_beside_scans(env, cache, backing, begins).await;
            counts.borrow_mut().push(hits);
        });
    }
    let counts = counts.borrow();
    assert!(counts[0] < 200, "{counts:?}: lru has lost most of it when it comes again");
    assert!(counts[1] > 500, "{counts:?}: of 1800 uses a good part are hits");
    assert!(counts[2] > 500, "{counts:?}: the adaptive policy sees it");
}

/// Some blocks are used often, others now and then, wherever they are on the disk. Says which
/// policy leads in the end, and how many reads were hits.
async fn hits_of_a_skewed_load(
    env: SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    begins: OwnPolicy,
) -> (String, u64) {
    const SLOTS: u64 = 10_007;
    format(&cache, &backing, begins).await;
    let (set, volume) = open(&env, &cache, &backing).await;
    let mut random = 1_u64;
    let mut below_one = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 11) as f64 / (1_u64 << 53) as f64
    };
    let slots: Vec<u64> = (0..60_000)
        .map(|_| (below_one() * below_one() * below_one() * SLOTS as f64) as u64 * 7_919 % SLOTS)
        .collect();
    let mut hits = 0;
    for part in slots.chunks(200) {
        hits += read(&volume, part.iter().copied()).await;
    }
    let leader = set.attribute("cache_replacement_leader").expect("an attribute");
    set.stop().await.expect("stops");
    (leader, hits)
}

#[test]
fn adaptive_policy_takes_the_one_that_suits_the_load() {
    let found = Rc::new(std::cell::RefCell::new(Vec::new()));
    for begins in [OwnPolicy::None, OwnPolicy::TwoQueue, OwnPolicy::Adaptive] {
        let found = found.clone();
        in_a_world(10_007, async move |env, cache, backing| {
            let hits = hits_of_a_skewed_load(env, cache, backing, begins).await;
            found.borrow_mut().push(hits);
        });
    }
    let found = found.borrow();
    let leaders: Vec<&str> = found.iter().map(|(leader, _)| leader.as_str()).collect();
    assert_eq!(leaders, ["lru", "two-queue", "two-queue"], "{found:?}");
    let [lru, two_queue, adaptive] = [found[0].1, found[1].1, found[2].1];
    assert!(two_queue > lru && adaptive > lru + (two_queue - lru) / 2, "{found:?}");
}
