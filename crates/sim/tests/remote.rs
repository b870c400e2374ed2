//! Backing devices over the network: the engine over the client of NBD, whose rules are switched
//! off one by one (L1, L2 of docs/internals/coherence.md).

use ubcache_nbd::client::ClientRules;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::{Outcome, RunOptions, run_plan};

fn run(seed: u64, client_rules: ClientRules) -> Option<Outcome> {
    let options = DrawOptions { faults: false, remotes: true, ..DrawOptions::default() };
    let plan = draw(seed, options);
    let has_trouble = plan.remotes.iter().any(|remote| remote.budget > 0);
    let options = RunOptions { client_rules, ..RunOptions::default() };
    has_trouble.then(|| run_plan::<CacheSystem>(&plan, options))
}

#[test]
fn servers_that_cut_hang_and_die_break_no_promise() {
    for seed in 0..40 {
        if let Some(outcome) = run(seed, ClientRules::default()) {
            assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
        }
    }
}

#[test]
fn a_write_that_does_not_wait_for_a_fence_is_found() {
    let rules = ClientRules { no_fence: true, ..ClientRules::default() };
    let found = (100..600).any(|seed| run(seed, rules).is_some_and(|outcome| !outcome.is_good()));
    assert!(found, "no seed finds it");
}

#[test]
fn a_flush_over_what_a_server_has_lost_is_found() {
    let rules = ClientRules { no_replay: true, ..ClientRules::default() };
    let found = (0..100).any(|seed| run(seed, rules).is_some_and(|outcome| !outcome.is_good()));
    assert!(found, "no seed finds it");
}
