//! The command line.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ubcache_env::joined::HeaderRules;
use ubcache_nbd::client::ClientRules;
use ubcache_objects::StoreRules;
use ubcache_sim::plan::draw::DrawOptions;

/// Version, marked if this build can break rules of the engine.
const VERSION: &str = match ubcache_engine::MUTANTS_COMPILED {
    true => concat!(env!("CARGO_PKG_VERSION"), " +mutants"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Runs the cache engine in a simulated world, from a seed, and checks every answer.
///
/// Exit status: 0 nothing found, 1 a violation, 2 the command itself failed.
#[derive(Parser, Clone, Debug)]
#[command(name = "ubcache-simulate", version = VERSION)]
pub struct Cli {
    /// Run this seed
    #[arg(long, group = "what")]
    pub seed: Option<u64>,
    /// Run these seeds: A..B, without B
    #[arg(long, group = "what", value_parser = parse_seeds)]
    pub seeds: Option<Range<u64>>,
    /// Run seeds from a random start for this long: 30s, 10m, 2h
    #[arg(long = "for", group = "what", value_name = "TIME", value_parser = parse_time)]
    pub time: Option<Duration>,
    /// Run the plan in this file
    #[arg(long, group = "what", value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Subject of the run
    #[arg(long, value_enum, default_value_t = Subject::Engine)]
    pub system: Subject,
    /// Break one rule of the engine; `list` shows them. Needs a build with the feature `mutants`
    #[arg(long, value_name = "NAME")]
    pub mutant: Option<String>,
    /// Run every seed twice; the trace hashes must agree
    #[arg(long)]
    pub twice: bool,
    /// Cut a failing plan down and print what is left
    #[arg(long)]
    pub shrink: bool,
    /// Go on after a failure; print one line for each
    #[arg(long)]
    pub keep_going: bool,
    /// Print every operation and every device event of the last run
    #[arg(long, short)]
    pub verbose: bool,
    /// Print the plan and do not run it
    #[arg(long)]
    pub print_plan: bool,
    /// Print how often each named point was reached
    #[arg(long)]
    pub marks: bool,
    /// Fail if the seeds leave out one of the named points that they should reach
    #[arg(long)]
    pub require_marks: bool,
    /// Run the seeds, find every mutant in them, and write a document with the tables of mutants
    /// and marks. Needs a build with the feature `mutants`
    #[arg(long, value_name = "FILE")]
    pub tables: Option<PathBuf>,
    /// Print one JSON object at the end and nothing else
    #[arg(long)]
    pub json: bool,
    /// Client operations of a drawn plan at most
    #[arg(long, default_value_t = DrawOptions::default().ops_max, value_name = "N")]
    pub ops: u64,
    /// Draw plans without failing devices
    #[arg(long)]
    pub no_faults: bool,
    /// Draw plans without power failures and host restarts
    #[arg(long)]
    pub no_crashes: bool,
    /// Reach backing devices over the network in every plan that can have it; with --no-faults most
    /// of them
    #[arg(long)]
    pub remotes: bool,
    /// Put backing devices on an object store in every plan that can have it; with --no-faults most
    /// of them
    #[arg(long)]
    pub stored: bool,
    /// Break one rule of volumes on object stores: names-without-epoch (L4), unconditional-root
    /// (L4), flush-without-root (L5)
    #[arg(long, value_name = "NAME", value_parser = parse_store_rules)]
    pub store_mutant: Option<StoreRules>,
    /// Break one rule of the client of remote disks: no-fence (L1), no-replay (L2)
    #[arg(long, value_name = "NAME", value_parser = parse_client_rules)]
    pub client_mutant: Option<ClientRules>,
    /// Break one rule of headers of disks without a superblock (A9): marked-late,
    /// marked-not-durably, places-not-marked
    #[arg(long, value_name = "NAME", value_parser = parse_header_rules)]
    pub header_mutant: Option<HeaderRules>,
    /// Give up when one seed takes longer than this in real time: a loop that never waits
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = parse_time)]
    pub patience: Duration,
    /// Threads, each with seeds of its own
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub jobs: usize,
}

/// Subject of a run.
#[derive(ValueEnum, Copy, Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The cache engine.
    Engine,
    /// A right volume without a cache.
    FakeRight,
    /// Acknowledges and forgets some writes.
    FakeLostWrite,
    /// A flush does nothing.
    FakeIdleFlush,
    /// FUA is not passed on.
    FakeIgnoredFua,
    /// Writes sectors in two halves.
    FakeHalfSectors,
    /// Reads, changes, writes blocks without a lock.
    FakeUnlockedBlocks,
    /// Invalidates its read cache before a write.
    FakeInvalidateBefore,
    /// Invalidates its read cache after a write.
    FakeInvalidateAfter,
    /// Acknowledges writes before they are done.
    FakeEarlyReply,
    /// Hides read errors.
    FakeHiddenError,
    /// Never answers some requests.
    FakeHang,
}

impl Cli {
    /// Options for drawing plans.
    pub fn draw_options(&self) -> DrawOptions {
        DrawOptions {
            ops_max: self.ops.max(1),
            faults: !self.no_faults,
            crashes: !self.no_crashes,
            remotes: self.remotes,
            stored: self.stored,
        }
    }

    /// The command line that runs this seed again.
    pub fn replay(&self, seed: u64) -> String {
        let mut line = "ubcache-simulate".to_owned();
        if self.system != Subject::Engine {
            let name = self.system.to_possible_value().map(|value| value.get_name().to_owned());
            line += &format!(" --system {}", name.unwrap_or_default());
        }
        match &self.plan {
            Some(path) => line += &format!(" --plan {}", path.display()),
            None => line += &format!(" --seed {seed}"),
        }
        if let Some(name) = &self.mutant {
            line += &format!(" --mutant {name}");
        }
        if self.ops != DrawOptions::default().ops_max {
            line += &format!(" --ops {}", self.ops);
        }
        for (on, flag) in [
            (self.no_faults, " --no-faults"),
            (self.no_crashes, " --no-crashes"),
            (self.remotes, " --remotes"),
            (self.stored, " --stored"),
        ] {
            if on {
                line += flag;
            }
        }
        line
    }
}

fn parse_store_rules(text: &str) -> Result<StoreRules, String> {
    let none = StoreRules::default();
    match text {
        "names-without-epoch" => Ok(StoreRules { names_without_epoch: true, ..none }),
        "unconditional-root" => Ok(StoreRules { unconditional_root: true, ..none }),
        "flush-without-root" => Ok(StoreRules { flush_without_root: true, ..none }),
        other => Err(format!("no rule of object volumes is called \"{other}\"")),
    }
}

fn parse_client_rules(text: &str) -> Result<ClientRules, String> {
    let none = ClientRules::default();
    match text {
        "no-fence" => Ok(ClientRules { no_fence: true, ..none }),
        "no-replay" => Ok(ClientRules { no_replay: true, ..none }),
        other => Err(format!("\"{other}\" is neither no-fence nor no-replay")),
    }
}

fn parse_header_rules(text: &str) -> Result<HeaderRules, String> {
    let none = HeaderRules::default();
    match text {
        "marked-late" => Ok(HeaderRules { marked_late: true, ..none }),
        "marked-not-durably" => Ok(HeaderRules { marked_not_durably: true, ..none }),
        "places-not-marked" => Ok(HeaderRules { places_not_marked: true, ..none }),
        other => Err(format!("no rule of headers is called \"{other}\"")),
    }
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let bounds = text.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    match bounds {
        Some((Ok(from), Ok(to))) if from < to => Ok(from..to),
        _ => Err("expected A..B, two numbers with A < B".to_owned()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        other => return Err(format!("\"{other}\" is not a unit of time: s, m or h")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("\"{digits}\" is not a number"))?;
    Ok(Duration::from_secs(number * unit))
}
