//! What the engine allocates, counted: the counts are the same on every machine.

use ubcache_bench::allocations::{Allocations, Counting};
use ubcache_bench::engine::{Bench, Cost, Load};
use ubcache_engine::SetOptions;

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
    assert!(hit.allocations <= ALLOCATIONS_PER_HIT_MAX, "{} allocations for a hit", hit.allocations);
    assert_eq!(hit.cache.reads, hit.requests, "one read of the cache device for a hit");
    assert_eq!((hit.backing.reads, hit.backing.writes), (0, 0), "none of the backing device");
}

#[test]
fn loads_do_what_their_names_say() {
    let write = cost(Load::Write);
    assert!(write.cache.written_bytes >= write.requests * 4096, "{write:?}");
    let clean = cost(Load::WriteClean);
    assert!(clean.backing.writes > clean.requests / 2, "what is dirty is written back: {clean:?}");
    let miss = cost(Load::Miss);
    assert!(miss.backing.reads > miss.requests * 9 / 10, "{miss:?}");
    assert!(miss.cache.writes > miss.requests * 9 / 10, "a miss leaves a copy: {miss:?}");
}
