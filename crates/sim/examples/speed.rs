//! Speed of the simulator: device I/Os in a second of one core, over fixed seeds.
//!
//! ```text
//! cargo run --release -p ubcache-sim --example speed
//! ```
//!
//! Processor time counts, so that others on the machine do not.

use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::fake_systems::{self, FakeSystem};
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::system::System;
use ubcache_sim::{RunOptions, run_plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEEDS: u64 = 400;

/// Processor seconds of this process, in hundredths.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let fields = stat.rsplit(')').next().expect("the name of the program is in brackets");
    let ticks: Vec<i64> =
        fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // The first word is a letter; utime and stime are fields 14 and 15 of the line.
    (ticks[10] + ticks[11]) as f64 / 100.0
}

fn measure<S: System>(name: &str, options: DrawOptions) {
    let began = processor_seconds();
    let (mut ios, mut operations, mut crashes, mut virtual_seconds) = (0, 0, 0, 0.0);
    for seed in 0..SEEDS {
        let outcome = run_plan::<S>(&draw(seed, options), RunOptions::default());
        assert!(outcome.is_good(), "{name}: seed {seed}: {}", outcome.violations[0].report);
        ios += outcome.ios();
        operations += outcome.operations;
        crashes += outcome.crashes;
        virtual_seconds += outcome.time.as_micros() as f64 / 1e6;
    }
    let seconds = (processor_seconds() - began).max(0.01);
    println!(
        "| {name} | {SEEDS} | {operations} | {ios} | {crashes} | {seconds:.1} | {:.0} | {:.0} |",
        ios as f64 / seconds,
        virtual_seconds / seconds
    );
}

fn main() {
    println!(
        "| | seeds | operations | device I/Os | crashes | processor s | I/Os per s | virtual s per \
         s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let usual = DrawOptions::default();
    measure::<CacheSystem>("engine, as drawn", usual);
    measure::<CacheSystem>(
        "engine, no crashes, no errors",
        DrawOptions { crashes: false, faults: false, ..usual },
    );
    measure::<CacheSystem>("engine, longer runs", DrawOptions { ops_max: 3000, ..usual });
    measure::<FakeSystem<fake_systems::None>>("a fake system without a cache", usual);
}
