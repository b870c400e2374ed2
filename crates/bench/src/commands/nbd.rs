//! `ubcache-bench nbd` and `ubcache-bench memory-server`: from outside, over NBD.

use std::io::Write;
use std::time::Duration;

use ubcache_bench::nbd::Address;
use ubcache_bench::nbd::load::{Load, Order, Outcome, Until, run as run_load};
use ubcache_bench::nbd::memory_server;

use crate::commands::size::parse_size;
use crate::print;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  ubcache-bench nbd unix:/run/ubcache/data.nbd --export data \
        --seconds 10\n  ubcache-bench nbd tcp:localhost:10809 --write 30 --queue-depth 8 \
        --server-pid $(pidof ubcache)")]
pub struct Args {
    /// The server: unix:PATH or tcp:HOST:PORT
    address: Address,
    /// Name of the export
    #[arg(long, value_name = "NAME", default_value = "")]
    export: String,
    /// Connections
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32)
        .range(1..=1024))]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(short = 'q', long, value_name = "NUMBER", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    queue_depth: u32,
    /// Bytes of a request
    #[arg(short, long, value_name = "SIZE", default_value = "4k", value_parser = parse_size)]
    block: u64,
    /// Percentage of writes
    #[arg(short, long, value_name = "PERCENT", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=100))]
    write: u32,
    /// Send requests for consecutive places instead of random ones
    #[arg(long, conflicts_with = "scattered")]
    sequential: bool,
    /// Every block once, one far from the other, instead of at random: fills a cache
    #[arg(long)]
    scattered: bool,
    /// Requests go to this part of the export, from here
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_offset)]
    offset: u64,
    /// Requests go to so many bytes [default: to the end of the export]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    working_set: Option<u64>,
    /// Writes are durable when they are answered
    #[arg(long)]
    fua: bool,
    /// Wait for the writes in flight and flush after so many writes
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    flush_every: u32,
    /// Duration of the load
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Number of requests, in place of a duration
    #[arg(long, value_name = "NUMBER", conflicts_with = "seconds")]
    requests: Option<u64>,
    /// Report the processor time of this process for a request
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Seed of the random places
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_offset(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    let until = match args.requests {
        Some(requests) => Until::Requests(requests),
        None => Until::Time(
            Duration::try_from_secs_f64(args.seconds)
                .map_err(|error| format!("--seconds: {error}"))?,
        ),
    };
    let block_bytes = u32::try_from(args.block).ok().filter(|&bytes| bytes <= 32 << 20);
    let load = Load {
        export: args.export.clone(),
        connections: args.connections,
        queue_depth: args.queue_depth,
        block_bytes: block_bytes.ok_or("--block: expected up to 32M")?,
        write_percent: args.write,
        order: match (args.sequential, args.scattered) {
            (true, _) => Order::Sequential,
            (_, true) => Order::Scattered,
            _ => Order::Random,
        },
        offset_bytes: args.offset,
        span_bytes: args.working_set,
        fua: args.fua,
        flush_every: args.flush_every,
        until,
        server_pid: args.server_pid,
        seed: args.seed,
        ..Load::new(args.address.clone())
    };
    let outcome = run_load(&load)?;
    if args.json {
        print(&format!("{:#}\n", outcome.json()));
    } else {
        show(&outcome);
    }
    match outcome.errors {
        0 => Ok(()),
        errors => Err(format!("{errors} requests were answered with an error")),
    }
}

fn show(outcome: &Outcome) {
    print(&format!(
        "{} requests in {:.2} s: {:.0} a second, {:.1} MB/s\n",
        outcome.requests,
        outcome.elapsed.as_secs_f64(),
        outcome.iops(),
        outcome.bandwidth() / 1e6
    ));
    let latency: Vec<String> = [50.0, 90.0, 99.0, 99.9, 100.0]
        .iter()
        .map(|&percentile| format!("{percentile} %: {:.1}", outcome.percentile_micros(percentile)))
        .collect();
    print(&format!("latency in µs: {}\n", latency.join(", ")));
    let each = |time: Duration| time.as_secs_f64() * 1e6 / outcome.requests as f64;
    print(&format!(
        "processor time for a request in µs: client {:.2}{}; calls of the client for a request: \
         {:.2}\n",
        each(outcome.client_cpu),
        outcome.server_micros().map_or(String::new(), |micros| format!(", server {micros:.2}")),
        outcome.calls as f64 / outcome.requests as f64
    ));
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: ubcache-bench memory-server unix:/tmp/floor.nbd --size 1G")]
pub struct MemoryServerArgs {
    /// Address to listen on: unix:PATH or tcp:HOST:PORT
    address: Address,
    /// Size of the export
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    size: u64,
}

/// Serves until the process is ended.
pub fn serve_memory(args: &MemoryServerArgs) -> Result<(), String> {
    let ready = || {
        print("ready\n");
        let _ = std::io::stdout().flush();
    };
    memory_server::serve(&args.address, args.size, ready).map_err(|error| error.to_string())
}
