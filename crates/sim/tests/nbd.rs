//! The same clients and the same oracle, with an NBD server between them and the volumes.

use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::fake_systems::{self, FakeSystem};
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::plan::{Control, ControlAction, Frontend, NbdShape, Plan};
use ubcache_sim::{Outcome, RunOptions, System, run_plan};

fn behind_nbd(seed: u64, connections: u32, structured: bool) -> Plan {
    let mut plan = draw(seed, DrawOptions { ops_max: 150, faults: false, ..Default::default() });
    plan.frontend = Frontend::Nbd(NbdShape {
        connections,
        delay_max: ubcache_env::Nanos::from_micros(500),
        structured,
        requests: 4,
        inflight_bytes: 8192,
        receive_bytes: 64,
    });
    plan.controls.retain(|control| !matches!(control.action, ControlAction::Disconnect { .. }));
    // The fake systems know nothing of devices that are not what they were.
    plan.hands.clear();
    plan
}

fn run<S: System>(plan: &Plan) -> Outcome {
    run_plan::<S>(plan, RunOptions::default())
}

#[test]
fn seeds_pass_behind_an_nbd_server() {
    for seed in 0..24 {
        let plan = behind_nbd(seed, 1 + seed as u32 % 3, seed % 2 == 0);
        let outcome = run::<CacheSystem>(&plan);
        assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
        assert_eq!(outcome.errors, 0, "nothing was cut");
    }
}

/// Requests that are cut fail, now and then; nothing else does, and what they did is as with any
/// error.
#[test]
fn cut_connections_are_reopened() {
    let mut cut = 0;
    for seed in 0..24 {
        let mut plan = behind_nbd(seed, 1 + seed as u32 % 3, seed % 2 == 0);
        let ops = plan.ops.len() as u64;
        for part in 0..8 {
            let after_ops = ops * part / 8;
            let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
            let action = ControlAction::Disconnect { volume: 0 };
            let delay = ubcache_env::Nanos::from_micros(20 << part);
            plan.controls.insert(at, Control { after_ops, delay, action });
        }
        let outcome = run::<CacheSystem>(&plan);
        assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
        cut += outcome.errors;
    }
    assert!(cut > 10, "only {cut} requests were cut");
}

/// A faulty volume is seen through a server, too.
#[test]
fn oracle_finds_violations_behind_a_server() {
    // The fake systems do whole blocks only.
    let for_fakes = |seed| {
        let mut plan = behind_nbd(seed, 2, true);
        plan.round_to_blocks();
        plan
    };
    let fails = |run: fn(&Plan) -> Outcome| (0..40).any(|seed| !run(&for_fakes(seed)).is_good());
    for seed in 0..40 {
        let outcome = run::<FakeSystem<fake_systems::None>>(&for_fakes(seed));
        assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
    }
    assert!(fails(run::<FakeSystem<fake_systems::LostWrite>>));
    assert!(fails(run::<FakeSystem<fake_systems::EarlyReply>>));
    assert!(fails(run::<FakeSystem<fake_systems::IdleFlush>>));
}
