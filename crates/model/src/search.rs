//! Breadth first through every state, so that the first counterexample of a kind is a shortest one.
//!
//! States are known by 64-bit fingerprints: with 10⁸ states the chance that one is missed is about
//! 3 in 10⁴. A state behind a violation is not explored further.

use std::hash::BuildHasher;

use crate::action::Action;
use crate::monitor::Finding;
use crate::rules::Promise;
use crate::state::State;
use crate::step::Model;

/// A run of the model that ends badly.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The violated promise.
    pub kind: Promise,
    /// Description in a sentence.
    pub what: String,
    /// The steps to it, the violating one included.
    pub length: usize,
    /// The initial state, and the step taken each time, by index.
    path: Vec<usize>,
}

/// Outcome of a search.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Longest shortest way to a state.
    pub depth: usize,
    /// Every state within the bounds was seen.
    pub complete: bool,
    /// The shortest counterexample of each kind.
    pub found: Vec<Counterexample>,
}

impl Outcome {
    /// The shortest counterexample of this kind.
    pub fn of(&self, kind: Promise) -> Option<&Counterexample> {
        self.found.iter().find(|found| found.kind == kind)
    }

    /// Returns true if nothing was violated in any state within the bounds.
    pub fn holds(&self) -> bool {
        self.complete && self.found.is_empty()
    }
}

type Known = hashbrown::HashSet<u64, foldhash::fast::FixedState>;

/// Origin of a state: the state before it, and the step that led to it.
#[derive(Copy, Clone)]
struct Origin {
    parent: u32,
    choice: u16,
}

/// Searches until every state is seen, `enough` of what was found, or `states_max` is reached.
pub fn search(
    model: &Model,
    states_max: usize,
    enough: impl Fn(&[Counterexample]) -> bool,
) -> Outcome {
    let hasher = foldhash::quality::FixedState::with_seed(0x5eed);
    let mut known = Known::default();
    let mut origins: Vec<Origin> = Vec::new();
    let mut level: Vec<(u32, State)> = Vec::new();
    for (choice, state) in model.initial().into_iter().enumerate() {
        known.insert(hasher.hash_one(state));
        level.push((origins.len() as u32, state));
        origins.push(Origin { parent: u32::MAX, choice: choice as u16 });
    }
    let mut outcome = Outcome::default();
    let mut steps = Vec::new();
    while !level.is_empty() {
        let mut below = Vec::new();
        for (parent, state) in level {
            model.next(&state, &mut steps);
            for (choice, next) in steps.drain(..).enumerate() {
                let new = known.insert(hasher.hash_one(next.state));
                let origin = Origin { parent, choice: choice as u16 };
                if !next.findings.is_empty() {
                    // A violation is a matter of the step; the state may be known from elsewhere.
                    for finding in next.findings {
                        note(&mut outcome.found, finding, &origins, origin);
                    }
                    continue;
                }
                if !new {
                    continue;
                }
                below.push((origins.len() as u32, next.state));
                origins.push(origin);
            }
            if origins.len() > states_max || (!outcome.found.is_empty() && enough(&outcome.found)) {
                outcome.states = origins.len();
                return outcome;
            }
        }
        level = below;
        outcome.depth += 1;
    }
    outcome.states = origins.len();
    outcome.complete = true;
    outcome
}

fn note(found: &mut Vec<Counterexample>, (kind, what): Finding, origins: &[Origin], last: Origin) {
    if found.iter().any(|other| other.kind == kind) {
        return;
    }
    let mut path = Vec::new();
    let mut at = last;
    loop {
        path.push(usize::from(at.choice));
        match origins.get(at.parent as usize) {
            Some(origin) => at = *origin,
            None => break,
        }
    }
    path.reverse();
    found.push(Counterexample { kind, what, length: path.len() - 1, path });
}

/// The run again: the initial state, and each step with the state that it leads to.
pub fn replay(model: &Model, example: &Counterexample) -> (State, Vec<(Action, State)>) {
    let mut choices = example.path.iter();
    let first = choices.next().map_or(0, |choice| *choice);
    let start = model.initial().swap_remove(first);
    let (mut state, mut run, mut steps) = (start, Vec::new(), Vec::new());
    for choice in choices {
        model.next(&state, &mut steps);
        let next = steps.swap_remove(*choice);
        state = next.state;
        run.push((next.action, next.state));
    }
    (start, run)
}
