//! A trace through the engine itself, over devices that complete at once: the worth of a policy,
//! and its cost.

use ubcache_engine::stats::reuse::ReuseCurve;
use ubcache_engine::{EngineError, SetOptions};
use ubcache_env::{Buf, IoVec, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use crate::BLOCK_BYTES;
use crate::curve::blocks;
use crate::null::{BUCKET_SECTORS, REQUEST_TIME, REQUESTS_PER_TURN, Rig, Shape};
use crate::trace::TraceRecord;

/// Background work has this much time after each turn, as it has between the requests of a recorded
/// load.
const TURN_TIME: Nanos = Nanos::from_millis(30);
/// A flush after so many blocks.
const FLUSH_EVERY: u64 = 4096;

/// Result of a replay.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Reads of blocks.
    pub reads: u64,
    /// Reads answered by the cache.
    pub read_hits: u64,
    /// Bytes that clients wrote, and that misses brought in.
    pub wanted_bytes: u64,
    /// Bytes written to the cache device.
    pub cache_written_bytes: u64,
}

impl Replayed {
    /// Read hits per read.
    pub fn hit_ratio(&self) -> f64 {
        self.read_hits as f64 / self.reads.max(1) as f64
    }
}

/// Small caches get small buckets, so that there are some thousands of them.
fn bucket_sectors(cache_bytes: u64) -> u32 {
    let wanted = cache_bytes / SECTOR_BYTES / 4096;
    (wanted.max(1).next_power_of_two() as u32).clamp(64, BUCKET_SECTORS)
}

/// Replays a trace block by block against a cache of this size, with everything cached and nothing
/// written back late. Returns the engine's estimate for caches of other sizes as well. `policy` is
/// a value of `cache_replacement_policy`.
///
/// # Errors
/// If the set can't be made.
///
/// # Panics
/// If the policy is unknown, or a request fails.
pub fn replay(
    trace: &[TraceRecord],
    cache_bytes: u64,
    mode: CacheMode,
    policy: &str,
) -> Result<(Replayed, ReuseCurve), EngineError> {
    let end = trace.iter().map(|request| request.offset + request.bytes).max().unwrap_or(0);
    let volume_bytes = end.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
    let options = SetOptions::default();
    let rig = Rig::new(&Shape {
        cache_bytes,
        bucket_sectors: bucket_sectors(cache_bytes),
        volume_bytes,
        mode,
        options,
    })?;
    rig.set("sequential_cutoff", "0");
    rig.set
        .set_attribute("congested_read_threshold_us", "0")
        .unwrap_or_else(|error| panic!("{error}"));
    rig.set
        .set_attribute("congested_write_threshold_us", "0")
        .unwrap_or_else(|error| panic!("{error}"));
    rig.set
        .set_attribute("cache_replacement_policy", policy)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut counts = Replayed::default();
    let hits = || rig.volume.status().stats.cache_hits;
    let written = || rig.set.status().cache.written_bytes;
    let (hits_before, written_before) = (hits(), written());
    rig.world.run(async {
        let mut number = 0;
        for request in trace {
            for block in blocks(request) {
                let at = Sector(block * BLOCK_BYTES / SECTOR_BYTES);
                let range = SectorRange::new(at, BLOCK_BYTES / SECTOR_BYTES);
                if request.write {
                    rig.world.pass(REQUEST_TIME);
                    let data = IoVec::from(Buf::zeroed(BLOCK_BYTES as usize));
                    let done = rig.volume.write(StreamId(0), range, data, false).await;
                    done.unwrap_or_else(|error| panic!("writing {range}: {error}"));
                } else {
                    counts.reads += 1;
                    rig.read(block * BLOCK_BYTES, BLOCK_BYTES).await;
                    // The next read may be of the same block: what this one brought in has arrived
                    // by then.
                    rig.world.settle().await;
                }
                number += 1;
                if number % REQUESTS_PER_TURN == 0 {
                    rig.world.pass(TURN_TIME);
                    rig.world.settle().await;
                }
                if number % FLUSH_EVERY == 0 {
                    rig.volume
                        .flush(StreamId(0))
                        .await
                        .unwrap_or_else(|error| panic!("flushing: {error}"));
                }
            }
        }
        rig.world.settle().await;
    });
    counts.read_hits = hits() - hits_before;
    counts.cache_written_bytes = written() - written_before;
    let writes: u64 = trace
        .iter()
        .filter(|request| request.write)
        .map(|request| blocks(request).count() as u64)
        .sum();
    counts.wanted_bytes = (writes + counts.reads - counts.read_hits) * BLOCK_BYTES;
    Ok((counts, rig.set.reuse_curve()))
}
