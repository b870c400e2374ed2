//! Disks without a superblock: the engine over headers whose rules are switched off one by one (A9
//! of docs/internals/coherence.md).

use ubcache_env::joined::HeaderRules;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::{Outcome, RunOptions, run_plan};

fn run(seed: u64, header_rules: HeaderRules) -> Option<Outcome> {
    let options = DrawOptions { faults: false, ..DrawOptions::default() };
    let plan = draw(seed, options);
    let is_behind_header = (0..plan.volumes.len()).any(|volume| plan.is_behind_header(volume));
    let options = RunOptions { header_rules, ..RunOptions::default() };
    is_behind_header.then(|| run_plan::<CacheSystem>(&plan, options))
}

fn is_found(mut seeds: std::ops::Range<u64>, rules: HeaderRules) -> bool {
    let found = seeds.find(|seed| run(*seed, rules).is_some_and(|outcome| !outcome.is_good()));
    println!("{rules:?}: found by {found:?}");
    found.is_some()
}

#[test]
fn disks_behind_headers_break_no_promise() {
    let mut runs = 0;
    for seed in 0..200 {
        if let Some(outcome) = run(seed, HeaderRules::default()) {
            assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
            runs += 1;
        }
    }
    assert!(runs > 10, "{runs} plans have such a disk");
}

#[test]
fn a_header_that_says_after_a_write_that_there_was_one_is_found() {
    assert!(is_found(0..400, HeaderRules { marked_late: true, ..HeaderRules::default() }));
}

#[test]
fn a_header_that_forgets_with_the_power_that_its_disk_was_written_is_found() {
    assert!(is_found(0..800, HeaderRules { marked_not_durably: true, ..HeaderRules::default() }));
}

#[test]
fn a_header_that_does_not_mark_the_places_that_are_written_is_found() {
    assert!(is_found(0..400, HeaderRules { places_not_marked: true, ..HeaderRules::default() }));
}
