//! Promises of the protocols, and the violations of each.

use ubcache_model::rules::{Durable, P7, P8, Removal, Rules, find};
use ubcache_model::state::{Budget, OpKind};
use ubcache_model::{Bounds, Model, Outcome, Promise, search, timeline, variants};

const STATES_MAX: usize = 20_000_000;

fn explore(model: &Model) -> Outcome {
    search(model, STATES_MAX, |_| true)
}

fn assert_holds(name: &str, model: &Model, at_least: usize) {
    let outcome = explore(model);
    if let Some(example) = outcome.found.first() {
        panic!("{name}: {}: {}\n{}", example.kind.name(), example.what, timeline(model, example));
    }
    assert!(outcome.complete, "{name}: {} states and no end", outcome.states);
    assert!(
        outcome.states > at_least,
        "{name}: only {} states: something is not explored",
        outcome.states
    );
}

/// P8 with two operations of every kind, an eviction, a writeback, and every crash and error, with
/// the invariants of every state.
#[test]
fn p8_holds() {
    assert_holds("P8", &Bounds::usual(1, 2).strictly().of(P8), 500_000);
}

#[test]
fn p7_holds() {
    assert_holds("P7", &Bounds::usual(1, 2).strictly().of(P7), 200_000);
}

/// Two sectors, two operations of three kinds, no eviction.
fn two_sectors() -> Bounds {
    let mut bounds = Bounds::new(2, 2).with_kinds(&[OpKind::Read, OpKind::Bypass, OpKind::Back]);
    bounds.budget.evictions = 0;
    bounds.strictly()
}

#[test]
fn p8_holds_on_two_sectors() {
    assert_holds("P8", &two_sectors().of(P8), 200_000);
}

/// With one sector these are the same as P8.
#[test]
fn coarser_variants_of_p8_hold_on_two_sectors() {
    let errors = |rules: Rules| {
        let mut bounds = two_sectors();
        bounds.budget.errors = 0;
        bounds.strict = false;
        bounds.of(rules)
    };
    assert_holds("one-bit", &errors(Rules { one_bit: true, ..P8 }), 100_000);
    assert_holds("always-w3", &errors(Rules { durable: Durable::Always, ..P8 }), 100_000);
}

/// A place that is reused at once holds the data of another sector after a crash: flushed data is
/// lost.
#[test]
fn reused_places_lose_flushed_data() {
    let mut bounds = Bounds::new(2, 2).with_kinds(&[OpKind::Back]);
    bounds.budget = Budget { evictions: 0, writebacks: 0, errors: 0, ..bounds.budget };
    let outcome = search(&bounds.of(Rules { j2: false, ..P8 }), STATES_MAX, |found| {
        found.iter().any(|it| it.kind == Promise::Dur)
    });
    let example = outcome.of(Promise::Dur).expect("d is gone");
    assert!(example.what.contains("comes back as w2, not"), "{}", example.what);
}

#[test]
fn p8_holds_with_three_operations() {
    let kinds = [OpKind::Read, OpKind::Bypass, OpKind::Flush];
    assert_holds("P8", &Bounds::new(1, 3).with_kinds(&kinds).of(P8), 200_000);
}

/// A flush of the backing device may fail and lose, at once or later, and each of two clients is
/// told.
#[test]
fn p8_holds_with_three_operations_and_failing_flushes() {
    let mut bounds =
        Bounds::new(1, 3).with_kinds(&[OpKind::Read, OpKind::Through, OpKind::Flush]).strictly();
    bounds.budget = Budget { evictions: 0, writebacks: 0, flush_errors: 1, ..bounds.budget };
    assert_holds("P8", &bounds.of(P8), 100_000);
}

/// Three operations, for rules that two say nothing of.
fn three(kinds: &[OpKind]) -> Bounds {
    let mut bounds = Bounds::new(1, 3).with_kinds(kinds);
    bounds.budget = Budget { evictions: 0, writebacks: 0, errors: 0, ..bounds.budget };
    bounds
}

/// F4: the client that wrote asks second, and is told nothing.
#[test]
fn one_error_for_all_clients_hides_a_loss() {
    let mut bounds = three(&[OpKind::Bypass, OpKind::Flush]);
    bounds.budget.flush_errors = 1;
    assert_holds("P8", &bounds.of(P8), 10_000);
    let outcome = search(&bounds.of(Rules { f4_each: false, ..P8 }), STATES_MAX, |found| {
        [Promise::Lin, Promise::Dur].iter().all(|kind| found.iter().any(|it| it.kind == *kind))
    });
    let example = outcome.of(Promise::Dur).expect("w1 is gone");
    assert!(example.what.contains("comes back as older, not w"), "{}", example.what);
}

/// R5: the read has missed, then the sector becomes dirty and is discarded.
#[test]
fn a_read_that_does_not_look_again_sees_a_discard_early() {
    let bounds = three(&[OpKind::Read, OpKind::Back, OpKind::Discard]);
    assert_holds("P8", &bounds.of(P8), 20_000);
    let outcome = search(&bounds.of(Rules { r5: false, ..P8 }), STATES_MAX, |_| true);
    let example = outcome.of(Promise::Lin).expect("zeroes, and then w2 again");
    assert!(example.what.contains("the read returns w3 for s0"), "{}", example.what);
}

/// Every variant violates exactly what it is said to: each kind is found, and nothing else before
/// it.
#[test]
fn every_variant_has_its_documented_verdict() {
    for variant in variants() {
        let holds = variant.violates.is_empty();
        let bounds = if holds { Bounds::new(1, 2) } else { Bounds::usual(1, 2) };
        let model = bounds.of(variant.rules);
        if holds {
            assert_holds(variant.name, &model, 50_000);
            continue;
        }
        let outcome = search(&model, STATES_MAX, |found| {
            variant.violates.iter().all(|kind| found.iter().any(|example| example.kind == *kind))
        });
        for kind in variant.violates {
            assert!(outcome.of(*kind).is_some(), "{}: {} is not found", variant.name, kind.name());
        }
        for example in &outcome.found {
            let (name, kind) = (variant.name, example.kind);
            assert!(variant.violates.contains(&kind), "{name}: {}: {}", kind.name(), example.what);
        }
    }
}

/// The race of docs/internals/coherence.md §3, as a shortest timeline: the fill is published after
/// the write was decided.
#[test]
fn search_finds_and_prints_the_bypass_race() {
    let variant = find("P0").expect("it is in the table");
    let budget = Budget { ops: 2, ..Budget::default() };
    let bounds = Bounds { budget, ..Bounds::new(1, 2) }.with_kinds(&[OpKind::Read, OpKind::Bypass]);
    let model = bounds.of(Rules { removal: Removal::Before, ..variant.rules });
    let outcome =
        search(&model, STATES_MAX, |found| found.iter().any(|it| it.kind == Promise::Ceb));
    let example = outcome.of(Promise::Ceb).expect("the original race");
    let text = timeline(&model, example);
    assert_eq!(text.lines().filter(|line| line.contains("op ")).count(), example.length, "{text}");
    assert!(text.contains("is clean with older over w"), "{text}");
}

/// The second half of the story: with removal after completion alone a power failure brings the old
/// key back.
#[test]
fn the_first_patch_fails_at_a_power_failure() {
    let variant = find("P1").expect("it is in the table");
    let model = Bounds::new(1, 1).with_kinds(&[OpKind::Bypass]).of(variant.rules);
    let outcome =
        search(&model, STATES_MAX, |found| found.iter().any(|it| it.kind == Promise::Ceb));
    let example = outcome.of(Promise::Ceb).expect("P1-c");
    assert!(timeline(&model, example).contains("POWER FAILURE"));
}
