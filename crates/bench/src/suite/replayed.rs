//! Hit ratios of loads: one made up, and a recorded one if there is one.

use ubcache_format::CacheMode;

use super::{Options, Results, Row};
use crate::BLOCK_BYTES;
use crate::curve::Curve;
use crate::generate::Load;
use crate::through_engine::replay;
use crate::trace::{self, Request};

/// The policy of sets that `ubcache make` makes.
const POLICY: &str = "scan-resistant";

/// Read hits through the engine with a cache of a tenth of the footprint.
pub fn hit_ratios(options: &Options, results: &mut Results) -> Result<(), String> {
    let made_up = Load {
        blocks: 100_000,
        skew: 0.9,
        requests: 1_000_000,
        scan_every: 50_000,
        scan_blocks: 20_000,
        writes_per_mille: 200,
        seed: 1,
    };
    row(results, "a made-up load, Zipf's law with scans", &made_up.requests())?;
    if let Some(path) = &options.trace {
        let requests = trace::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        row(results, "a recorded load", &requests)?;
    }
    Ok(())
}

fn row(results: &mut Results, name: &str, requests: &[Request]) -> Result<(), String> {
    let curve = Curve::of(requests, 1.0, || {});
    let cache_blocks = curve.footprint_blocks() / 10;
    let lru = curve.read_hits(cache_blocks);
    let replayed = replay(requests, cache_blocks * BLOCK_BYTES, CacheMode::Writethrough, POLICY);
    let ours = replayed.map_err(|error| error.to_string())?.hit_ratio();
    results.rows.push(Row {
        what: format!("read hits of {name}, cache of a tenth of the footprint"),
        goal: "≥ LRU of 4 KiB blocks + 2 points".to_owned(),
        reached: format!("{:.1} %", ours * 100.0),
        peer: format!("LRU {:.1} %", lru * 100.0),
        ratio: format!("{:+.1} points", (ours - lru) * 100.0),
        met: Some(ours >= lru + 0.02),
        command: "`ubcache-bench replay TRACE --engine`".to_owned(),
    });
    Ok(())
}
