//! The engine's estimate of hit ratios, from a sample of live traffic, against the whole load.

use ubcache_bench::BLOCK_BYTES;
use ubcache_bench::curve::Curve;
use ubcache_bench::generate::Load;
use ubcache_bench::through_engine::{Cache, replay};

/// Largest error of an estimate. The blocks of this load are few, and one of 128 is followed: of
/// more blocks the error is smaller (docs/guide/tune.md).
const ERROR_MAX: f64 = 0.06;

#[test]
fn estimates_of_the_engine_agree_with_a_replay_of_the_load() {
    let load = Load {
        blocks: 200_000,
        skew: 0.8,
        requests: 200_000,
        scan_every: 0,
        scan_blocks: 0,
        writes_per_mille: 200,
        seed: 3,
    };
    let requests = load.requests();
    let (replayed, estimate) =
        replay(&requests, &Cache::of_size(64 << 20), "lru").expect("a good set");
    assert!(replayed.reads > 100_000);
    let whole = Curve::of(&requests, 1.0, || {});
    for mib in [16, 32, 64, 128, 256, 512] {
        let exact = whole.read_hits((mib << 20) / BLOCK_BYTES);
        let estimated = estimate.read_hits(mib << 20).expect("enough reads were followed");
        println!("{mib} MiB: {exact:.3}, estimated {estimated:.3}");
        assert!((exact - estimated).abs() < ERROR_MAX, "{mib} MiB: {exact} and {estimated}");
    }
    assert!(estimate.followed_blocks < 8192, "{estimate:?}");
}
