//! Hit ratios of loads: one made up, and a recorded one if there is one.

use super::{Options, Results, Row};
use crate::BLOCK_BYTES;
use crate::curve::Curve;
use crate::generate::Load;
use crate::through_engine::{Cache, replay};
use crate::trace::{self, TraceRecord};

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
    match &options.trace {
        Some(path) => {
            let requests = trace::read(path, trace::Options::default())
                .map_err(|error| format!("{}: {error}", path.display()))?;
            against_blocks(results, &requests)?;
        }
        None => {
            results.rows.push(Row {
                what: "read hits of a recorded load, cache of a tenth of the footprint".to_owned(),
                goal: GOAL.to_owned(),
                reached: "not measured: it takes `ubcache-bench suite --trace FILE`".to_owned(),
                peer: "–".to_owned(),
                ratio: "–".to_owned(),
                met: None,
                command: COMMAND.to_owned(),
            });
        }
    }
    against_lru(results, &made_up.requests())
}

const GOAL: &str = "≥ LRU of 4 KiB blocks + 2 points";
const COMMAND: &str = "`ubcache-bench replay TRACE --engine`";

/// The number of blocks of a tenth of the footprint, and what an LRU of single blocks would reach
/// with them.
fn tenth(requests: &[TraceRecord]) -> (u64, f64) {
    let curve = Curve::of(requests, 1.0, || {});
    let cache_blocks = curve.footprint_blocks() / 10;
    (cache_blocks, curve.read_hits(cache_blocks))
}

fn through_engine(
    requests: &[TraceRecord],
    cache_blocks: u64,
    policy: &str,
) -> Result<f64, String> {
    let replayed = replay(requests, &Cache::of_size(cache_blocks * BLOCK_BYTES), policy);
    Ok(replayed.map_err(|error| error.to_string())?.0.hit_ratio())
}

fn against_blocks(results: &mut Results, requests: &[TraceRecord]) -> Result<(), String> {
    let (cache_blocks, lru) = tenth(requests);
    let ours = through_engine(requests, cache_blocks, POLICY)?;
    results.rows.push(Row {
        what: "read hits of a recorded load, cache of a tenth of the footprint".to_owned(),
        goal: GOAL.to_owned(),
        reached: format!("{:.1} %", ours * 100.0),
        peer: format!("LRU of 4 KiB blocks {:.1} %", lru * 100.0),
        ratio: format!("{:+.1} points", (ours - lru) * 100.0),
        met: Some(ours >= lru + 0.02),
        command: COMMAND.to_owned(),
    });
    Ok(())
}

fn against_lru(results: &mut Results, requests: &[TraceRecord]) -> Result<(), String> {
    let (cache_blocks, blocks) = tenth(requests);
    let ours = through_engine(requests, cache_blocks, POLICY)?;
    let lru = through_engine(requests, cache_blocks, "lru")?;
    results.rows.push(Row {
        what: "the same of a made-up load, Zipf's law with scans".to_owned(),
        goal: "no more than 1 point below lru".to_owned(),
        reached: format!("{:.1} %", ours * 100.0),
        peer: format!("lru {:.1} %, LRU of 4 KiB blocks {:.1} %", lru * 100.0, blocks * 100.0),
        ratio: format!("{:+.1} points", (ours - lru) * 100.0),
        met: Some(ours >= lru - 0.01),
        command: COMMAND.to_owned(),
    });
    Ok(())
}
