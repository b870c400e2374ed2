//! Runs seeds until one fails, the time is up, or there are no more.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use ubcache_engine::Rules;
use ubcache_sim::fake_systems::{self, FakeSystem};
use ubcache_sim::plan::draw::draw;
use ubcache_sim::shrink::shrink;
use ubcache_sim::{Outcome, Plan, RunOptions, run_plan};

use crate::cli::{Cli, Subject};

/// Runs that a shrink may take.
const SHRINK_RUNS: u64 = 4000;

struct Failure {
    seed: u64,
    kind: String,
    report: String,
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    ios: u64,
    operations: u64,
    errors: u64,
    crashes: u64,
    virtual_seconds: f64,
    marks: BTreeMap<&'static str, u64>,
    failures: Vec<Failure>,
    last_hash: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process when a seed never comes back: virtual time can't see a loop that never waits.
fn watch(cli: &Cli, current: &Mutex<BTreeMap<u64, Instant>>, running: &AtomicUsize) {
    while running.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(5));
        let late = lock(current)
            .iter()
            .find(|(_, began)| began.elapsed() > cli.patience)
            .map(|(seed, _)| *seed);
        if let Some(seed) = late {
            println!("seed {seed}: does not come back: a loop that never waits");
            println!("again: {}", cli.replay(seed));
            std::process::exit(1);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the program runs in real time")]
fn clock() -> Instant {
    Instant::now()
}

/// Runs the seeds of the command line; true if nothing was found.
pub fn main(cli: Cli) -> Result<bool, String> {
    let given = match &cli.plan {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            Some(text.parse::<Plan>().map_err(|error| format!("{}: {error}", path.display()))?)
        }
        None => None,
    };
    let rules = crate::mutant::rules_of(&cli)?;
    let seeds = seeds_of(&cli, given.as_ref());
    let plan_of = |seed: u64| given.clone().unwrap_or_else(|| draw(seed, cli.draw_options()));
    if cli.print_plan {
        print!("{}", plan_of(seeds.start));
        return Ok(true);
    }
    let began = clock();
    let totals = Mutex::new(Totals::default());
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let current = Mutex::new(BTreeMap::new());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let late = cli.time.is_some_and(|time| began.elapsed() >= time);
            if seed >= seeds.end || late {
                return;
            }
            lock(&current).insert(seed, clock());
            let verbose = cli.verbose && seeds.end - seeds.start == 1;
            let outcome = run_seed(
                &cli,
                &plan_of(seed),
                RunOptions {
                    verbose,
                    rules,
                    client_rules: cli.client_mutant.unwrap_or_default(),
                    store_rules: cli.store_mutant.unwrap_or_default(),
                    header_rules: cli.header_mutant.unwrap_or_default(),
                },
            );
            lock(&current).remove(&seed);
            let mut totals = lock(&totals);
            totals.add(seed, outcome);
            if !totals.failures.is_empty() && !cli.keep_going {
                stop.store(true, Ordering::Relaxed);
            }
            show_progress(&cli, &totals, began.elapsed());
        }
    };
    let running = AtomicUsize::new(cli.jobs.max(1));
    std::thread::scope(|scope| {
        for _ in 0..cli.jobs.max(1) {
            scope.spawn(|| {
                work();
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| watch(&cli, &current, &running));
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    end_progress(&cli);
    report(&cli, rules, &totals, &plan_of, began.elapsed());
    let missing = if cli.require_marks { totals.marks_left_out() } else { Vec::new() };
    for name in &missing {
        println!("no seed reaches the mark {name}");
    }
    if let Some(file) = &cli.tables {
        crate::tables::write(file, seeds, &totals.marks)?;
    }
    Ok(totals.failures.is_empty() && missing.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "a random start comes from outside")]
fn seeds_of(cli: &Cli, given: Option<&Plan>) -> Range<u64> {
    match (given, cli.seed, &cli.seeds, cli.time) {
        (Some(plan), ..) => plan.seed..plan.seed + 1,
        (_, Some(seed), ..) => seed..seed + 1,
        (_, _, Some(seeds), _) => seeds.clone(),
        (_, _, _, Some(_)) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let start =
                now.map_or(0, |now| now.as_micros() as u64 % 1_000_000_000_000) / 1000 * 1000;
            start..u64::MAX
        }
        _ => 0..100,
    }
}

fn run_seed(cli: &Cli, plan: &Plan, options: RunOptions) -> Outcome {
    let verbose = options.verbose;
    let mut outcome = run_subject(cli.system, plan, options);
    if verbose {
        let mut out = std::io::stdout().lock();
        for row in outcome.rows.drain(..) {
            let _ = writeln!(out, "{row}");
        }
    }
    if cli.twice {
        let again = run_subject(cli.system, plan, RunOptions { verbose: false, ..options });
        if again.hash != outcome.hash {
            outcome.violations.push(ubcache_sim::oracle::Violation {
                kind: "the same seed gave two runs".to_owned(),
                report: format!("trace hash {:016x}, then {:016x}", outcome.hash, again.hash),
            });
        }
    }
    outcome
}

fn run_subject(subject: Subject, plan: &Plan, options: RunOptions) -> Outcome {
    match subject {
        Subject::Engine => run_plan::<ubcache_sim::cache_system::CacheSystem>(plan, options),
        Subject::FakeRight => run_plan::<FakeSystem<fake_systems::None>>(plan, options),
        Subject::FakeLostWrite => run_plan::<FakeSystem<fake_systems::LostWrite>>(plan, options),
        Subject::FakeIdleFlush => run_plan::<FakeSystem<fake_systems::IdleFlush>>(plan, options),
        Subject::FakeIgnoredFua => run_plan::<FakeSystem<fake_systems::IgnoredFua>>(plan, options),
        Subject::FakeHalfSectors => {
            run_plan::<FakeSystem<fake_systems::HalfSectors>>(plan, options)
        }
        Subject::FakeUnlockedBlocks => {
            run_plan::<FakeSystem<fake_systems::UnlockedBlocks>>(plan, options)
        }
        Subject::FakeInvalidateBefore => {
            run_plan::<FakeSystem<fake_systems::InvalidateBefore>>(plan, options)
        }
        Subject::FakeInvalidateAfter => {
            run_plan::<FakeSystem<fake_systems::InvalidateAfter>>(plan, options)
        }
        Subject::FakeEarlyReply => run_plan::<FakeSystem<fake_systems::EarlyReply>>(plan, options),
        Subject::FakeHiddenError => {
            run_plan::<FakeSystem<fake_systems::HiddenError>>(plan, options)
        }
        Subject::FakeHang => run_plan::<FakeSystem<fake_systems::Hang>>(plan, options),
    }
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.ios += outcome.ios();
        self.operations += outcome.operations;
        self.errors += outcome.errors;
        self.crashes += outcome.crashes;
        self.virtual_seconds += outcome.time.as_micros() as f64 / 1e6;
        self.last_hash = outcome.hash;
        for (name, count) in outcome.marks {
            *self.marks.entry(name).or_insert(0) += count;
        }
        if let Some(first) = outcome.violations.into_iter().next() {
            self.failures.push(Failure { seed, kind: first.kind, report: first.report });
        }
    }

    /// Marks that the seeds should have reached and did not.
    fn marks_left_out(&self) -> Vec<&'static str> {
        let all = ubcache_engine::marks::MARKS.iter().chain(ubcache_sim::marks::MARKS);
        let all = all.map(|(name, _)| *name);
        all.filter(|name| !self.marks.contains_key(name)).collect()
    }

    fn line(&self, took: Duration) -> String {
        let seconds = took.as_secs_f64().max(1e-6);
        format!(
            "{} seeds ({:.1}/s), {:.2} simulated hours, {} operations, {} device I/Os ({:.0}/s), \
             {} crashes, {} errors, {} failures",
            self.seeds,
            self.seeds as f64 / seconds,
            self.virtual_seconds / 3600.0,
            self.operations,
            self.ios,
            self.ios as f64 / seconds,
            self.crashes,
            self.errors,
            self.failures.len()
        )
    }
}

fn show_progress(cli: &Cli, totals: &Totals, took: Duration) {
    if !cli.json && std::io::stderr().is_terminal() && totals.seeds.is_multiple_of(16) {
        eprint!("\r\x1b[K{}", totals.line(took));
    }
}

fn end_progress(cli: &Cli) {
    if !cli.json && std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn report(cli: &Cli, rules: Rules, totals: &Totals, plan_of: &dyn Fn(u64) -> Plan, took: Duration) {
    if cli.json {
        print_json(cli, totals, took);
        return;
    }
    for failure in &totals.failures {
        if cli.keep_going {
            println!("seed {}: {}", failure.seed, failure.kind);
        } else {
            println!("seed {}: {}", failure.seed, failure.report);
            println!("again: {}", cli.replay(failure.seed));
        }
    }
    if cli.marks {
        for (name, count) in &totals.marks {
            println!("{count:>12} {name}");
        }
    }
    println!("{}", totals.line(took));
    if totals.seeds == 1 {
        println!("trace hash {:016x}", totals.last_hash);
    }
    if let (true, Some(failure)) = (cli.shrink, totals.failures.first()) {
        let options = RunOptions { rules, ..RunOptions::default() };
        let run = |plan: &Plan| run_subject(cli.system, plan, options);
        let shrunk = shrink(&plan_of(failure.seed), &failure.kind, SHRINK_RUNS, run);
        let outcome = run(&shrunk.plan);
        println!(
            "\nshrunk in {} runs; save this and run it with --plan:\n\n{}",
            shrunk.runs, shrunk.plan
        );
        for violation in outcome.violations.iter().take(1) {
            println!("{}", violation.report);
        }
    }
}

fn print_json(cli: &Cli, totals: &Totals, took: Duration) {
    let failures: Vec<_> = totals
        .failures
        .iter()
        .map(|failure| {
            json!({
                "seed": failure.seed,
                "kind": failure.kind,
                "report": failure.report,
                "command": cli.replay(failure.seed),
            })
        })
        .collect();
    let all = json!({
        "seeds": totals.seeds,
        "seconds": took.as_secs_f64(),
        "simulated_seconds": totals.virtual_seconds,
        "operations": totals.operations,
        "device_ios": totals.ios,
        "crashes": totals.crashes,
        "errors": totals.errors,
        "marks": totals.marks,
        "failures": failures,
    });
    println!("{all:#}");
}
