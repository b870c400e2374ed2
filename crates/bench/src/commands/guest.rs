//! `ubcache-bench guest`: vhost-user-blk alone.

use ubcache_bench::{guest, instructions};

use crate::print;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Requests that are measured
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    requests: u64,
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
        guest::hits(args.requests);
        return Ok(());
    }
    let each = instructions::count_of_guest(args.requests, args.callgrind_out.as_deref())?;
    print(&format!("{:12} {each:7.0} instructions\n", "guest-hit"));
    Ok(())
}
