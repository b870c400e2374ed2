//! The oracle accepts a right volume over thousands of seeds and finds what is wrong with wrong
//! ones.

use ubcache_sim::plan::ControlAction;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::toy::{self, Toy};
use ubcache_sim::{Outcome, Plan, RunOptions, run_plan, shrink};

fn run<R: toy::Recipe>(plan: &Plan) -> Outcome {
    run_plan::<Toy<R>>(plan, RunOptions::default())
}

/// Plans for toys, which know nothing of devices that are not what they were, nor whom to tell of a
/// flush that lost, and which have nothing that could become clean.
fn draw_for_toys(seed: u64, faults: bool) -> Plan {
    let mut plan = draw(seed, DrawOptions { ops_max: 300, faults, ..DrawOptions::default() });
    plan.hands.clear();
    plan.lossy.clear();
    plan.hammers.clear();
    // Every client of a toy looks at its locks in each step.
    plan.ops.retain(|op| op.client < 4000);
    let waits = |action: &ControlAction| {
        matches!(action, ControlAction::Attribute { name,
        .. } if name.starts_with("until-"))
    };
    plan.controls.retain(|control| !waits(&control.action));
    plan
}

/// The first seed that finds the flaw, and what it says.
fn hunt<R: toy::Recipe>(faults: bool) -> (Plan, Outcome) {
    for seed in 0..3000 {
        let plan = draw_for_toys(seed, faults);
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
        let outcome = run::<toy::None>(&draw_for_toys(seed, true));
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
        let plan = draw_for_toys(seed, true);
        let (one, two) = (run::<toy::None>(&plan), run::<toy::None>(&plan));
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
    hunt::<toy::LostWrite>(false);
    hunt::<toy::IdleFlush>(false);
    hunt::<toy::IgnoredFua>(false);
    hunt::<toy::HalfSectors>(false);
    hunt::<toy::UnlockedBlocks>(false);
    hunt::<toy::InvalidateBefore>(false);
    hunt::<toy::InvalidateAfter>(false);
    hunt::<toy::EarlyReply>(false);
    hunt::<toy::HiddenError>(true);
}

#[test]
fn request_without_reply_is_reported() {
    let (_, outcome) = hunt::<toy::Hang>(false);
    assert_eq!(outcome.violations[0].kind, "stuck");
}

#[test]
fn a_failing_plan_shrinks() {
    let (plan, outcome) = hunt::<toy::InvalidateBefore>(false);
    let kind = &outcome.violations[0].kind;
    let shrunk = shrink::shrink(&plan, kind, 2000, run::<toy::InvalidateBefore>);
    println!("{} runs:\n{}", shrunk.runs, shrunk.plan);
    assert!(shrunk.plan.ops.len() <= 6, "a fill, a write and a read are enough");
    assert_eq!(run::<toy::InvalidateBefore>(&shrunk.plan).violations[0].kind, *kind);
}
