//! `ubcache-bench served`: hits by NBD, without sockets and devices.

use ubcache_bench::{instructions, served};

use crate::print;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Requests that are measured
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    requests: u64,
    /// Requests at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=served::DEPTH_MAX))]
    depth: u64,
    /// Count instructions with valgrind's callgrind, which has to be installed
    #[arg(long)]
    instructions: bool,
    /// Keep callgrind's output here, for callgrind_annotate
    #[arg(long, value_name = "FILE", requires = "instructions")]
    callgrind_out: Option<std::path::PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    if !args.instructions {
        served::hits(args.requests, args.depth);
        return Ok(());
    }
    let out = args.callgrind_out.as_deref();
    let each = instructions::count_served(args.requests, args.depth, out)?;
    let load = if args.depth == 1 { "nbd-hit" } else { "nbd-hits" };
    print(&format!("{load:12} {each:7.0} instructions\n"));
    Ok(())
}
