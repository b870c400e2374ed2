//! Looking at disks that stand still: what a survivor may hold, and that the check of the disks
//! finds damage.

use std::collections::BTreeSet;
use std::rc::Rc;

use ubcache_env::{
    Buf, Device, Durability, Env, IoVec, Nanos, Sector, SectorRange, StreamId, Volume,
};
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::disk::Snapshot;
use ubcache_sim::inspect::check_disks;
use ubcache_sim::plan::draw::{DrawOptions, draw};
use ubcache_sim::system::{Setup, System};
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimWorld, WorldConfig};

fn sectors(byte: u8, count: usize) -> IoVec {
    IoVec::from(Buf::from_bytes(&vec![byte; count * 512]))
}

async fn first_bytes(snapshot: &Snapshot, count: u64) -> Vec<u8> {
    let (buf, result) = snapshot.read(Sector(0), Buf::for_sectors(count)).await;
    result.expect("a snapshot disk has no errors");
    buf.as_slice().iter().step_by(512).copied().collect()
}

/// Versions of each sector that a power failure may leave: the durable one, or any that was not
/// flushed; also of a write in flight. The disk itself is not touched by the question.
#[test]
fn survivors_hold_every_unflushed_version() {
    let world = SimWorld::new(WorldConfig { timer_slop: Nanos(0), ..WorldConfig::new(3) });
    let disk = SimDisk::new(&world, DiskConfig::new("disk", 64));
    let env = world.env();
    let inside = disk.clone();
    let seen = world.run(async move {
        inside.write(Sector(0), sectors(1, 3), Durability::Volatile).await.expect("no faults");
        inside.flush().await.expect("no faults");
        inside.write(Sector(1), sectors(2, 2), Durability::Volatile).await.expect("no faults");
        inside.write(Sector(2), sectors(3, 1), Durability::Volatile).await.expect("no faults");
        let mut flight =
            std::pin::pin!(inside.write(Sector(2), sectors(4, 1), Durability::Volatile));
        let started = ubcache_env::local::first(flight.as_mut(), env.sleep(Nanos(1))).await;
        assert!(
            matches!(started, ubcache_env::local::Either::Right(())),
            "it takes longer than that"
        );
        let mut rng = Rng::new(1);
        let mut seen = [(); 3].map(|()| BTreeSet::new());
        for _ in 0..400 {
            let bytes = first_bytes(&inside.survivor(&mut rng), 3).await;
            for (seen, byte) in seen.iter_mut().zip(bytes) {
                seen.insert(byte);
            }
        }
        assert_eq!(first_bytes(&inside.snapshot(), 2).await, [1, 2], "as it was");
        seen
    });
    let seen = seen.expect("it ends");
    assert_eq!(
        seen.map(|set| set.into_iter().collect::<Vec<u8>>()),
        [vec![1], vec![1, 2], vec![1, 2, 3, 4]]
    );
}

/// A cached sector that is not what the backing device has is found on the disks, whoever put it
/// there.
#[test]
fn a_clean_sector_that_differs_is_found() {
    let plan = (0..).map(|seed| {
        draw(
            seed,
            DrawOptions {
                ops_max: 20,
                faults: false,
                crashes: false,
                remotes: false,
                stored: false,
            },
        )
    });
    let plan = plan.take(1000).find(|plan| plan.volumes.len() == 1).expect("a third of them");
    let world = SimWorld::new(WorldConfig::new(plan.seed));
    let block = u64::from(plan.volumes[0].block_sectors);
    let disk = |name: &str, sectors, block: u64| {
        SimDisk::new(
            &world,
            DiskConfig { block_bytes: block as u32 * 512, ..DiskConfig::new(name, sectors) },
        )
    };
    let shape = &plan.cache;
    let cache_sectors = u64::from(shape.bucket_sectors) * u64::from(shape.buckets);
    let cache = disk("cache", cache_sectors, u64::from(shape.block_sectors));
    let backing = disk("backing", CacheSystem::DATA_AT.0 + plan.volumes[0].sectors, block);
    let setup = Rc::new(Setup {
        rules: Default::default(),
        header_rules: Default::default(),
        plan,
        first_cache: cache.clone(),
        spare: None,
        replaced: Default::default(),
        kept: Default::default(),
        kept_aside: Default::default(),
        backing: vec![backing.clone()].into(),
        servers: Default::default(),
        word: Default::default(),
    });
    CacheSystem::prepare(&setup);
    let env = world.new_instance();
    let run = world.run(async move {
        let time = env.clone();
        let system = CacheSystem::start(env, setup).await.expect("nothing is wrong yet");
        let range = SectorRange::new(Sector(64), 8);
        let volume = &system.volumes()[0];
        volume.read(StreamId(1), range).await.expect("no faults");
        // The copy is published in the background.
        time.sleep(Nanos::from_secs(10)).await;
        system.stop().await.expect("no faults");
    });
    run.expect("it ends");
    assert!(check_disks(&cache.snapshot(), &[backing.snapshot()], None, true).is_ok());
    let at = CacheSystem::DATA_AT + 66;
    backing.poke(at, &[0xa5; 512]);
    let violation = check_disks(&cache.snapshot(), &[backing.snapshot()], None, true)
        .expect_err("the cache has the old sector");
    assert!(violation.kind.contains("clean-differs"), "{violation:?}");
    assert!(
        violation.report.contains(&format!("[{}, {})", at.0, at.0 + 1)),
        "{}",
        violation.report
    );
}
