//! No work of one poll grows with the cache. At 4 TiB one poll took 1.7 s to choose buckets to
//! evict, and no request was served meanwhile: all buckets were examined between two awaits.

use ubcache_bench::polls::{STEPS_MAX, longest_polls};

#[test]
fn the_longest_poll_does_not_grow_with_the_cache() {
    for gib in [64, 1024] {
        let stages = longest_polls(gib << 30).expect("a good set");
        for stage in &stages {
            println!("{gib} GiB: {}", stage.json());
        }
        for stage in &stages {
            let (name, longest) = (stage.name, &stage.longest);
            assert!(longest.polls > 0, "{name} at {gib} GiB: nothing happened");
            assert!(
                longest.steps <= STEPS_MAX,
                "{name} at {gib} GiB: {longest:?}, {STEPS_MAX} steps at most"
            );
        }
        let most = stages.iter().map(|stage| stage.longest.steps).max();
        assert!(most >= Some(10_000), "steps are counted: {most:?}");
    }
}
