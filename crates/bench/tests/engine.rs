//! Allocations of the engine, counted: the counts are the same on every machine.

use ubcache_bench::allocations::{Allocations, Counting};
use ubcache_bench::engine::{Bench, Cost, Load};
use ubcache_bench::null::{NullWorld, Rig, Shape};
use ubcache_engine::SetOptions;
use ubcache_format::CacheMode;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the engine for a read hit: none, but for the pool of buffers that grows at first.
const ALLOCATIONS_PER_HIT_MAX: f64 = 0.01;

fn cost(load: Load) -> Cost {
    let mut bench = Bench::new(load, 16 << 20, SetOptions::default()).expect("a good set");
    bench.measure(20_000, 10)
}

#[test]
fn the_counting_allocator_counts() {
    let before = Allocations::now();
    let one = std::hint::black_box(vec![1_u8; 1000]);
    let during = Allocations::now().since(before);
    assert_eq!((during.count, during.bytes, during.live_bytes), (1, 1000, 1000));
    drop(one);
    assert_eq!(Allocations::now().since(before).live_bytes, 0);
}

#[test]
fn a_read_hit_allocates_nothing() {
    let hit = cost(Load::Hit);
    assert!(
        hit.allocations <= ALLOCATIONS_PER_HIT_MAX,
        "{} allocations for a hit",
        hit.allocations
    );
    assert_eq!(hit.cache.reads, hit.requests, "one read of the cache device for a hit");
    assert_eq!((hit.backing.reads, hit.backing.writes), (0, 0), "none of the backing device");
}

#[test]
fn each_load_does_the_requests_of_its_name() {
    let write = cost(Load::Write);
    assert!(write.cache.written_bytes >= write.requests * 4096, "{write:?}");
    let clean = cost(Load::WriteClean);
    assert!(clean.backing.writes > clean.requests / 2, "what is dirty is written back: {clean:?}");
    let miss = cost(Load::Miss);
    assert!(miss.backing.reads > miss.requests * 9 / 10, "{miss:?}");
    assert!(miss.cache.writes > miss.requests * 9 / 10, "a miss leaves a copy: {miss:?}");
}

#[test]
fn a_full_cache_serves_before_it_is_counted() {
    let shape = Shape {
        cache_bytes: 256 << 20,
        bucket_sectors: 128,
        volume_bytes: 512 << 20,
        mode: CacheMode::Writethrough,
        options: SetOptions::default(),
    };
    let rig = Rig::new(&shape).expect("a good set");
    rig.fill(0, shape.volume_bytes, 4096);
    assert!(
        rig.set.status().btree_leaves > 20,
        "there is something to read: {:?}",
        rig.set.status()
    );
    // The machine loses power, and comes back.
    let world = NullWorld::new(2);
    let (cache, backing) = (rig.cache.in_world(world.env()), rig.backing.in_world(world.env()));
    let rig = Rig::open(world, cache, backing, &shape.options).expect("a good set");
    assert!(!rig.set.status().counted, "nobody waits for the count: {:?}", rig.set.status());
    rig.world.run(rig.read(0, 4096));
}
