//! The race that the cache of the Linux kernel has had since its beginning, on the real engine: a
//! bypass write, and a read that caches what was there before.
//!
//! The engine as it is passes. With the feature `mutants` it also plays the protocol that removes
//! keys while the write runs, and the one that was proposed as its repair, which removes them
//! afterwards.

use ubcache_engine::Rules;
use ubcache_sim::bypass_race::{RaceRun, busy_reader, late_write, power_loss};

const SEEDS: std::ops::Range<u64> = 0..24;

/// Counts the seeds that go wrong; the first of them is printed.
fn wrong(name: &str, chapter: impl Fn(u64) -> RaceRun) -> usize {
    let runs: Vec<RaceRun> = SEEDS.map(chapter).filter(|run| run.wrong.is_some()).collect();
    if let Some(first) = runs.first() {
        println!("{name}: {} of {SEEDS:?}, the first:\n{}\n", runs.len(), first.lines.join("\n"));
    }
    runs.len()
}

#[test]
fn engine_passes_the_bypass_write_race() {
    let engine = Rules::default();
    assert_eq!(wrong("late write", |seed| late_write(engine, seed)), 0);
    assert_eq!(wrong("power loss", |seed| power_loss(engine, seed)), 0);
    assert_eq!(wrong("busy reader", |seed| busy_reader(engine, seed)), 0);
}

/// The first chapter asks something: in some of its worlds the read finds the old block and
/// registers a fill.
#[test]
fn the_read_during_the_write_sees_the_old_block_and_the_new_one() {
    let runs: Vec<RaceRun> = SEEDS.map(|seed| late_write(Rules::default(), seed)).collect();
    let during = |byte: &str| {
        let line = format!("under way: {byte}");
        runs.iter().filter(|run| run.lines.iter().any(|other| other.contains(&line))).count()
    };
    assert!(during("00") > 3 && during("01") > 3, "the write lands sooner or later");
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use ubcache_engine::Mutant;

    /// P0: the removal is over when the read registers its fill.
    #[test]
    fn removal_while_the_write_runs_leaves_a_stale_block() {
        let mutant = Mutant::InvalidateParallel.into();
        assert!(wrong("parallel, late write", |seed| late_write(mutant, seed)) > 3);
        assert!(wrong("parallel, power loss", |seed| power_loss(mutant, seed)) > 3);
        assert!(wrong("parallel, busy reader", |seed| busy_reader(mutant, seed)) > 0);
    }

    /// P1 repairs the first chapter: the stale fill is removed with everything else. It loses the
    /// second: the removal comes after the write, and a crash can come between the two.
    #[test]
    fn removal_after_the_write_fails_when_the_power_does() {
        let mutant = Mutant::InvalidateAfter.into();
        assert_eq!(wrong("after, late write", |seed| late_write(mutant, seed)), 0);
        assert!(wrong("after, power loss", |seed| power_loss(mutant, seed)) > 3);
    }
}
