//! `ubcache-bench guest`: vhost-user-blk alone.

use ubcache_bench::{guest, instructions};

use crate::print;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Requests that are measured
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    requests: u64,
    /// Requests at a time, with one kick and one call: 1, 2, 4, 8, 16 or 32
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = depth)]
    depth: u16,
    /// Count instructions with valgrind's callgrind, which has to be installed
    #[arg(long)]
    instructions: bool,
    /// Keep callgrind's output here, for callgrind_annotate
    #[arg(long, value_name = "FILE", requires = "instructions")]
    callgrind_out: Option<std::path::PathBuf>,
}

fn depth(text: &str) -> Result<u16, String> {
    let depth = text.parse::<u16>().map_err(|error| error.to_string())?;
    let fits = depth.is_power_of_two() && depth <= guest::DEPTH_MAX;
    let expected = || format!("expected a power of two of at most {}", guest::DEPTH_MAX);
    fits.then_some(depth).ok_or_else(expected)
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    if !args.instructions {
        guest::hits(args.requests, args.depth);
        return Ok(());
    }
    let out = args.callgrind_out.as_deref();
    let each = instructions::count_of_guest(args.requests, args.depth, out)?;
    let load = if args.depth == 1 { "guest-hit" } else { "guest-hits" };
    print(&format!("{load:12} {each:7.0} instructions\n"));
    Ok(())
}
