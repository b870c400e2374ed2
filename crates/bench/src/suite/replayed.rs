//! Hit ratios of loads: one made up, and a recorded one if there is one.

use super::{Options, Results, Row};
use crate::buckets::BucketCache;
use crate::curve::Curve;
use crate::generate::Load;
use crate::trace::{self, Request};

/// Buckets as `ubcache make` makes them, in blocks.
const BUCKET_BLOCKS: u64 = 128;

/// Read hits with a cache of a tenth of the footprint.
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
    row(results, "a made-up load, Zipf's law with scans", &made_up.requests());
    if let Some(path) = &options.trace {
        let requests = trace::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        row(results, "a recorded load", &requests);
    }
    Ok(())
}

fn row(results: &mut Results, name: &str, requests: &[Request]) {
    let curve = Curve::of(requests, 1.0, || {});
    let cache_blocks = curve.footprint_blocks() / 10;
    let lru = curve.read_hits(cache_blocks);
    let mut buckets = BucketCache::new(cache_blocks, BUCKET_BLOCKS);
    for request in requests {
        buckets.request(request);
    }
    let counts = buckets.counts();
    let ours = counts.read_hits as f64 / counts.reads.max(1) as f64;
    results.rows.push(Row {
        what: format!("read hits of {name}, cache of a tenth of the footprint"),
        goal: "≥ LRU of 4 KiB blocks + 2 points".to_owned(),
        reached: format!("{:.1} %", ours * 100.0),
        peer: format!("LRU {:.1} %", lru * 100.0),
        ratio: format!("{:+.1} points", (ours - lru) * 100.0),
        met: Some(ours >= lru + 0.02),
        command: "`ubcache-bench replay TRACE`".to_owned(),
    });
}
