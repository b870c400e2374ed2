//! A volume that has moved to another set belongs to that set; and one that does not move to
//! another disk after all goes on with its own.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use support::{BUCKETS, STEP, format, open};
use ubcache_engine::events::{FaultyDevice, SetEvent};
use ubcache_engine::{CacheSet, EngineError, MoveEnd, MoveNames, SetOptions};
use ubcache_env::local::{Event, join};
use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, Env, IoResult, IoVec, Nanos, Sector, SectorRange,
    StreamId, Volume,
};
use ubcache_format::{OwnPolicy, Replacement, Superblock, Uuid};
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
        format(&former, &backing, OwnPolicy::None).await;
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

/// A disk whose flushes do not end while it hangs.
struct Hanging {
    disk: SimDisk,
    hangs: Rc<Cell<bool>>,
    flush_began: Rc<Event>,
}

impl Device for Hanging {
    fn limits(&self) -> DeviceLimits {
        self.disk.limits()
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        self.disk.read(at, into).await
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.disk.write(at, from, durability).await
    }
    async fn flush(&self) -> IoResult {
        if self.hangs.get() {
            self.flush_began.set();
            std::future::pending::<()>().await;
        }
        self.disk.flush().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        self.disk.discard(range).await
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.disk.write_zeroes(range).await
    }
}

/// The copy waited for a flush of the new disk without an end, and the cancel for the copy.
#[test]
fn a_cancelled_move_does_not_wait_for_a_flush_of_the_new_disk() {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk = |name, sectors| SimDisk::new(&world, DiskConfig::new(name, sectors));
    let sectors = 8192 + 16;
    let cache = disk("cache", STEP * u64::from(BUCKETS));
    let (backing, new) = (disk("backing", sectors), disk("new", sectors));
    let (hangs, flush_began) = (Rc::new(Cell::new(true)), Rc::new(Event::default()));
    let hanging =
        Hanging { disk: new.clone(), hangs: hangs.clone(), flush_began: flush_began.clone() };
    let device = new.over(hanging);
    let env = world.new_instance();
    let (old, data) = (backing.clone(), SectorRange::new(Sector(16), 8192));
    let ended = world.run(async move {
        format(&cache, &backing, OwnPolicy::None).await;
        let (set, volume) = open(&env, &cache, &backing).await;
        let write = async |at: u64, byte: u8| {
            let range = SectorRange::new(Sector(at), 8);
            let data = Buf::from_bytes(&[byte; 4096]).into();
            volume.write(StreamId(1), range, data, true).await.expect("a write");
        };
        write(0, 1).await;
        let begin = || set.begin_move(&volume, device.clone(), MoveNames::default());
        let moving = begin().await.expect("it begins");
        let cancel = async {
            flush_began.wait().await;
            write(4096, 2).await;
            let began = env.now();
            moving.give_up().await;
            began
        };
        let (copied, began) = join(moving.copy(), cancel).await;
        assert!(matches!(copied, Err(EngineError::MoveEnded(MoveEnd::Cancelled))), "{copied:?}");
        let waited = env.now().since(began);
        assert!(waited < Nanos::from_secs(60), "it took {waited:?}");
        // The old disk is the only one, and the next attempt copies what this one did not make
        // durable.
        write(0, 3).await;
        hangs.set(false);
        let moving = begin().await.expect("it begins again");
        moving.copy().await.expect("it copies");
        set.end_move(&moving).await.map_err(|it| it.error).expect("it moves");
        set.stop().await.expect("it stops");
    });
    ended.unwrap_or_else(|stuck| panic!("the cancel waits: {stuck:?}"));
    assert_eq!(new.peek(data), old.peek(data), "the new disk has everything");
    assert_eq!([new.peek(data)[0], new.peek(data)[4096 * 512]], [3, 2]);
}
