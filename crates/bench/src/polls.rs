//! The longest poll: the time for which a request may have to wait until the engine handles it.
//!
//! The engine runs on one thread, so work that grows with the cache would delay every request while
//! it is done (docs/internals/coherence.md, S1). A cache of any size is filled here without its
//! extents, which would take hours: such work goes over the buckets. Then everything that handles
//! every bucket is run, and the world measures each poll.

use serde_json::{Value, json};
use ubcache_engine::{EngineError, SetOptions};
use ubcache_env::{Env, Nanos};
use ubcache_format::{CacheMode, SECTOR_BYTES};

use crate::null::{BUCKET_SECTORS, LongPolls, NullWorld, Rig, Shape};

/// Limit for the steps of a poll, however large the cache: three slices, and some steps beside
/// them.
pub const STEPS_MAX: u64 = 60_000;

/// Size of the volume: larger than the part that is read.
const VOLUME_BYTES: u64 = 1 << 40;

/// One phase of the run, and its longest polls.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Name of the phase.
    pub name: &'static str,
    /// The longest polls.
    pub longest: LongPolls,
}

impl Stage {
    /// The stage in JSON.
    pub fn json(&self) -> Value {
        let LongPolls { polls, steps, steps_of, nanos, nanos_of } = &self.longest;
        json!({ "stage": self.name, "polls": polls, "steps": steps, "steps_of": steps_of,
            "cpu_ns": nanos,
            "cpu_ns_of": nanos_of })
    }
}

/// Runs everything that concerns all buckets, in a cache of this size.
pub fn longest_polls(cache_bytes: u64) -> Result<Vec<Stage>, EngineError> {
    let bucket_bytes = u64::from(BUCKET_SECTORS) * SECTOR_BYTES;
    let shape = Shape {
        cache_bytes,
        bucket_sectors: BUCKET_SECTORS,
        volume_bytes: VOLUME_BYTES,
        mode: CacheMode::Writethrough,
        options: SetOptions::default(),
    };
    let mut stages = Vec::new();
    let world = NullWorld::new(1);
    world.watch_polls();
    let mut rig = Rig::in_world(world, &shape)?;
    let mut next = 0;
    let done = |rig: &Rig, stages: &mut Vec<Stage>, name| {
        stages.push(Stage { name, longest: rig.world.take_long_polls() });
    };
    done(&rig, &mut stages, "first start");
    rig.set.set_attribute("cache_replacement_policy", "scan-resistant").map_err(attribute)?;
    rig.world.run(rig.world.settle());
    done(&rig, &mut stages, "another replacement policy");
    rig.world.run(rig.set.pretend_full());
    rig.world.take_long_polls();
    fill(&rig, &mut next, 6000, bucket_bytes);
    done(&rig, &mut stages, "data for which other data goes, prio chains");
    rig.world.run(rig.set.trigger_gc())?;
    done(&rig, &mut stages, "first garbage collection");
    fill(&rig, &mut next, 6000, bucket_bytes);
    rig.world.run(rig.set.trigger_gc())?;
    done(&rig, &mut stages, "data, and a garbage collection");
    rig.world.run(async {
        rig.set.status();
        rig.set.attribute("priority_stats");
    });
    done(&rig, &mut stages, "status and statistics");
    // Records of small extents, which a start has to replay.
    fill(&rig, &mut next, 100_000, 4096);
    done(&rig, &mut stages, "small requests");
    // The machine loses power, and comes back.
    let world = NullWorld::new(2);
    world.watch_polls();
    let (cache, backing) = (rig.cache.in_world(world.env()), rig.backing.in_world(world.env()));
    drop(rig);
    rig = Rig::open(world, cache, backing, &shape.options)?;
    rig.world.run(async {
        while !rig.set.status().counted {
            rig.world.env().sleep(Nanos::from_millis(1)).await;
        }
    });
    done(&rig, &mut stages, "start, and the end of counting");
    rig.world.run(rig.set.stop())?;
    done(&rig, &mut stages, "stop");
    Ok(stages)
}

fn attribute(error: ubcache_engine::AttributeError) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// Reads data outside the cache, in pieces.
fn fill(rig: &Rig, next: &mut u64, pieces: u64, bytes: u64) {
    rig.set("sequential_cutoff", "0");
    rig.world.run(async {
        for count in 0..pieces {
            rig.read(*next, bytes).await;
            *next += 2 * bytes;
            if count.is_multiple_of(16) {
                rig.world.settle().await;
            }
        }
        rig.world.settle().await;
    });
}
