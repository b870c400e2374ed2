//! `ubcache-bench suite`: everything in docs/generated/performance.md.

use std::path::PathBuf;

use ubcache_bench::suite::{Options, document, parts, run as run_parts};

use crate::print;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: cargo xtask bench --quick, which builds ubcache, runs this and writes \
        docs/generated/performance.md"
)]
pub struct Args {
    /// Shorter: a quarter of an hour instead of an hour
    #[arg(long)]
    quick: bool,
    /// Measure only this part, and write no document; several times for several
    #[arg(long, value_name = "PART",
        value_parser = clap::builder::PossibleValuesParser::new(parts()))]
    only: Vec<String>,
    /// The program ubcache [default: beside this one]
    #[arg(long, value_name = "PATH")]
    ubcache: Option<PathBuf>,
    /// Directory for the files of devices, which are removed again
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench-devices")]
    directory: PathBuf,
    /// A recorded load for the rows about hit ratios
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write performance.md and its pictures below this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "only")]
    write: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    let beside = || {
        let program =
            std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
        Ok::<_, String>(program.with_file_name("ubcache"))
    };
    let options = Options {
        quick: args.quick,
        directory: args.directory.join(std::process::id().to_string()),
        ubcache: args.ubcache.clone().map_or_else(beside, Ok)?,
        trace: args.trace.clone(),
        only: args.only.clone(),
        environment: Vec::new(),
    };
    let results = run_parts(&options);
    if let Some(docs) = &args.write {
        document::write(docs, &options, &results)?;
    }
    print(&document::show(&options, &results));
    Ok(())
}
