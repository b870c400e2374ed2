//! The engine against an array: one client, no faults, restarts and power failures after flushes.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions, Tuning};
use ubcache_env::{Buf, Device, Durability, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, Replacement, Superblock, Uuid};
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimEnv, SimWorld, WorldConfig};

const SECTORS: u64 = 2048;

struct Shape {
    bucket: u32,
    block: u32,
    buckets: u32,
}

async fn format(cache: &SimDisk, backing: &SimDisk, shape: &Shape, mode: CacheMode) {
    let set = Uuid([7; 16]);
    let superblock = Superblock::new_cache(
        Uuid([1; 16]),
        set,
        shape.block,
        shape.bucket,
        shape.buckets,
        Replacement::Lru,
        false,
    );
    let write = |bytes: Vec<u8>| Buf::from_bytes(&bytes).into();
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    let superblock =
        Superblock::new_backing(Uuid([2; 16]), set, shape.block, Sector(16), mode, "smoke");
    backing
        .write(Sector(8), write(superblock.encode()), Durability::Fua)
        .await
        .expect("a good disk");
}

async fn open(
    env: &SimEnv,
    cache: &SimDisk,
    backing: &SimDisk,
    tuning: &Tuning,
) -> (CacheSet<SimEnv>, Rc<CachedVolume<SimEnv>>) {
    let options = SetOptions { tuning: tuning.clone(), ..SetOptions::default() };
    let set = CacheSet::open(env.clone(), cache.clone(), options).await.expect("the set opens");
    let volume =
        set.attach(backing.clone(), AttachOptions::default()).await.expect("the volume attaches");
    (set, volume)
}

fn run(seed: u64, shape: Shape, mode: CacheMode, node_keys_max: Option<usize>) {
    let world = SimWorld::new(WorldConfig::new(seed));
    let cache =
        SimDisk::new(&world, DiskConfig::new("cache", u64::from(shape.bucket * shape.buckets)));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", SECTORS + 16));
    let tuning = Tuning { node_keys_max, ..Tuning::default() };
    let mut model = vec![0u8; SECTORS as usize];
    let mut rng = Rng::new(seed);
    {
        let (cache, backing) = (cache.clone(), backing.clone());
        world.run(async move { format(&cache, &backing, &shape, mode).await }).expect("formats");
    }
    for round in 0..4 {
        let env = world.new_instance();
        let handle = env.clone();
        let (cache2, backing2, tuning2) = (cache.clone(), backing.clone(), tuning.clone());
        let (mut before, mut dice) = (model.clone(), Rng::new(rng.bits()));
        let stop = round % 2 == 0;
        model = world
            .run(async move {
                let (set, volume) = open(&env, &cache2, &backing2, &tuning2).await;
                for step in 0..400u64 {
                    let len = dice.scale(1, 64);
                    let range = SectorRange::new(Sector(dice.below(SECTORS - len)), len);
                    let cells = range.start.0 as usize..range.end.0 as usize;
                    match dice.below(10) {
                        0..5 => {
                            let value = 1 + (step % 250) as u8;
                            let mut data = Buf::for_sectors(len);
                            data.as_mut_slice().fill(value);
                            volume
                                .write(StreamId(1), range, data.into(), dice.chance(1, 10))
                                .await
                                .expect("writes");
                            before[cells].fill(value);
                        }
                        5 => {
                            volume
                                .write_zeroes(StreamId(1), range, false, true)
                                .await
                                .expect("zeroes");
                            before[cells].fill(0);
                        }
                        _ => check(&volume, range, &before[cells], seed, step).await,
                    }
                    match step {
                        100 => set.trigger_gc().await.expect("collects"),
                        200 => set.evict_all_clean().await.expect("evicts"),
                        _ => {}
                    }
                }
                volume.flush(StreamId(1)).await.expect("flushes");
                if stop {
                    set.stop().await.expect("stops");
                }
                before
            })
            .unwrap_or_else(|stuck| {
                panic!("seed {seed} round {round}: {stuck:?}\n{}", world.waiting())
            });
        world.kill(&handle);
        if !stop {
            cache.power_failure();
            backing.power_failure();
        }
    }
    let env = world.new_instance();
    world
        .run(async move {
            let (_set, volume) = open(&env, &cache, &backing, &tuning).await;
            for at in (0..SECTORS).step_by(64) {
                let range = SectorRange::new(Sector(at), 64);
                check(&volume, range, &model[at as usize..at as usize + 64], seed, 9999).await;
            }
        })
        .expect("the last look");
    let marks: Vec<_> = world.marks().into_iter().collect();
    println!("seed {seed}: {marks:?}");
}

async fn check(
    volume: &CachedVolume<SimEnv>,
    range: SectorRange,
    expected: &[u8],
    seed: u64,
    step: u64,
) {
    let data = volume.read(StreamId(1), range).await.expect("reads").to_buf();
    for (index, sector) in data.as_slice().chunks_exact(512).enumerate() {
        let value = expected[index];
        assert!(
            sector.iter().all(|&byte| byte == value),
            "seed {seed} step {step}: sector {} of {range} holds {}, expected {value}",
            range.start.0 + index as u64,
            sector[0]
        );
    }
}

#[test]
fn volume_agrees_with_an_array_across_restarts() {
    for seed in 0..12 {
        for mode in
            [CacheMode::Writethrough, CacheMode::Writeback, CacheMode::Writearound, CacheMode::None]
        {
            run(seed, Shape { bucket: 16, block: 1, buckets: 600 }, mode, Some(12));
            run(seed, Shape { bucket: 64, block: 8, buckets: 520 }, mode, None);
        }
    }
}

#[test]
fn volume_agrees_with_an_array_with_tiny_nodes() {
    for seed in 0..8 {
        for mode in [CacheMode::Writethrough, CacheMode::Writeback] {
            run(seed, Shape { bucket: 8, block: 1, buckets: 1200 }, mode, Some(8));
            run(seed, Shape { bucket: 8, block: 8, buckets: 2000 }, mode, None);
        }
    }
}
