//! Prints the race of a bypass write with a read, on the real engine in virtual time.
//!
//! ```text
//! cargo run -p ubcache-sim --example bypass_write_race
//! cargo run -p ubcache-sim --features mutants --example bypass_write_race     # and two protocols that lose it
//! ```

use ubcache_engine::Rules;
use ubcache_sim::bypass_race::{RaceRun, busy_reader, late_write, power_loss};

const SEEDS: std::ops::Range<u64> = 0..24;

#[cfg(feature = "mutants")]
fn protocols() -> Vec<(&'static str, Rules)> {
    use ubcache_engine::Mutant;
    vec![
        ("keys are removed while the write runs (P0)", Mutant::InvalidateParallel.into()),
        ("keys are removed after the write (P1, the first repair)", Mutant::InvalidateAfter.into()),
        ("ubcache", Rules::default()),
    ]
}

#[cfg(not(feature = "mutants"))]
fn protocols() -> Vec<(&'static str, Rules)> {
    vec![("ubcache", Rules::default())]
}

/// Prints one seed: the first that goes wrong, or else the first.
fn tell(title: &str, chapter: impl Fn(u64) -> RaceRun) {
    let mut runs: Vec<RaceRun> = SEEDS.map(chapter).collect();
    let wrong = runs.iter().filter(|run| run.wrong.is_some()).count();
    let shown = runs.iter().position(|run| run.wrong.is_some()).unwrap_or(0);
    println!(
        "\n  {title}: {wrong} of {} worlds go wrong; this is one of {wrong_or}",
        runs.len(),
        wrong_or = if wrong > 0 { "these" } else { "all" }
    );
    for line in runs.swap_remove(shown).lines {
        println!("    {line}");
    }
}

fn main() {
    for (name, rules) in protocols() {
        println!("\n{name}\n{}", "═".repeat(name.chars().count()));
        tell("A write takes five seconds, a read comes after one", |seed| late_write(rules, seed));
        tell("The power fails when a write has been answered", |seed| power_loss(rules, seed));
        tell("Writes of 1 MiB against a read without end", |seed| busy_reader(rules, seed));
    }
    if cfg!(not(feature = "mutants")) {
        println!("\nWith --features mutants: the same for two protocols that lose the race.");
    }
}
