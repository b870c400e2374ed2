//! All numbers of docs/generated/performance.md, measured in one run.
//!
//! Competitors are measured in turns, a moment of each and again, so that a change of the machine's
//! speed affects all of them. The median of the turns counts.
//!
//! | module | measures |
//! |---|---|
//! | [`over_nbd`] | hits and misses beside other NBD servers |
//! | [`fair`] | small requests of one client beside the large ones of others |
//! | [`threads`] | hits of several connections, with threads for clients |
//! | [`control`] | hits while others hammer the control API |
//! | [`raw`] | the share of a device's speed that is left with ubcache in between |
//! | [`in_process`] | the engine alone |
//! | [`restart`] | a start after a kill |
//! | [`slow`] | a backing device with the latency and the bandwidth of a network |
//! | [`objects`] | a volume on an object store |
//! | [`check`] | `ubcache check`, beside the speed of the device |
//! | [`replayed`] | hit ratios of recorded loads |
//! | [`servers`], [`fio`] | the programs that are run for it |
//! | [`document`] | docs/generated/performance.md and its pictures |
#![allow(
    clippy::disallowed_methods,
    reason = "this measures in the real world, with its clock and threads"
)]

pub mod check;
pub mod control;
pub mod document;
pub mod fair;
pub mod fio;
pub mod in_process;
pub mod objects;
pub mod over_nbd;
pub mod raw;
pub mod replayed;
pub mod restart;
pub mod servers;
pub mod slow;
pub mod threads;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Settings of a measurement.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shorter, for a look.
    pub quick: bool,
    /// Directory for the files of devices, on the file system that is measured.
    pub directory: PathBuf,
    /// The program `ubcache`.
    pub ubcache: PathBuf,
    /// A recorded load.
    pub trace: Option<PathBuf>,
    /// Only these parts; empty: all.
    pub only: Vec<String>,
    /// Environment variables of the servers.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// The length of one turn.
    pub fn turn(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 5 })
    }
    /// Number of turns of each competitor.
    pub fn turns(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }
    /// The part of a volume that hits go to, in bytes.
    pub fn working_set_bytes(&self) -> u64 {
        if self.quick { 512 << 20 } else { 1 << 30 }
    }
    /// Duration of the search for the longest stall.
    pub fn stall_time(&self) -> Duration {
        Duration::from_secs(if self.quick { 45 } else { 600 })
    }
}

/// A row of the table of goals.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the measurement.
    pub what: String,
    /// Wanted value.
    pub goal: String,
    /// Measured value.
    pub reached: String,
    /// Value of the competitor.
    pub peer: String,
    /// Ratio of the two values.
    pub ratio: String,
    /// True if the goal was reached; `None`: could not be measured.
    pub met: Option<bool>,
    /// Command that measures it by hand.
    pub command: String,
}

/// A table besides that of the goals.
#[derive(Clone, Debug)]
pub struct Table {
    /// The name of its section in the document.
    pub section: &'static str,
    /// Markdown.
    pub text: String,
}

/// A line of a picture.
#[derive(Clone, Debug)]
pub struct Line {
    /// Name of the curve.
    pub name: String,
    /// Places.
    pub points: Vec<(f64, f64)>,
}

/// Results of a run.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Goals.
    pub rows: Vec<Row>,
    /// Tables besides that of the goals.
    pub tables: Vec<Table>,
    /// Requests a second over queue depth.
    pub throughput: Vec<Line>,
    /// Latency in microseconds over percentiles.
    pub latency: Vec<Line>,
}

type Part = fn(&Options, &mut Results) -> Result<(), String>;

const PARTS: &[(&str, Part)] = &[
    ("nbd", over_nbd::hits),
    ("misses", over_nbd::misses),
    ("slow", slow::slow_backing),
    ("objects", objects::random_writes),
    ("fair", fair::small_beside_large),
    ("threads", threads::several_connections),
    ("control", control::hits_beside_control),
    ("raw", raw::hits_and_writes),
    ("stalls", raw::stalls),
    ("engine", in_process::engine),
    ("memory", in_process::memory),
    ("written", in_process::written_bytes),
    ("restart", restart::after_kill),
    ("check", check::metadata_rate),
    ("replay", replayed::hit_ratios),
];

/// Names of the parts.
pub fn parts() -> Vec<&'static str> {
    PARTS.iter().map(|(name, _)| *name).collect()
}

/// Runs all parts, or the chosen ones. A part that can't be measured is reported, and the others go
/// on.
pub fn run(options: &Options) -> Results {
    let mut results = Results::default();
    for (name, part) in PARTS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let began = Instant::now();
        eprintln!("ubcache-bench: {name} …");
        let done = std::fs::create_dir_all(&options.directory)
            .map_err(|error| format!("{}: {error}", options.directory.display()))
            .and_then(|()| part(options, &mut results));
        // The files are large.
        let _ = std::fs::remove_dir_all(&options.directory);
        match done {
            Ok(()) => eprintln!("ubcache-bench: {name}: {:.0} s", began.elapsed().as_secs_f64()),
            Err(why) => {
                eprintln!("ubcache-bench: {name}: could not be measured: {why}");
                results.rows.push(Row {
                    what: format!("the part \"{name}\""),
                    goal: "–".to_owned(),
                    reached: format!("could not be measured: {why}"),
                    peer: "–".to_owned(),
                    ratio: "–".to_owned(),
                    met: None,
                    command: format!("`ubcache-bench suite --only {name}`"),
                });
            }
        }
    }
    results
}

/// The median.
///
/// # Panics
/// If there is none.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
