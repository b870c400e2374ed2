//! `ubcache-bench engine`: the engine alone.

use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Value, json};
use ubcache_bench::engine::{Bench, Cost, Load, Memory};
use ubcache_bench::instructions;
use ubcache_bench::kept::NullKept;
use ubcache_engine::{KEPT_BYTES, SetOptions, Tuning};
use ubcache_env::KeptMemory;

use crate::commands::size::parse_size;
use crate::print;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  ubcache-bench engine\n  ubcache-bench engine --load hit \
        --instructions\n  perf record ubcache-bench engine --load hit --requests 20000000")]
pub struct Args {
    /// Load to run: hit, hot-hit, write, write-clean, write-through, miss; several times for
    /// several [default: all]
    #[arg(long = "load", value_name = "LOAD")]
    loads: Vec<Load>,
    /// Bytes that hits and writes go to, and the size of the cache for misses
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    working_set: Option<u64>,
    /// Requests that are measured
    #[arg(long, value_name = "NUMBER")]
    requests: Option<u64>,
    /// Number of slices of the run, of which the median and the cheapest are reported
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    slices: u64,
    /// Extents of the index that may be in memory
    #[arg(long, value_name = "NUMBER")]
    extents_in_memory: Option<usize>,
    /// Give the set kept memory, which each change of the index is copied to
    #[arg(long)]
    kept: bool,
    /// Measure memory: what the set holds with 1 GiB in pieces of 4 KiB, and 16 GiB in pieces of 64
    /// KiB
    #[arg(long)]
    memory: bool,
    /// Count instructions with valgrind's callgrind, which has to be installed. The working set is
    /// 64M by default
    #[arg(long)]
    instructions: bool,
    /// Keep callgrind's output here, for callgrind_annotate
    #[arg(long, value_name = "FILE", requires = "instructions")]
    callgrind_out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Options of a run under callgrind that are those of this one.
    fn passed_on(&self) -> Vec<String> {
        let extents = self.extents_in_memory.map(|extents| extents.to_string());
        let extents = extents.map(|extents| ["--extents-in-memory".to_owned(), extents]);
        let kept = self.kept.then(|| "--kept".to_owned());
        extents.into_iter().flatten().chain(kept).collect()
    }

    fn options(&self) -> SetOptions {
        let mut tuning = Tuning::default();
        tuning.extents_in_memory_max =
            self.extents_in_memory.unwrap_or(tuning.extents_in_memory_max);
        let kept = self.kept.then(|| -> Rc<dyn KeptMemory> { Rc::new(NullKept::new(KEPT_BYTES)) });
        SetOptions { tuning, kept, ..SetOptions::default() }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), String> {
    let loads = if args.loads.is_empty() && !args.memory { Load::ALL } else { &args.loads };
    let mut report: Vec<Value> = Vec::new();
    for &load in loads {
        if args.instructions {
            report.push(count_instructions(args, load)?);
            continue;
        }
        let working_set = args.working_set.unwrap_or(1 << 30);
        let requests = args.requests.unwrap_or(if matches!(load, Load::Hit | Load::HotHit) {
            4_000_000
        } else {
            1_000_000
        });
        let mut bench =
            Bench::new(load, working_set, args.options()).map_err(|error| error.to_string())?;
        let cost = bench.measure(requests, args.slices.max(1));
        if !args.json {
            show(&cost);
        }
        report.push(cost.json());
    }
    let mut memory = Vec::new();
    if args.memory {
        for (cached, piece) in [(1 << 30, 4 << 10), (16 << 30, 64 << 10)] {
            let found = Memory::measure(cached, piece, args.options())
                .map_err(|error| error.to_string())?;
            if !args.json {
                print(&format!(
                    "memory, {} GiB in pieces of {} KiB: {:.2} MiB for every GiB, and {:.2} MiB \
                     when empty\n",
                    cached >> 30,
                    piece >> 10,
                    found.bytes_per_gib() / f64::from(1 << 20),
                    found.empty_bytes as f64 / f64::from(1 << 20),
                ));
            }
            memory.push(found.json());
        }
    }
    if args.json {
        print(&format!("{:#}\n", json!({ "loads": report, "memory": memory })));
    }
    Ok(())
}

fn show(cost: &Cost) {
    let each = |number: u64| number as f64 / cost.requests as f64;
    print(&format!(
        "{:12} {:7.0} ns ({:.0} at best), {:.3} allocations, {:.0} bytes allocated; to the cache \
         {:.3} reads, {:.3} \
         writes, {:.0} bytes written; to the backing device {:.3} reads, {:.3} writes\n",
        cost.load.name(),
        cost.nanos,
        cost.nanos_best,
        cost.allocations,
        cost.allocated_bytes,
        each(cost.cache.reads),
        each(cost.cache.writes),
        each(cost.cache.written_bytes),
        each(cost.backing.reads),
        each(cost.backing.writes),
    ));
}

fn count_instructions(args: &Args, load: Load) -> Result<Value, String> {
    let requests = args.requests.unwrap_or(20_000);
    let working_set = args.working_set.unwrap_or(64 << 20);
    let each = instructions::count(
        load,
        working_set,
        requests,
        &args.passed_on(),
        args.callgrind_out.as_deref(),
    )?;
    if !args.json {
        print(&format!("{:12} {each:7.0} instructions\n", load.name()));
    }
    Ok(json!({
        "load": load.name(),
        "requests": requests,
        "working_set_bytes": working_set,
        "instructions": each,
    }))
}
