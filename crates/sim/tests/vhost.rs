//! The same clients and the same oracle, with the disk of a virtual machine between them and the
//! volumes.

use ubcache_env::Nanos;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::fake_systems::{self, FakeSystem};
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::plan::{Control, ControlAction, Frontend, Plan, VhostShape};
use ubcache_sim::{Outcome, RunOptions, System, run_plan};

fn in_guests(seed: u64) -> Plan {
    let mut plan = draw(seed, DrawOptions { ops_max: 150, faults: false, ..Default::default() });
    plan.frontend = Frontend::Vhost(VhostShape {
        queues: 1 + seed as u16 % 3,
        slots: [1, 2, 16][seed as usize / 3 % 3],
        delay_max: Nanos::from_micros([0, 500][seed as usize % 2]),
        pieces: 1 + seed as u16 % 6,
        indirect: seed.is_multiple_of(2),
        event_idx: !seed.is_multiple_of(3),
        memory_bytes: 4 << 20,
    });
    plan.controls.retain(|control| !matches!(control.action, ControlAction::Disconnect { .. }));
    // The fake systems know nothing of devices that are not what they were.
    plan.hands.clear();
    plan
}

fn cut_often(plan: &mut Plan) {
    // A write that is carried out again may find other data in the guest's memory.
    plan.scribble = false;
    let ops = plan.ops.len() as u64;
    for part in 0..8 {
        let after_ops = ops * part / 8;
        let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
        let action = ControlAction::Disconnect { volume: 0 };
        let delay = Nanos::from_micros(20 << part);
        plan.controls.insert(at, Control { after_ops, delay, action });
    }
}

fn run<S: System>(plan: &Plan) -> Outcome {
    run_plan::<S>(plan, RunOptions::default())
}

#[test]
fn seeds_pass_in_guests() {
    for seed in 0..24 {
        let outcome = run::<CacheSystem>(&in_guests(seed));
        assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
        assert_eq!(outcome.errors, 0);
    }
}

/// Guests see a pause, and no error.
#[test]
fn connections_that_break_are_not_seen_in_guests() {
    for seed in 0..24 {
        let mut plan = in_guests(seed);
        cut_often(&mut plan);
        let outcome = run::<CacheSystem>(&plan);
        assert!(outcome.is_good(), "seed {seed}: {:?}", outcome.violations);
        assert_eq!(outcome.errors, 0, "seed {seed}");
    }
}

/// A faulty volume is seen in a guest, too.
#[test]
fn oracle_finds_violations_in_guests() {
    // The fake systems do whole blocks only.
    let for_fakes = |seed| {
        let mut plan = in_guests(seed);
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

#[test]
fn a_plan_with_guests_is_printed_and_read_again() {
    let plan = in_guests(3);
    let text = plan.to_string();
    assert_eq!(text.parse::<Plan>().expect("it is a plan").to_string(), text);
}

/// A plan runs the same way every time.
#[test]
fn a_seed_with_guests_repeats_itself() {
    let mut plan = in_guests(7);
    cut_often(&mut plan);
    let (first, second) = (run::<CacheSystem>(&plan), run::<CacheSystem>(&plan));
    assert_eq!(first.hash, second.hash);
}
