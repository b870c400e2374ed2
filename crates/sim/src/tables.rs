//! `--tables`: a document with the mutants that the simulator finds and the marks that it reaches.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Writes both tables into the file.
#[cfg(not(feature = "mutants"))]
pub fn write(_: &Path, _: Range<u64>, _: &BTreeMap<&'static str, u64>) -> Result<(), String> {
    Err("the tables need a build with the feature mutants: \
         cargo run --release -p ubcache-sim --features mutants -- --seeds A..B --tables FILE"
        .to_owned())
}

/// Writes both tables into the file.
#[cfg(feature = "mutants")]
pub fn write(
    file: &Path,
    seeds: Range<u64>,
    marks: &BTreeMap<&'static str, u64>,
) -> Result<(), String> {
    let command = format!(
        "cargo run --release -p ubcache-sim --features mutants -- --seeds {}..{} --jobs 2 \
         --tables {}",
        seeds.start,
        seeds.end,
        file.display()
    );
    let (mutants, marks) = (of_mutants::table(seeds.clone()), of_marks(&seeds, marks));
    let text = format!(
        "# Mutants and marks\n\n{HEAD}\n\n```\n{command}\n```\n\n## Mutants\n\n{LEGEND}\n\n\
         {mutants}\n## Marks\n\n{marks}"
    );
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(feature = "mutants")]
const HEAD: &str = "\
Written by this command, and not by hand; [simulation.md](../internals/simulation.md) says what both
are.";

#[cfg(feature = "mutants")]
const LEGEND: &str = "\
*Seeds*: how many it took. *Seconds*: of one core. *Shrunk plan*: the smallest that remains of the
first five seeds that find the mutant; a plan of more than 16 steps is counted only.";

#[cfg(feature = "mutants")]
fn of_marks(seeds: &Range<u64>, marks: &BTreeMap<&'static str, u64>) -> String {
    use std::fmt::Write as _;

    let all: Vec<_> =
        ubcache_engine::marks::MARKS.iter().chain(ubcache_sim::marks::MARKS).collect();
    let mut text = format!("{} marks, seeds {} to {}:\n\n", all.len(), seeds.start, seeds.end - 1);
    text += "| mark | times | meaning |\n|---|---:|---|\n";
    for (name, meaning) in all {
        let _ =
            writeln!(text, "| `{name}` | {} | {meaning} |", marks.get(name).copied().unwrap_or(0));
    }
    text += "\nNot required of the simulator:\n\n| mark | times | why |\n|---|---:|---|\n";
    for (name, why) in ubcache_engine::marks::UNREACHED {
        let _ = writeln!(text, "| `{name}` | {} | {why} |", marks.get(name).copied().unwrap_or(0));
    }
    text
}

#[cfg(feature = "mutants")]
mod of_mutants {
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};
    use std::time::Instant;

    use ubcache_engine::Mutant;
    use ubcache_sim::Plan;
    use ubcache_sim::find_mutants::{FoundMutant, find_mutant, run_mutant};
    use ubcache_sim::plan::draw::{DrawOptions, draw};
    use ubcache_sim::shrink::shrink;

    /// Runs that the shrink of one plan may take.
    const SHRINK_RUNS: u64 = 1500;
    /// Failing seeds to shrink: the plan that remains of the first is often not the smallest.
    const PLANS: usize = 5;
    /// A shrunk plan with more steps is not spelled out.
    const STEPS_MAX: usize = 16;

    pub fn table(seeds: Range<u64>) -> String {
        let next = AtomicUsize::new(0);
        let rows = Mutex::new(BTreeMap::new());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(&mutant) = Mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let row = row(mutant, seeds.clone());
                        rows.lock().unwrap_or_else(PoisonError::into_inner).insert(mutant, row);
                    }
                });
            }
        });
        let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("{} mutants, seeds from {} on:\n\n", Mutant::ALL.len(), seeds.start);
        text += "| mutant | rule | what is changed | seeds | seconds | found by | shrunk plan |\n";
        text += "|---|---|---|---:|---:|---|---|\n";
        rows.into_values().for_each(|row| text += &row);
        text
    }

    fn row(mutant: Mutant, seeds: Range<u64>) -> String {
        let start = format!("| `{}` | {} | {} ", mutant.name(), mutant.rule(), mutant.what());
        let began = clock();
        let found = find_mutant(mutant, seeds.clone());
        let seconds = began.elapsed().as_secs_f64();
        let Some(found) = found else { return format!("{start}| – | – | **not found** | |\n") };
        let tried = found.seed - seeds.start + 1;
        let kind_found = kind(&found.violation.kind);
        let next = |found: &FoundMutant| find_mutant(mutant, found.seed + 1..seeds.end);
        let plans = std::iter::successors(Some(found), next).take(PLANS).map(|found| {
            let plan = draw(found.seed, DrawOptions::default());
            shrink(&plan, &found.violation.kind, SHRINK_RUNS, |plan| run_mutant(mutant, plan)).plan
        });
        let shrunk = plans.min_by_key(length).expect("the first seed was found above");
        format!("{start}| {tried} | {seconds:.1} | {kind_found} | {} |\n", steps(&shrunk))
    }

    /// Name of a kind of violations in the table.
    fn kind(kind: &str) -> String {
        match kind.split_once(" at ") {
            Some(("panic", place)) => {
                let file =
                    place.rsplit('/').next().unwrap_or(place).split(':').next().unwrap_or(place);
                format!("assertion in {file}")
            }
            _ => kind.replace('|', "/"),
        }
    }

    fn length(plan: &Plan) -> usize {
        plan.ops.len() + plan.controls.len() + plan.faults.len()
    }

    fn steps(plan: &Plan) -> String {
        let faults = if plan.faults.is_empty() { "" } else { ", device errors" };
        let (ops, controls) = (plan.ops.len(), plan.controls.len());
        if ops + controls > STEPS_MAX {
            return format!("{ops} operations, {controls} events{faults}");
        }
        let mut lines = Vec::new();
        let mut controls = plan.controls.iter().peekable();
        for (index, op) in plan.ops.iter().enumerate() {
            while let Some(control) = controls.next_if(|control| control.after_ops <= index as u64)
            {
                lines.push(control.action.to_string());
            }
            lines.push(format!("c{} {}", op.client, op.action));
        }
        lines.extend(controls.map(|control| control.action.to_string()));
        if plan.last_crash {
            lines.push("power-failure at the end".to_owned());
        }
        let mode = &plan.volumes[0].mode;
        format!("{mode}{faults}: {}", lines.join("; "))
    }

    #[expect(clippy::disallowed_methods, reason = "how long it takes is in the table")]
    fn clock() -> Instant {
        Instant::now()
    }
}
