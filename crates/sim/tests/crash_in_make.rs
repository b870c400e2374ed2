//! The power fails at every write of `ubcache make` over an older cache device of the same set.
//!
//! The backing device names that set still, says clean, and has changed since: whatever of the old
//! cache comes to life again is stale.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::{Buf, Device, IoVec, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{Replacement, SUPERBLOCK_SECTOR, Superblock, Uuid};
use ubcache_offline::make_device;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::disk::CrashImage;
use ubcache_sim::plan::Plan;
use ubcache_sim::system::{Setup, System};
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimWorld, WorldConfig};

const BUCKETS: u32 = 513;
const SECTORS: u64 = 64;
/// Content of the volume: every byte of it is the same, before and after it has changed.
const OLD: u8 = 1;
const NEW: u8 = 2;
/// Outcomes of a crash that are tried at most.
const OUTCOMES_MAX: usize = 40;

fn plan(block: u32) -> Plan {
    let plan = format!(
        "ubcache-plan 1\nworld seed=5 policy=uniform poll-cost-ns=500 timer-slop-ns=0 \
         last-crash=0\n\
         cache bucket=16 block={block} buckets={BUCKETS} node-keys=0 extents=500 lazy=0 volatile=1 \
         discard=0 profile=fast\n\
         volume sectors={SECTORS} mode=writethrough initial=1000 volatile=1 discard=0 \
         block={block} profile=fast\n"
    );
    plan.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn new_world(block: u32) -> (SimWorld, Rc<Setup>) {
    let world = SimWorld::new(WorldConfig::new(5));
    let disk = |name: &str, sectors| {
        SimDisk::new(
            &world,
            DiskConfig { block_bytes: block * 512, ..DiskConfig::new(name, sectors) },
        )
    };
    let (cache, backing) =
        (disk("cache", 16 * u64::from(BUCKETS)), disk("backing", CacheSystem::DATA_AT.0 + SECTORS));
    let setup = Setup {
        rules: Default::default(),
        header_rules: Default::default(),
        plan: plan(block),
        first_cache: cache,
        spare: None,
        replaced: Default::default(),
        kept: Default::default(),
        kept_aside: Default::default(),
        backing: vec![backing].into(),
        servers: Default::default(),
        word: Default::default(),
    };
    (world, Rc::new(setup))
}

fn whole() -> SectorRange {
    SectorRange::new(Sector(0), SECTORS)
}

fn superblock(disk: &SimDisk) -> Option<Superblock> {
    Superblock::parse(&disk.peek(SectorRange::new(SUPERBLOCK_SECTOR, 8))).ok()
}

/// A set that has cached all of its volume, stopped; then the volume changes behind its back.
fn with_an_old_set(block: u32) -> (SimWorld, Rc<Setup>) {
    let (world, setup) = new_world(block);
    CacheSystem::prepare(&setup);
    let (env, inside) = (world.new_instance(), setup.clone());
    let run = world.run(async move {
        let system = CacheSystem::start(env, inside).await.expect("nothing is wrong");
        let volume = system.volumes()[0].clone();
        let old = Buf::from_bytes(&[OLD; SECTORS as usize * 512]);
        volume.write(StreamId(1), whole(), IoVec::from(old), true).await.expect("no faults");
        system.stop().await.expect("no faults");
    });
    run.expect("it ends");
    setup.backing[0].poke(CacheSystem::DATA_AT, &[NEW; SECTORS as usize * 512]);
    (world, setup)
}

/// Starts on the disks and reads: the value of every byte of the volume, or the reason why there is
/// none.
fn content_after(block: u32, cache: &[u8], backing: &[u8]) -> Result<u8, String> {
    let (world, setup) = new_world(block);
    setup.cache().poke(Sector(0), cache);
    setup.backing[0].poke(Sector(0), backing);
    let env = world.new_instance();
    let read = world.run(async move {
        let system = CacheSystem::start(env, setup).await?;
        let read = system.volumes()[0].read(StreamId(1), whole()).await;
        let bytes = read.map_err(|error| error.to_string())?.to_buf();
        system.stop().await?;
        let first = bytes.as_slice()[0];
        assert!(bytes.as_slice().iter().all(|byte| *byte == first), "a mixture of old and new");
        Ok(first)
    });
    read.expect("it ends")
}

fn outcomes(crashed: &CrashImage, rng: &mut Rng) -> Vec<Vec<usize>> {
    let counts: Vec<usize> = crashed.choices().collect();
    let mut outcomes = vec![vec![0; counts.len()], counts.iter().map(|count| count - 1).collect()];
    while outcomes.len() < OUTCOMES_MAX && !counts.is_empty() {
        outcomes.push(counts.iter().map(|count| rng.below(*count as u64) as usize).collect());
    }
    outcomes.sort_unstable();
    outcomes.dedup();
    outcomes
}

fn make_over_an_old_set(block: u32) {
    let (world, setup) = with_an_old_set(block);
    let image = |disk: &SimDisk| disk.peek(SectorRange::new(Sector(0), disk.config().sectors));
    let backing = image(&setup.backing[0]);
    assert_eq!(
        content_after(block, &image(setup.cache()), &backing),
        Ok(OLD),
        "the old cache would be stale, or this test can't fail"
    );
    let old = superblock(setup.cache()).expect("the old set has one");
    let new = Superblock::new_cache(
        Uuid([9; 16]),
        old.set_uuid,
        block,
        16,
        BUCKETS,
        Replacement::Lru,
        false,
    );
    let (cache, rng) = (setup.cache().clone(), RefCell::new(Rng::new(5)));
    let counts: Rc<[Cell<u32>; 3]> = Rc::default();
    let (counted, new_uuid) = (counts.clone(), new.uuid);
    world.watch_writes(Rc::new(move |_| {
        let crashed = cache.crash_image();
        for choice in outcomes(&crashed, &mut rng.borrow_mut()) {
            let aside = SimWorld::new(WorldConfig::new(5));
            let disk = crashed.disk(&aside, &choice);
            let found = superblock(&disk).map(|found| found.uuid);
            let content = content_after(block, &image(&disk), &backing);
            let which = match found {
                Some(uuid) if uuid == new_uuid => {
                    assert_eq!(content, Ok(NEW), "the new set starts");
                    2
                }
                Some(uuid) => {
                    assert_eq!(uuid, old.uuid);
                    assert_eq!(content, Ok(OLD), "the old set is whole: {choice:?}");
                    0
                }
                None => {
                    content.expect_err("there is no cache device");
                    1
                }
            };
            counted[which].set(counted[which].get() + 1);
        }
    }));
    let device = setup.cache().clone();
    assert_eq!(device.limits().logical_block_bytes, block * 512);
    let made =
        world.run(async move { make_device(&device, &new, &[0..3, 700..1200], true, &()).await });
    made.expect("it ends").expect("no faults");
    let counts = counts.each_ref().map(Cell::get);
    println!(
        "blocks of {block} sectors: the old set {}, none {}, the new set {}",
        counts[0], counts[1], counts[2]
    );
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

/// Writes a superblock alone, as other tools do.
#[test]
fn a_new_superblock_alone_does_not_bring_back_an_older_set() {
    for block in [1, 8] {
        let (world, setup) = with_an_old_set(block);
        let old = superblock(setup.cache()).expect("the old set has one");
        let new = Superblock::new_cache(
            Uuid([9; 16]),
            old.set_uuid,
            block,
            16,
            BUCKETS,
            Replacement::Lru,
            false,
        );
        setup.cache().poke(SUPERBLOCK_SECTOR, &new.encode());
        let image = |disk: &SimDisk| disk.peek(SectorRange::new(Sector(0), disk.config().sectors));
        assert_eq!(content_after(block, &image(setup.cache()), &image(&setup.backing[0])), Ok(NEW));
        drop(world);
    }
}

#[test]
fn make_leaves_the_old_set_or_none_or_the_new_one() {
    make_over_an_old_set(1);
    make_over_an_old_set(8);
}
