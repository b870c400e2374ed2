//! A discard over dirty data puts zeroes on the backing device first, and the dirty key goes when
//! they are durable. Until then nobody sees them.

mod support;

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::CachedVolume;
use ubcache_env::local::join;
use ubcache_env::{Buf, Env, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::OwnPolicy;
use ubcache_sim::disk::Profile;
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const ME: StreamId = StreamId(1);
const BLOCK: SectorRange = SectorRange::from_bounds(Sector(64), Sector(72));
const ELSEWHERE: SectorRange = SectorRange::from_bounds(Sector(128), Sector(136));

fn data(byte: u8) -> Buf {
    let mut data = Buf::for_sectors(8);
    data.as_mut_slice().fill(byte);
    data
}

/// A question about the block, which becomes dirty and is discarded while it is at the backing
/// device: true if the answer is that there are zeroes.
type Question = fn(Rc<CachedVolume<SimEnv>>) -> Pin<Box<dyn Future<Output = bool>>>;

/// Asks in many runs. A read after an answer of zeroes must not return the dirty data any more.
/// Returns the number of runs that reached the mark.
fn ask(question: Question, mark: &str) -> u64 {
    let mut reached = 0;
    for seed in 0..60 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let cache = SimDisk::new(&world, DiskConfig::new("cache", STEP * u64::from(BUCKETS)));
        let slow = DiskConfig { profile: Profile::Slow, ..DiskConfig::new("backing", 65_536 + 16) };
        let backing = SimDisk::new(&world, slow);
        let env = world.new_instance();
        let ended = world.run(async move {
            format(&cache, &backing, OwnPolicy::None).await;
            let (set, volume) = open(&env, &cache, &backing).await;
            volume.set_attribute("cache_mode", "writearound").expect("sets");
            volume.write(ME, BLOCK, data(0x11).into(), false).await.expect("writes");
            volume.set_attribute("cache_mode", "writeback").expect("sets");
            volume.write(ME, ELSEWHERE, data(0x33).into(), false).await.expect("writes");
            let (gone, done) = (Cell::new(false), Cell::new(false));
            let first = async { gone.set(question(volume.clone()).await) };
            let writer = async {
                env.sleep(Nanos::from_micros(10)).await;
                volume.write(ME, BLOCK, data(0x22).into(), false).await.expect("writes");
                volume.discard(ME, BLOCK, false).await.expect("discards");
                done.set(true);
            };
            let others = async {
                env.sleep(Nanos::from_millis(1)).await;
                while !done.get() {
                    let gone = gone.get();
                    let byte = read(&volume).await;
                    assert!(!(gone && byte == 0x22), "seed {seed}: discarded, and there again");
                    env.sleep(Nanos::from_micros(100)).await;
                }
            };
            join(join(first, writer), others).await;
            drop(set);
        });
        ended.unwrap_or_else(|stuck| panic!("seed {seed}: {stuck:?}"));
        reached += world.marks().get(mark).copied().unwrap_or(0);
    }
    reached
}

async fn read(volume: &CachedVolume<SimEnv>) -> u8 {
    volume.read(ME, BLOCK).await.expect("reads").to_buf().as_slice()[0]
}

/// A read that had missed was at the backing device when the block became dirty and was discarded.
/// It returned the zeroes, and reads after it the dirty data, until its key went. Now such a read
/// looks up again (R5).
#[test]
fn read_that_missed_does_not_return_zeroes_of_a_pending_discard() {
    let again =
        ask(|volume| Box::pin(async move { read(&volume).await == 0 }), "read_looks_up_again");
    assert!(again > 10, "the race was run {again} times only");
}

/// The status of the block was asked for when nothing was dirty, and the backing device was asked
/// for holes when the discard had put its zeroes there. It said "hole", and reads after it returned
/// the dirty data (seed 5 of these). Now such a part is no hole (D4).
#[test]
fn status_does_not_report_zeroes_of_a_pending_discard_as_a_hole() {
    ask(
        |volume| {
            Box::pin(async move {
                let parts = volume.block_status(BLOCK).await.expect("a status");
                parts.iter().any(|(_, status)| status.hole)
            })
        },
        "hole_reported",
    );
}
