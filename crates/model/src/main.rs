//! `ubcache-model`: searches the protocols and prints what was found.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ubcache_model::rules::{Variant, find};
use ubcache_model::state::OpKind;
use ubcache_model::{Bounds, Outcome, Promise, search, timeline, variants};

/// Checks the coherence protocol, and every protocol with one rule less, in all interleavings.
#[derive(Parser)]
#[command(name = "ubcache-model")]
struct Cli {
    /// Only this variant, with its counterexamples as timelines
    variant: Option<String>,
    /// Client operations
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3))]
    ops: u8,
    /// Sectors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    sectors: u8,
    /// Only operations of these kinds, such as read,bypass-fua,flush
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<OpKind>,
    /// Without host restarts
    #[arg(long)]
    no_restart: bool,
    /// Without failures of the journal and of flushes
    #[arg(long)]
    no_flush_errors: bool,
    /// I1 and I3 to I8 in every state, too
    #[arg(long)]
    strict: bool,
    /// Stop at this many states
    #[arg(long, default_value_t = 60_000_000)]
    states: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let list: Vec<Variant> = match &cli.variant {
        None => variants(),
        Some(name) => match find(name) {
            Some(variant) => vec![variant],
            None => {
                let names: Vec<&str> = variants().iter().map(|variant| variant.name).collect();
                eprintln!("no variant {name:?}; there are: {}", names.join(" "));
                return ExitCode::from(2);
            }
        },
    };
    let mut bounds = Bounds::new(usize::from(cli.sectors), cli.ops);
    if !cli.kinds.is_empty() {
        bounds = bounds.with_kinds(&cli.kinds);
    }
    if !cli.no_restart {
        bounds = bounds.with_restart();
    }
    if !cli.no_flush_errors {
        bounds = bounds.with_all_errors();
    }
    if cli.strict {
        bounds = bounds.strictly();
    }
    println!("| variant | what is different | states | seconds | LIN | DUR | CEB | result |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut good = true;
    for variant in &list {
        good &= run(&cli, &bounds, variant);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn kind(word: &str) -> Result<OpKind, String> {
    let words = OpKind::ALL.map(OpKind::word);
    let found = OpKind::ALL.into_iter().find(|kind| kind.word() == word);
    found.ok_or_else(|| format!("no such kind; there are: {}", words.join(" ")))
}

/// True if the result is the expected one.
fn run(cli: &Cli, bounds: &Bounds, variant: &Variant) -> bool {
    let model = bounds.of(variant.rules);
    let began = now();
    let kinds = [Promise::Lin, Promise::Dur, Promise::Ceb];
    let outcome = search(&model, cli.states, |found| {
        kinds.iter().all(|kind| found.iter().any(|example| example.kind == *kind))
    });
    let cells: Vec<String> = kinds.iter().map(|kind| cell(&outcome, *kind)).collect();
    let (words, good) = verdict(&outcome, variant);
    println!(
        "| {} | {} | {} | {:.1} | {} | {words} |",
        variant.name,
        variant.what,
        outcome.states,
        (now() - began).as_secs_f64(),
        cells.join(" | "),
    );
    if cli.variant.is_some() {
        for example in &outcome.found {
            println!(
                "\n{}, {} steps:\n{}",
                example.kind.name(),
                example.length,
                timeline(&model, example)
            );
        }
    }
    good
}

fn cell(outcome: &Outcome, kind: Promise) -> String {
    outcome.of(kind).map_or_else(String::new, |example| format!("{} steps", example.length))
}

fn verdict(outcome: &Outcome, variant: &Variant) -> (String, bool) {
    let unexpected = outcome.found.iter().find(|example| !variant.violates.contains(&example.kind));
    let missing = variant.violates.iter().find(|kind| outcome.of(**kind).is_none());
    match (unexpected, missing) {
        (Some(example), _) => {
            (format!("UNEXPECTED: {}: {}", example.kind.name(), example.what), false)
        }
        (None, Some(kind)) => (format!("NOT FOUND: {}", kind.name()), false),
        (None, None) if outcome.found.is_empty() && !outcome.complete => {
            ("nothing so far".to_owned(), true)
        }
        (None, None) if outcome.found.is_empty() => ("holds".to_owned(), true),
        (None, None) => ("violated".to_owned(), true),
    }
}

#[allow(clippy::disallowed_methods, reason = "says how long a search took; decides nothing")]
fn now() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}
