//! Bytes written to the cache device for each byte that a client writes: counted, not timed.
//!
//! Requests take time here, so that writes that have to be durable at the same moment can share a
//! journal entry, as they do over a real device. The time is on the world's clock and the same in
//! every run.

use std::cell::Cell;

use ubcache_engine::{EngineError, SetOptions};
use ubcache_env::local::join_all;
use ubcache_env::{Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use crate::BLOCK_BYTES;
use crate::null::device::client_data;
use crate::null::{BUCKET_SECTORS, Rig, Shape};
use crate::random::Random;

const QUEUE_DEPTH: u64 = 32;
/// Duration of a request on either device.
const LATENCY: Nanos = Nanos::from_micros(50);

/// When writes become durable.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Sync {
    /// The engine flushes as it likes.
    Never,
    /// A flush after so many writes, which are all answered by then.
    FlushEvery(u64),
    /// Every write is durable when it is answered.
    EveryWrite,
}

/// Bytes written to the cache device for a byte of random 4 KiB writes in writeback mode, 32 at a
/// time, over a cache 16 times as large as the working set. Nothing is written back meanwhile.
pub fn amplification(
    sync: Sync,
    working_set_bytes: u64,
    requests: u64,
) -> Result<f64, EngineError> {
    let rig = Rig::new(&Shape {
        cache_bytes: working_set_bytes * 16,
        bucket_sectors: BUCKET_SECTORS,
        volume_bytes: working_set_bytes,
        mode: CacheMode::Writeback,
        options: SetOptions::default(),
    })?;
    rig.set("writeback_running", "0");
    rig.cache.set_latency(LATENCY);
    rig.backing.set_latency(LATENCY);
    let blocks = working_set_bytes / BLOCK_BYTES;
    // Until old blocks are overwritten as often as not.
    run(&rig, sync, blocks, 2 * blocks);
    let before = rig.set.status().cache.written_bytes;
    run(&rig, sync, blocks, requests);
    let written = rig.set.status().cache.written_bytes - before;
    Ok(written as f64 / (requests * BLOCK_BYTES) as f64)
}

fn run(rig: &Rig, sync: Sync, blocks: u64, requests: u64) {
    let data = client_data(BLOCK_BYTES as usize);
    let random = Cell::new(Random::new(11));
    let place = || {
        let mut numbers = random.take();
        let place = numbers.below(blocks) * (BLOCK_BYTES / SECTOR_BYTES);
        random.set(numbers);
        place
    };
    let write = async || {
        let range = SectorRange::new(Sector(place()), BLOCK_BYTES / SECTOR_BYTES);
        let written =
            rig.volume.write(StreamId(0), range, data.clone(), sync == Sync::EveryWrite).await;
        written.unwrap_or_else(|error| panic!("writing {range}: {error}"));
    };
    rig.world.run(async {
        if let Sync::FlushEvery(every) = sync {
            for _ in 0..requests / every {
                join_all((0..every).map(|_| write())).await;
                rig.volume
                    .flush(StreamId(0))
                    .await
                    .unwrap_or_else(|error| panic!("flushing: {error}"));
            }
            return;
        }
        let left = Cell::new(requests);
        let client = async || {
            while left.get() > 0 {
                left.set(left.get() - 1);
                write().await;
            }
        };
        join_all((0..QUEUE_DEPTH).map(|_| client())).await;
    });
}
