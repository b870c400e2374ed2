//! `ubcache-bench`: see the library.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ubcache_bench::allocations::Counting;
use ubcache_bench::generate::Load;

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
        after_help = "Examples:\n  ubcache-bench replay trace.csv --cache 50G --cache 200G --svg \
            curve.svg\n  ubcache-bench replay OLTP.lis.zst --share 5 --share 20 --bucket 64k \
            --engine"
    )]
    Replay(commands::replay::Args),
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

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Replay(arguments) => commands::replay::run(&arguments),
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
