//! The simulator finds every rule of the engine that is broken on purpose, and nothing in the
//! engine as it is.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ubcache_engine::Mutant;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::find_mutants::find_mutant;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::{RunOptions, run_plan};

/// Each mutant is found within these, which find nothing in the engine as it is.
const SEEDS: std::ops::Range<u64> = 0..2000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_mutant_is_found() {
    let next = AtomicUsize::new(0);
    let survivors = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(&mutant) = Mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match find_mutant(mutant, SEEDS) {
                        Some(found) => {
                            println!(
                                "{}: seed {}: {}",
                                mutant.name(),
                                found.seed,
                                found.violation.kind
                            )
                        }
                        None => survivors.lock().expect("no panic").push(mutant.name()),
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner().expect("no panic");
    assert!(survivors.is_empty(), "not found in seeds {SEEDS:?}: {survivors:?}");
}

/// Some of them, in this build: all are run by the simulator itself (`cargo xtask test`).
#[test]
fn unmutated_engine_passes_the_same_seeds() {
    let next = AtomicU64::new(SEEDS.start);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(10, Ordering::Relaxed);
                    if seed >= SEEDS.end {
                        return;
                    }
                    let outcome = run_plan::<CacheSystem>(
                        &draw(seed, DrawOptions::default()),
                        RunOptions::default(),
                    );
                    assert!(outcome.is_good(), "seed {seed}: {}", outcome.violations[0].report);
                }
            });
        }
    });
}
