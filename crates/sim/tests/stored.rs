//! Backing devices on an object store: the engine over volumes whose rules are switched off one by
//! one (L4, L5 of docs/internals/coherence.md).

use ubcache_objects::StoreRules;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::{Outcome, RunOptions, run_plan};

fn run(seed: u64, store_rules: StoreRules) -> Option<Outcome> {
    let options = DrawOptions { faults: false, stored: true, ..DrawOptions::default() };
    let plan = draw(seed, options);
    let options = RunOptions { store_rules, ..RunOptions::default() };
    (!plan.stored.is_empty()).then(|| run_plan::<CacheSystem>(&plan, options))
}

fn is_found(mut seeds: std::ops::Range<u64>, rules: StoreRules) -> bool {
    let found = seeds.find(|seed| run(*seed, rules).is_some_and(|outcome| !outcome.is_good()));
    println!("{rules:?}: found by {found:?}");
    found.is_some()
}

#[test]
fn stores_that_are_late_and_old_writers_break_no_promise() {
    let mut marks = std::collections::BTreeSet::new();
    for seed in 0..60 {
        if let Some(outcome) = run(seed, StoreRules::default()) {
            assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
            marks.extend(outcome.marks.into_keys().filter(|mark| mark.starts_with("world_store")));
        }
    }
    let reached: Vec<&str> = marks.into_iter().collect();
    let expected = [
        "world_store_busy",
        "world_store_late_request",
        "world_store_lost_answer",
        "world_store_old_writer",
        "world_store_old_writer_refused",
    ];
    assert_eq!(reached, expected);
}

#[test]
fn names_without_the_epoch_of_their_writer_are_found() {
    assert!(is_found(0..100, StoreRules { names_without_epoch: true, ..StoreRules::default() }));
}

#[test]
fn a_root_that_an_old_writer_can_replace_is_found() {
    assert!(is_found(0..100, StoreRules { unconditional_root: true, ..StoreRules::default() }));
}

#[test]
fn a_flush_that_no_root_covers_is_found() {
    assert!(is_found(0..100, StoreRules { flush_without_root: true, ..StoreRules::default() }));
}
