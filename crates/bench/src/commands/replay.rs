//! `ubcache-bench replay`: hit ratios of a recorded load.

use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_bench::buckets::{BucketCache, Counts};
use ubcache_bench::curve::Curve;
use ubcache_bench::report::{PolicyResult, Replay, Row};
use ubcache_bench::through_engine::{Cache, replay as replay_through};
use ubcache_bench::trace::{self, Options, TraceRecord};
use ubcache_bench::{BLOCK_BYTES, report};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use crate::commands::size::{parse_bytes, parse_size};
use crate::print;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// CSV (time,op,offset,size, or named columns), .vscsi, the text of blkparse, ARC's .lis,
    /// MQSim, or oracleGeneral; also packed with xz or zstd; - for standard input
    trace: PathBuf,
    /// Size of the cache, as in 200G; several times for several sizes [default: shares of the
    /// footprint]
    #[arg(long = "cache", value_name = "SIZE", value_parser = parse_size)]
    caches: Vec<u64>,
    /// Size of the cache in percent of the footprint; several times for several sizes
    #[arg(long = "share", value_name = "PERCENT", conflicts_with = "caches")]
    shares: Vec<f64>,
    /// Size of a bucket [default: 512k; with --engine smaller in a small cache]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bucket: Option<u64>,
    /// Size of a block in a trace in the format .lis, some of which count pages of a database
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_bytes)]
    lis_block: u64,
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
    /// With --engine: add to the cache what the set keeps free and uses for itself, a few dozen
    /// buckets, which are a large part of a small cache
    #[arg(long, requires = "engine")]
    net: bool,
    /// Have each miss cached with the rest of the part of this size that it is in, as the attribute
    /// `readahead` does [default: alone]. The engine gets whole requests then, and not block by
    /// block; --json has the bytes that were read from the disk
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    fill_unit: Option<u64>,
    /// Draw the curves into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const POLICIES: [&str; 6] = ["lru", "fifo", "random", "scan-resistant", "two-queue", "adaptive"];

/// Shares of the footprint that are looked at if no sizes are given.
const SHARES: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0];

const BUCKET_BYTES: u64 = 512 << 10;

/// Carries the command out.
pub fn run(arguments: &Args) -> Result<(), String> {
    if !(arguments.sample > 0.0 && arguments.sample <= 1.0) {
        return Err(format!("--sample {}: expected more than 0 and at most 1", arguments.sample));
    }
    if let Some(share) = arguments.shares.iter().find(|share| !(0.0..=1000.0).contains(*share)) {
        return Err(format!("--share {share}: expected from 0 to 1000"));
    }
    let shown = arguments.trace.display().to_string();
    let options = Options { lis_block_bytes: arguments.lis_block };
    let requests =
        trace::read(&arguments.trace, options).map_err(|error| format!("{shown}: {error}"))?;
    let progress = bar("reuse distances", requests.len());
    let curve = Curve::of(&requests, arguments.sample, || progress.inc(1));
    progress.finish_and_clear();
    let footprint = curve.footprint_blocks();
    let rows = sizes(arguments, footprint).into_iter().map(|cache_blocks| {
        Ok(Row {
            cache_blocks,
            of_footprint: cache_blocks as f64 / footprint.max(1) as f64,
            lru: curve.read_hits(cache_blocks),
            buckets: (curve.rate() == 1.0).then(|| run_buckets(&requests, cache_blocks, arguments)),
            engine: through_engine(&requests, cache_blocks, arguments)?,
        })
    });
    let rows = rows.collect::<Result<Vec<Row>, String>>()?;
    let sum = |write: bool| {
        let kind = requests.iter().filter(|request| request.write == write);
        kind.map(|request| request.bytes).sum::<u64>()
    };
    let name = arguments.trace.file_name().map(|name| name.to_string_lossy().into_owned());
    let replay = Replay {
        trace: name.unwrap_or(shown),
        requests: requests.len() as u64,
        read_bytes: sum(false),
        written_bytes: sum(true),
        footprint_blocks: footprint,
        rate: curve.rate(),
        bucket_bytes: arguments.bucket_bytes(),
        rows,
    };
    if let Some(path) = &arguments.svg {
        std::fs::write(path, report::svg(&replay))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text = match arguments.json {
        true => format!("{:#}\n", replay.json()),
        false => replay.table(),
    };
    print(&text);
    Ok(())
}

impl Args {
    fn bucket_bytes(&self) -> u64 {
        self.bucket.unwrap_or(BUCKET_BYTES)
    }
}

/// Sizes of the cache in blocks.
fn sizes(arguments: &Args, footprint: u64) -> Vec<u64> {
    let of = |shares: &[f64]| -> Vec<u64> {
        shares.iter().map(|share| (footprint as f64 * share) as u64).collect()
    };
    let mut sizes: Vec<u64> = if !arguments.shares.is_empty() {
        let shares: Vec<f64> = arguments.shares.iter().map(|share| share / 100.0).collect();
        of(&shares)
    } else if !arguments.caches.is_empty() {
        arguments.caches.iter().map(|bytes| bytes / BLOCK_BYTES).collect()
    } else {
        of(SHARES)
    };
    sizes.sort_unstable();
    sizes
}

/// A bar for so many steps, on a terminal.
fn bar(what: &str, steps: usize) -> ProgressBar {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(steps as u64),
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

/// Results of the engine with each policy.
fn through_engine(
    requests: &[TraceRecord],
    cache_blocks: u64,
    arguments: &Args,
) -> Result<Vec<PolicyResult>, String> {
    let policies: Vec<&str> = match (arguments.engine, arguments.policies.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => POLICIES.to_vec(),
        (true, false) => arguments.policies.iter().map(String::as_str).collect(),
    };
    let cache = Cache {
        bytes: cache_blocks * BLOCK_BYTES,
        bucket_sectors: arguments.bucket.map(|bytes| (bytes / SECTOR_BYTES) as u32),
        mode: CacheMode::Writethrough,
        net: arguments.net,
        fill_unit_bytes: arguments.fill_unit,
    };
    let of_policy = |policy: &str| {
        let progress = bar(policy, 1);
        let replayed = replay_through(requests, &cache, policy);
        progress.finish_and_clear();
        let (counts, curve) = replayed.map_err(|error| error.to_string())?;
        Ok(PolicyResult {
            policy: policy.to_owned(),
            counts,
            estimated_hits: curve.read_hits(cache.bytes),
        })
    };
    policies.into_iter().map(of_policy).collect()
}

fn run_buckets(requests: &[TraceRecord], cache_blocks: u64, arguments: &Args) -> Counts {
    let progress = bar("buckets", requests.len());
    let (bucket, fill) = (arguments.bucket_bytes(), arguments.fill_unit.unwrap_or(BLOCK_BYTES));
    let mut cache = BucketCache::new(cache_blocks, bucket / BLOCK_BYTES, fill / BLOCK_BYTES);
    for request in requests {
        cache.request(request);
        progress.inc(1);
    }
    progress.finish_and_clear();
    cache.counts()
}
