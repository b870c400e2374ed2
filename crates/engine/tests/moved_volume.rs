//! A volume that has moved to another set belongs to that set.

mod support;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::events::{FaultyDevice, SetEvent};
use ubcache_engine::{CacheSet, SetOptions};
use ubcache_env::{Buf, Device, Durability, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{Replacement, Superblock, Uuid};
use ubcache_sim::disk::{Faults, Rates};
use ubcache_sim::{DiskConfig, SimDisk, SimWorld, WorldConfig};

/// The backing device reported to the set that it was attached to first: its errors after the move
/// (A8) were events of the former set, and those of the new one, which are logged, did not have
/// them.
#[test]
fn errors_of_a_moved_volume_are_events_of_its_new_set() {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk = |name, sectors| SimDisk::new(&world, DiskConfig::new(name, sectors));
    let bytes = STEP * u64::from(BUCKETS);
    let (former, next) = (disk("former", bytes), disk("next", bytes));
    let backing = disk("backing", 65_536 + 16);
    let env = world.new_instance();
    let ended = world.run(async move {
        format(&former, &backing, false).await;
        let (cache, set) = (Uuid([3; 16]), Uuid([8; 16]));
        let superblock =
            Superblock::new_cache(cache, set, 1, STEP as u32, BUCKETS, Replacement::Lru, false);
        let superblock = Buf::from_bytes(&superblock.encode()).into();
        next.write(Sector(8), superblock, Durability::Fua).await.expect("a good disk");
        let (former, volume) = open(&env, &former, &backing).await;
        let next = CacheSet::open(env.clone(), next, SetOptions::default()).await.expect("opens");
        former.detach(&volume).await.expect("detaches");
        let volume = next.adopt(&volume).await.expect("moves");
        backing.set_faults(Faults::everywhere(Rates { write: 1_000_000, ..Rates::default() }, 1));
        let range = SectorRange::new(Sector(0), 8);
        let written = volume.write(StreamId(1), range, Buf::for_sectors(8).into(), false).await;
        assert!(written.is_err(), "the disk refuses it");
        // A set without the event waits for ever.
        loop {
            if let SetEvent::Fault(fault) = next.next_event().await {
                assert_eq!(fault.device, FaultyDevice::Backing(Uuid([2; 16])));
                break;
            }
        }
        drop(former);
    });
    ended.unwrap_or_else(|stuck| panic!("no event: {stuck:?}"));
}
