//! A trace through the engine itself, over devices that complete at once: the worth of a policy,
//! and its cost.

use ubcache_engine::stats::reuse::ReuseCurve;
use ubcache_engine::{EngineError, SetOptions};
use ubcache_env::{Buf, IoVec, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, MIN_BUCKETS, SECTOR_BYTES};

use crate::BLOCK_BYTES;
use crate::curve::blocks;
use crate::null::{BUCKET_SECTORS, REQUEST_TIME, REQUESTS_PER_TURN, Rig, Shape};
use crate::random::Random;
use crate::trace::TraceRecord;

/// Background work has this much time after each turn, as it has between the requests of a recorded
/// load.
const TURN_TIME: Nanos = Nanos::from_millis(30);
/// A flush after so many blocks.
const FLUSH_EVERY: u64 = 4096;

/// Result of a replay.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Reads of blocks, or of whole requests.
    pub reads: u64,
    /// Bytes that they asked for.
    pub read_bytes: u64,
    /// Reads answered by the cache.
    pub read_hits: u64,
    /// Bytes read from the backing device.
    pub backing_read_bytes: u64,
    /// Bytes that clients wrote, and that misses brought in.
    pub wanted_bytes: u64,
    /// Bytes written to the cache device.
    pub cache_written_bytes: u64,
    /// Size of the cache device, which is larger than the cache if that is net.
    pub device_bytes: u64,
    /// Size of a bucket.
    pub bucket_bytes: u64,
}

impl Replayed {
    /// Bytes written to the cache device for each byte that clients read.
    pub fn written_per_byte_read(&self) -> f64 {
        self.cache_written_bytes as f64 / self.read_bytes.max(1) as f64
    }

    /// Bytes read from the backing device for each byte that clients read.
    pub fn fetched_per_byte_read(&self) -> f64 {
        self.backing_read_bytes as f64 / self.read_bytes.max(1) as f64
    }

    /// Bytes written to the cache device for each byte that was missing there: written by clients,
    /// or brought in by misses.
    pub fn written_per_byte_wanted(&self) -> f64 {
        self.cache_written_bytes as f64 / self.wanted_bytes.max(1) as f64
    }

    /// Read hits per read.
    pub fn hit_ratio(&self) -> f64 {
        self.read_hits as f64 / self.reads.max(1) as f64
    }
}

/// The cache of a replay.
#[derive(Copy, Clone, Debug)]
pub struct Cache {
    /// Size in bytes.
    pub bytes: u64,
    /// Sectors in a bucket; `None` for so many that there are some thousands of buckets. In a
    /// cache that would have fewer buckets than the format asks for, they are smaller.
    pub bucket_sectors: Option<u32>,
    /// Cache mode.
    pub mode: CacheMode,
    /// True to add what the set keeps free and uses for itself, so that data has `bytes`.
    pub net: bool,
    /// Replays whole requests, and has each miss cached with the rest of the part of this size that
    /// it is in (attribute `readahead`); `None` for block by block, each alone.
    pub fill_unit_bytes: Option<u64>,
}

impl Cache {
    /// A cache in the mode writethrough, with buckets that suit it.
    pub fn of_size(bytes: u64) -> Cache {
        Cache {
            bytes,
            bucket_sectors: None,
            mode: CacheMode::Writethrough,
            net: false,
            fill_unit_bytes: None,
        }
    }

    /// Sectors in a bucket of this cache.
    pub fn bucket_sectors(&self) -> u32 {
        let sectors = self.bytes / SECTOR_BYTES;
        let wanted = (sectors / 4096).max(1).next_power_of_two() as u32;
        let usual = wanted.clamp(64, BUCKET_SECTORS);
        let most = (sectors / u64::from(MIN_BUCKETS)).max(1).ilog2();
        self.bucket_sectors.unwrap_or(usual).min(1 << most)
    }

    /// A set on such a cache, where everything is cached and nothing is congested.
    fn rig(&self, volume_bytes: u64, policy: &str) -> Result<Rig, EngineError> {
        let rig = Rig::new(&Shape {
            cache_bytes: self.bytes,
            bucket_sectors: self.bucket_sectors(),
            volume_bytes,
            mode: self.mode,
            options: SetOptions::default(),
        })?;
        rig.set("sequential_cutoff", "0");
        if let Some(bytes) = self.fill_unit_bytes {
            rig.set("readahead", &bytes.to_string());
        }
        for (name, value) in [
            ("congested_read_threshold_us", "0"),
            ("congested_write_threshold_us", "0"),
            ("cache_replacement_policy", policy),
        ] {
            rig.set.set_attribute(name, value).unwrap_or_else(|error| panic!("{error}"));
        }
        Ok(rig)
    }

    /// Bytes of a full cache that hold no data: metadata, and buckets that are kept free.
    fn overhead_bytes(&self) -> Result<u64, EngineError> {
        let blocks = self.bytes / BLOCK_BYTES;
        let rig = self.rig(4 * self.bytes, "lru")?;
        let mut random = Random::new(1);
        rig.world.run(async {
            for number in 0..2 * blocks {
                rig.read(random.below(4 * blocks) * BLOCK_BYTES, BLOCK_BYTES).await;
                rig.world.settle().await;
                if number % REQUESTS_PER_TURN == 0 {
                    rig.world.pass(TURN_TIME);
                }
            }
        });
        let map = rig.world.run(rig.set.bucket_map(1));
        let without_data: u64 = map.cells.iter().map(|cell| cell.free + cell.metadata).sum();
        Ok(without_data * map.bucket_bytes)
    }

    /// The cache that has room for `bytes` of data.
    fn with_overhead(mut self) -> Result<Cache, EngineError> {
        if self.net {
            let bucket_sectors = self.bucket_sectors();
            let wanted = self.bytes;
            // A larger cache keeps more for itself.
            for _ in 0..2 {
                self.bytes = wanted + self.overhead_bytes()?;
            }
            (self.bucket_sectors, self.net) = (Some(bucket_sectors), false);
        }
        Ok(self)
    }
}

/// Offset and bytes of the requests that a trace's request becomes: whole blocks.
fn pieces(request: &TraceRecord, whole: bool) -> impl Iterator<Item = (u64, u64)> + use<> {
    let piece_blocks = if whole { blocks(request).count().max(1) } else { 1 };
    let bytes = piece_blocks as u64 * BLOCK_BYTES;
    blocks(request).step_by(piece_blocks).map(move |block| (block * BLOCK_BYTES, bytes))
}

/// Replays a trace against a cache, with everything cached and nothing written back late. Returns
/// the engine's estimate for caches of other sizes as well. `policy` is a value of
/// `cache_replacement_policy`.
///
/// # Errors
/// If the set can't be made.
///
/// # Panics
/// If the policy is unknown, or a request fails.
pub fn replay(
    trace: &[TraceRecord],
    cache: &Cache,
    policy: &str,
) -> Result<(Replayed, ReuseCurve), EngineError> {
    let end = trace.iter().map(|request| request.offset + request.bytes).max().unwrap_or(0);
    let cache = cache.with_overhead()?;
    let rig = cache.rig(end.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES, policy)?;
    let mut counts = Replayed {
        device_bytes: cache.bytes,
        bucket_bytes: u64::from(cache.bucket_sectors()) * SECTOR_BYTES,
        ..Replayed::default()
    };
    let hits = || rig.volume.status().stats.cache_hits;
    let fetched = || rig.volume.status().backing.read_bytes;
    let written = || rig.set.status().cache.written_bytes;
    let (hits_before, fetched_before, written_before) = (hits(), fetched(), written());
    let mut client_written_bytes = 0;
    rig.world.run(async {
        let mut number = 0;
        for request in trace {
            for (at, bytes) in pieces(request, cache.fill_unit_bytes.is_some()) {
                if request.write {
                    rig.world.pass(REQUEST_TIME);
                    let range = SectorRange::new(Sector(at / SECTOR_BYTES), bytes / SECTOR_BYTES);
                    let data = IoVec::from(Buf::zeroed(bytes as usize));
                    let done = rig.volume.write(StreamId(0), range, data, false).await;
                    done.unwrap_or_else(|error| panic!("writing {range}: {error}"));
                    client_written_bytes += bytes;
                } else {
                    counts.reads += 1;
                    counts.read_bytes += bytes;
                    rig.read(at, bytes).await;
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
    counts.backing_read_bytes = fetched() - fetched_before;
    counts.cache_written_bytes = written() - written_before;
    counts.wanted_bytes = client_written_bytes + counts.backing_read_bytes;
    Ok((counts, rig.set.reuse_curve()))
}
