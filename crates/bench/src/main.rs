//! `ubcache-bench`: see the library.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ubcache_bench::allocations::Counting;
use ubcache_bench::buckets::BucketCache;
use ubcache_bench::curve::Curve;
use ubcache_bench::generate::Load;
use ubcache_bench::report::{Replay, Row};
use ubcache_bench::through_engine::replay as replay_through;
use ubcache_bench::trace::TraceRecord;
use ubcache_bench::{BLOCK_BYTES, trace};
use ubcache_format::CacheMode;

mod commands;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Measuring for ubcache
#[derive(Parser, Debug)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 done, 1 the trace can't be used, 2 wrong usage"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Estimate the hit ratios of a recorded load by cache size
    #[command(
        after_help = "Example: ubcache-bench replay trace.csv --cache 50G --cache 200G --svg \
            curve.svg"
    )]
    Replay(ReplayArguments),
    /// Print a made-up load as CSV: Zipf's law, with scans
    #[command(after_help = "Example: ubcache-bench generate --scan-every 50000 > load.csv")]
    Generate(GenerateArguments),
    /// Measure the cost of the engine alone: processor time, instructions, allocations and memory,
    /// over devices that do nothing
    Engine(commands::engine::Args),
    /// Measure the longest poll of the engine, in which no other request is served, by size of the
    /// cache
    Polls(commands::polls::Args),
    /// Measure the cost of vhost-user-blk alone: reads of 4 KiB of a guest
    Guest(commands::guest::Args),
    /// Measure the cost of read hits of 4 KiB by NBD, without sockets and devices
    Served(commands::served::Args),
    /// Load an NBD server: throughput, latency, processor time
    Nbd(commands::nbd::Args),
    /// Serve memory over NBD: the least that a server costs
    MemoryServer(commands::nbd::MemoryServerArgs),
    /// Measure everything in docs/generated/performance.md
    Suite(commands::suite::Args),
}

#[derive(clap::Args, Debug)]
struct ReplayArguments {
    /// CSV (time,op,offset,size, or named columns), .vscsi, or the text of blkparse; also packed
    /// with xz; - for standard input
    trace: PathBuf,
    /// Size of the cache, as in 200G; several times for several sizes [default: shares of the
    /// footprint]
    #[arg(long = "cache", value_name = "SIZE", value_parser = parse_size)]
    caches: Vec<u64>,
    /// Size of a bucket
    #[arg(long, value_name = "SIZE", default_value = "512k", value_parser = parse_size)]
    bucket: u64,
    /// Follow only this share of the blocks, from 0 to 1: for long traces
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    sample: f64,
    /// Replay through the engine itself, too, with each replacement policy: slower, needs memory,
    /// no sampling
    #[arg(long)]
    engine: bool,
    /// With --engine: only this replacement policy; several times for several
    #[arg(long = "policy", value_name = "POLICY", requires = "engine", value_parser = POLICIES)]
    policies: Vec<String>,
    /// Draw the curve into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct GenerateArguments {
    /// Different blocks of 4 KiB
    #[arg(long, default_value_t = 100_000)]
    blocks: u64,
    /// Zipf's exponent
    #[arg(long, default_value_t = 0.9)]
    skew: f64,
    /// Number of requests
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// Every so many requests a scan begins; 0: never
    #[arg(long, default_value_t = 0)]
    scan_every: u64,
    /// Blocks of a scan
    #[arg(long, default_value_t = 20_000)]
    scan_blocks: u64,
    /// Writes in a thousand requests
    #[arg(long, default_value_t = 200)]
    writes: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const POLICIES: [&str; 4] = ["lru", "fifo", "random", "scan-resistant"];

/// Shares of the footprint that are looked at if no sizes are given.
const SHARES: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0];

/// A set needs some hundreds of buckets, of 32 KiB at least.
const CACHE_BYTES_MIN: u64 = 32 << 20;

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib") {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => {
            return Err(
                "expected a number of bytes, with k, M, G or T for powers of 1024".to_owned()
            );
        }
    };
    let number: u64 =
        digits.parse().map_err(|_| "expected a whole number before the unit".to_owned())?;
    number
        .checked_mul(1 << (10 * power))
        .filter(|&bytes| bytes >= BLOCK_BYTES)
        .ok_or_else(|| "expected from 4k to less than 16 EiB".to_owned())
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Replay(arguments) => replay(&arguments),
        Command::Generate(arguments) => generate(&arguments),
        Command::Engine(arguments) => commands::engine::run(&arguments),
        Command::Polls(arguments) => commands::polls::run(&arguments),
        Command::Guest(arguments) => commands::guest::run(&arguments),
        Command::Served(args) => commands::served::run(&args),
        Command::Nbd(arguments) => commands::nbd::run(&arguments),
        Command::Suite(arguments) => commands::suite::run(&arguments),
        Command::MemoryServer(arguments) => commands::nbd::serve_memory(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ubcache-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

/// A bar for so many requests, on a terminal.
fn bar(what: &str, requests: usize) -> ProgressBar {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(requests as u64),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) =
        ProgressStyle::with_template("{msg:24} {bar:24} {pos} of {len}, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

fn replay(arguments: &ReplayArguments) -> Result<(), String> {
    if !(arguments.sample > 0.0 && arguments.sample <= 1.0) {
        return Err(format!("--sample {}: expected more than 0 and at most 1", arguments.sample));
    }
    let shown = arguments.trace.display().to_string();
    let requests = trace::read(&arguments.trace).map_err(|error| format!("{shown}: {error}"))?;
    let progress = bar("reuse distances", requests.len());
    let curve = Curve::of(&requests, arguments.sample, || progress.inc(1));
    progress.finish_and_clear();
    let footprint = curve.footprint_blocks();
    let mut sizes: Vec<u64> = match arguments.caches.is_empty() {
        true => SHARES.iter().map(|share| (footprint as f64 * share) as u64).collect(),
        false => arguments.caches.iter().map(|bytes| bytes / BLOCK_BYTES).collect(),
    };
    sizes.sort_unstable();
    let bucket_blocks = arguments.bucket / BLOCK_BYTES;
    let rows = sizes.into_iter().map(|cache_blocks| Row {
        cache_blocks,
        of_footprint: cache_blocks as f64 / footprint.max(1) as f64,
        lru: curve.read_hits(cache_blocks),
        buckets: (curve.rate() == 1.0).then(|| run_buckets(&requests, cache_blocks, bucket_blocks)),
    });
    let sum = |write: bool| {
        requests
            .iter()
            .filter(|request| request.write == write)
            .map(|request| request.bytes)
            .sum::<u64>()
    };
    let name = arguments
        .trace
        .file_name()
        .map_or(shown.clone(), |name| name.to_string_lossy().into_owned());
    let replay = Replay {
        trace: name,
        requests: requests.len() as u64,
        read_bytes: sum(false),
        written_bytes: sum(true),
        footprint_blocks: footprint,
        rate: curve.rate(),
        bucket_bytes: arguments.bucket,
        rows: rows.collect(),
    };
    if let Some(path) = &arguments.svg {
        std::fs::write(path, replay.svg())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if arguments.json {
        print(&format!("{:#}\n", replay.json()))
    } else {
        print(&replay.table())
    }
    let policies: Vec<&str> = match arguments.policies.is_empty() {
        true => POLICIES.to_vec(),
        false => arguments.policies.iter().map(String::as_str).collect(),
    };
    if arguments.engine { through_engine(&requests, &replay, &policies) } else { Ok(()) }
}

/// Prints what the engine reaches with each of these policies.
fn through_engine(
    requests: &[TraceRecord],
    replay: &Replay,
    policies: &[&str],
) -> Result<(), String> {
    print("\nthrough the engine, blocks of 4 KiB, writethrough:\n");
    print("      cache  policy          read hits  written to the cache per byte wanted there\n");
    for row in &replay.rows {
        let cache_bytes = (row.cache_blocks * BLOCK_BYTES).max(CACHE_BYTES_MIN);
        let mut estimate = None;
        for &policy in policies {
            let progress = bar(policy, 1);
            let replayed = replay_through(requests, cache_bytes, CacheMode::Writethrough, policy);
            progress.finish_and_clear();
            let (replayed, curve) = replayed.map_err(|error| error.to_string())?;
            let amplification =
                replayed.cache_written_bytes as f64 / replayed.wanted_bytes.max(1) as f64;
            let hits = replayed.hit_ratio();
            print(&format!(
                "{:>7} MiB  {policy:<14}  {hits:>9.3}  {amplification:.2}\n",
                cache_bytes >> 20
            ));
            estimate = curve.read_hits(cache_bytes);
        }
        let share = estimate.map_or("none".to_owned(), |share: f64| format!("{share:.3}"));
        print(&format!(
            "{:>7} MiB  {:<14}  {share:>9}  as `ubcache advise` has it\n",
            cache_bytes >> 20,
            "estimate"
        ));
    }
    Ok(())
}

fn run_buckets(
    requests: &[TraceRecord],
    cache_blocks: u64,
    bucket_blocks: u64,
) -> ubcache_bench::buckets::Counts {
    let progress = bar("buckets", requests.len());
    let mut cache = BucketCache::new(cache_blocks, bucket_blocks);
    for request in requests {
        cache.request(request);
        progress.inc(1);
    }
    progress.finish_and_clear();
    cache.counts()
}

fn generate(arguments: &GenerateArguments) -> Result<(), String> {
    let load = Load {
        blocks: arguments.blocks,
        skew: arguments.skew,
        requests: arguments.requests,
        scan_every: arguments.scan_every,
        scan_blocks: arguments.scan_blocks,
        writes_per_mille: arguments.writes,
        seed: arguments.seed,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (time, request) in load.requests().iter().enumerate() {
        let word = if request.write { 'W' } else { 'R' };
        if writeln!(out, "{time},{word},{},{}", request.offset, request.bytes).is_err() {
            // The reader has had enough.
            return Ok(());
        }
    }
    Ok(())
}

/// Prints to standard output. Ignores a closed pipe.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
