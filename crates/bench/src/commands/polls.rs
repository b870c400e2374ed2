//! `ubcache-bench polls`: the longest polls of the engine, by size of the cache.

use serde_json::{Value, json};
use ubcache_bench::polls::{STEPS_MAX, longest_polls};

use crate::commands::size::parse_size;
use crate::print;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: nice ubcache-bench polls --cache 64g --cache 4t\nNeeds some 200 bytes \
        of memory for each bucket of 512 KiB."
)]
pub struct Args {
    /// Size of the cache; several times for several sizes
    #[arg(long = "cache", value_name = "SIZE", value_parser = parse_size, default_value = "64g")]
    caches: Vec<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    let mut report: Vec<Value> = Vec::new();
    let mut worst = 0;
    for &bytes in &args.caches {
        let stages = longest_polls(bytes).map_err(|error| error.to_string())?;
        worst = stages.iter().map(|stage| stage.longest.steps).max().unwrap_or(0).max(worst);
        if !args.json {
            print(&format!(
                "cache of {} GiB: processor time and steps of the longest polls\n",
                bytes >> 30
            ));
            for stage in &stages {
                let longest = &stage.longest;
                let milliseconds = longest.nanos as f64 / 1e6;
                print(&format!(
                    "  {:45} {milliseconds:7.2} ms ({}), {:6} steps ({}), {} polls\n",
                    stage.name, longest.nanos_of, longest.steps, longest.steps_of, longest.polls,
                ));
            }
        }
        let stages: Vec<Value> = stages.iter().map(|stage| stage.json()).collect();
        report.push(json!({ "cache_bytes": bytes, "stages": stages }));
    }
    if args.json {
        print(&format!("{:#}\n", json!(report)));
    }
    match worst > STEPS_MAX {
        true => Err(format!("a poll took {worst} steps, expected {STEPS_MAX} at most")),
        false => Ok(()),
    }
}
