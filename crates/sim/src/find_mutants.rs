//! Looks for the seed that finds a mutant.

use std::ops::Range;

use ubcache_engine::Mutant;

use crate::cache_system::CacheSystem;
use crate::oracle::Violation;
use crate::plan::Plan;
use crate::plan::draw::{DrawOptions, draw};
use crate::runner::{Outcome, RunOptions, run_plan};

/// Finding of a mutant.
#[derive(Clone, Debug)]
pub struct FoundMutant {
    /// The seed that found it.
    pub seed: u64,
    /// The violation.
    pub violation: Violation,
}

/// Runs a plan against a mutant.
pub fn run_mutant(mutant: Mutant, plan: &Plan) -> Outcome {
    run_plan::<CacheSystem>(plan, RunOptions { rules: mutant.into(), ..RunOptions::default() })
}

/// Seeds of a mutant that are left out: a leaf that has grown beyond its node makes a loop that
/// never waits, which this process could not end.
const ENDLESS: [(Mutant, u64); 1] = [(Mutant::FullLeafGrows, 7)];

/// Runs seeds until one finds the mutant. None: it survives them all.
pub fn find_mutant(mutant: Mutant, seeds: Range<u64>) -> Option<FoundMutant> {
    seeds.into_iter().filter(|seed| !ENDLESS.contains(&(mutant, *seed))).find_map(|seed| {
        let outcome = run_mutant(mutant, &draw(seed, DrawOptions::default()));
        let violation = outcome.violations.into_iter().next()?;
        Some(FoundMutant { seed, violation })
    })
}
