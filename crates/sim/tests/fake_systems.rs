//! The oracle accepts a right volume over thousands of seeds and finds what is wrong with wrong
//! ones.

use ubcache_sim::fake_systems::{self, FakeSystem};
use ubcache_sim::plan::ControlAction;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::{Outcome, Plan, RunOptions, run_plan, shrink};

fn run<R: fake_systems::Recipe>(plan: &Plan) -> Outcome {
    run_plan::<FakeSystem<R>>(plan, RunOptions::default())
}

/// Plans for fake systems, which know nothing of devices that are not what they were, nor whom to
/// tell of a flush that lost, and which have nothing that could become clean.
fn draw_for_fakes(seed: u64, faults: bool) -> Plan {
    let mut plan = draw(seed, DrawOptions { ops_max: 300, faults, ..DrawOptions::default() });
    plan.hands.clear();
    plan.round_to_blocks();
    plan.lossy.clear();
    plan.hammers.clear();
    // Every client of a fake system looks at its locks in each step.
    plan.ops.retain(|op| op.client < 4000);
    let waits = |action: &ControlAction| {
        matches!(action, ControlAction::Attribute { name,
        .. } if name.starts_with("until-"))
    };
    plan.controls.retain(|control| !waits(&control.action));
    plan
}

/// The first seed that finds the flaw, and what it says.
fn first_failure<R: fake_systems::Recipe>(faults: bool) -> (Plan, Outcome) {
    for seed in 0..3000 {
        let plan = draw_for_fakes(seed, faults);
        let outcome = run::<R>(&plan);
        if !outcome.is_good() {
            println!("{:?}: seed {seed}: {}", R::FLAW, outcome.violations[0].report);
            return (plan, outcome);
        }
    }
    panic!("no seed finds {:?}", R::FLAW);
}

#[test]
fn correct_toy_passes() {
    let (mut crashes, mut errors, mut lost) = (0, 0, 0);
    for seed in 0..3000 {
        let outcome = run::<fake_systems::None>(&draw_for_fakes(seed, true));
        assert!(outcome.is_good(), "seed {seed}: {}", outcome.violations[0].report);
        crashes += outcome.crashes;
        errors += outcome.errors;
        lost += outcome.backing.iter().map(|disk| disk.lost).sum::<u64>();
    }
    assert!(
        crashes > 1000 && errors > 1000 && lost > 10_000,
        "{crashes} crashes, {errors} errors, {lost} lost"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let mut hashes = Vec::new();
    for seed in 0..100 {
        let plan = draw_for_fakes(seed, true);
        let (one, two) = (run::<fake_systems::None>(&plan), run::<fake_systems::None>(&plan));
        assert_eq!(one.hash, two.hash, "seed {seed}");
        assert_eq!((one.time, one.steps, one.backing), (two.time, two.steps, two.backing));
        hashes.push(one.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 100, "other seeds, other runs");
}

#[test]
fn every_flawed_toy_is_found() {
    first_failure::<fake_systems::LostWrite>(false);
    first_failure::<fake_systems::IdleFlush>(false);
    first_failure::<fake_systems::IgnoredFua>(false);
    first_failure::<fake_systems::HalfSectors>(false);
    first_failure::<fake_systems::UnlockedBlocks>(false);
    first_failure::<fake_systems::InvalidateBefore>(false);
    first_failure::<fake_systems::InvalidateAfter>(false);
    first_failure::<fake_systems::EarlyReply>(false);
    first_failure::<fake_systems::HiddenError>(true);
}

#[test]
fn request_without_reply_is_reported() {
    let (_, outcome) = first_failure::<fake_systems::Hang>(false);
    assert_eq!(outcome.violations[0].kind, "stuck");
}

#[test]
fn a_failing_plan_shrinks() {
    let (plan, outcome) = first_failure::<fake_systems::InvalidateBefore>(false);
    let kind = &outcome.violations[0].kind;
    let shrunk = shrink::shrink(&plan, kind, 2000, run::<fake_systems::InvalidateBefore>);
    println!("{} runs:\n{}", shrunk.runs, shrunk.plan);
    assert!(shrunk.plan.ops.len() <= 6, "a fill, a write and a read are enough");
    assert_eq!(run::<fake_systems::InvalidateBefore>(&shrunk.plan).violations[0].kind, *kind);
}
