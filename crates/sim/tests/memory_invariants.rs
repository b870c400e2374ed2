//! Each invariant of what is in memory is noticed when it is broken, and says its name.

use std::pin::pin;

use ubcache_engine::inspect::{CachedCopy, CopyState, InFlightEntry, VolumeView};
use ubcache_env::local::{Either, first};
use ubcache_env::{Buf, Device, Durability, Env, IntervalSet, IoVec, Nanos, Sector, SectorRange};
use ubcache_sim::memory_invariants::check_volume;
use ubcache_sim::oracle::value::Value;
use ubcache_sim::oracle::{OpKind, Oracle};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const DATA_AT: Sector = Sector(16);

fn filled(byte: u8, sectors: usize) -> IoVec {
    IoVec::from(Buf::from_bytes(&vec![byte; sectors * 512]))
}

fn range(start: u64, sectors: u64) -> SectorRange {
    SectorRange::new(Sector(start), sectors)
}

fn view(state: CopyState) -> VolumeView {
    VolumeView {
        uses_cache: true,
        copies: vec![CachedCopy { range: range(20, 8), at: Sector(100), state }],
        in_flight: Vec::new(),
        unflushed: IntervalSet::default(),
        suspect: IntervalSet::default(),
    }
}

struct Scene {
    env: SimEnv,
    cache: SimDisk,
    backing: SimDisk,
}

impl Scene {
    /// Finding of the check while a write is in flight.
    async fn during(&self, disk: &SimDisk, at: u64, view: &VolumeView) -> String {
        self.env.sleep(Nanos::from_secs(1)).await;
        disk.flush().await.expect("no faults");
        let write = pin!(disk.write(Sector(at), filled(7, 1), Durability::Volatile));
        let Either::Right(()) = first(write, self.env.sleep(Nanos(1))).await else {
            panic!("a write takes longer than that")
        };
        self.name(view)
    }

    fn name(&self, view: &VolumeView) -> String {
        let violation = check_volume(view, &self.cache, &self.backing, DATA_AT);
        violation.map_or_else(String::new, |violation| {
            violation.kind.split(':').next().unwrap_or("").to_owned()
        })
    }
}

/// A copy of eight sectors, the same on both devices, durable on both.
fn scene<F: Future<Output = ()> + 'static>(run: impl FnOnce(Scene) -> F) {
    let world = SimWorld::new(WorldConfig { timer_slop: Nanos(0), ..WorldConfig::new(5) });
    let cache = SimDisk::new(&world, DiskConfig::new("cache", 256));
    let backing = SimDisk::new(&world, DiskConfig::new("backing", 256));
    cache.poke(Sector(100), &[7; 8 * 512]);
    backing.poke(Sector(20), &[7; 8 * 512]);
    world.run(run(Scene { env: world.env(), cache, backing })).expect("the scene ends");
}

#[test]
fn agreeing_copies_violate_nothing() {
    scene(|scene| async move {
        for state in [CopyState::Clean, CopyState::Unpublished, CopyState::Dirty] {
            assert_eq!(scene.name(&view(state)), "");
        }
    });
}

#[test]
fn a_clean_copy_that_differs_is_i1() {
    scene(|scene| async move {
        scene.backing.poke(Sector(23), &[8; 512]);
        assert_eq!(scene.name(&view(CopyState::Clean)), "I1");
        assert_eq!(scene.name(&view(CopyState::Unpublished)), "I1");
        assert_eq!(scene.name(&view(CopyState::Dirty)), "", "dirty data is newer");
    });
}

#[test]
fn a_copy_below_a_write_is_i3() {
    scene(|scene| async move {
        let backing = scene.backing.clone();
        let table = vec![InFlightEntry::BackingWrite(range(27, 2))];
        let view = VolumeView { in_flight: table, ..view(CopyState::Clean) };
        assert_eq!(scene.during(&backing, 27, &view).await, "I3");
        assert_eq!(scene.during(&backing, 28, &view).await, "", "beside it");
    });
}

#[test]
fn two_writers_are_i5() {
    scene(|scene| async move {
        let table = |second| VolumeView {
            in_flight: vec![InFlightEntry::Writeback(range(40, 8)), second],
            ..view(CopyState::Dirty)
        };
        assert_eq!(scene.name(&table(InFlightEntry::Writeback(range(47, 2)))), "I5");
        assert_eq!(scene.name(&table(InFlightEntry::BackingWrite(range(39, 2)))), "I5");
        assert_eq!(scene.name(&table(InFlightEntry::Write(range(39, 2)))), "", "it is not decided");
    });
}

#[test]
fn untracked_volatile_content_is_i6() {
    scene(|scene| async move {
        scene
            .backing
            .write(Sector(60), filled(1, 1), Durability::Volatile)
            .await
            .expect("no faults");
        let mut view = view(CopyState::Dirty);
        assert_eq!(scene.name(&view), "I6");
        view.in_flight = vec![InFlightEntry::BackingWrite(range(60, 1))];
        assert_eq!(scene.name(&view), "");
        view.in_flight.clear();
        view.unflushed.insert(range(60, 1));
        assert_eq!(scene.name(&view), "");
    });
}

#[test]
fn record_of_volatile_content_is_i7_or_i8() {
    scene(|scene| async move {
        let mut clean = view(CopyState::Clean);
        clean.unflushed.insert(range(27, 4));
        assert_eq!(scene.name(&clean), "I7");
        // The backing device returns the same, and may lose it.
        scene.backing.poke(Sector(21), &[1; 512]);
        scene
            .backing
            .write(Sector(21), filled(7, 1), Durability::Volatile)
            .await
            .expect("no faults");
        assert_eq!(scene.name(&clean), "I8");
        clean.copies[0].state = CopyState::Unpublished;
        clean.unflushed.insert(range(21, 1));
        assert_eq!(scene.name(&clean), "", "a crash forgets it");
    });
}

#[test]
fn write_to_an_occupied_place_is_i10() {
    scene(|scene| async move {
        let cache = scene.cache.clone();
        assert_eq!(scene.during(&cache, 107, &view(CopyState::Dirty)).await, "I10");
        assert_eq!(scene.during(&cache, 108, &view(CopyState::Dirty)).await, "");
    });
}

/// I9: what a power failure would leave is judged as what it has left.
#[test]
fn survivor_without_flushed_data_is_i9() {
    let mut oracle = Oracle::new(vec![("v0".to_owned(), vec![Value::ZERO; 4])]);
    let content = |oracle: &mut Oracle, fua| {
        let write = oracle.begin(Nanos(1), 0, 0, OpKind::Write { fua }, range(2, 1));
        let content = oracle.content(&write);
        oracle.end(Nanos(2), write, &Ok(()));
        let bytes: [u8; 512] = content.as_slice().try_into().expect("one sector");
        bytes
    };
    let (zeroes, first) = ([0; 512], content(&mut oracle, false));
    assert_eq!(oracle.judge_survivor(0, 2, &first), None);
    assert_eq!(oracle.judge_survivor(0, 2, &zeroes), None, "nothing was flushed");
    let flush = oracle.begin(Nanos(3), 0, 0, OpKind::Flush, SectorRange::default());
    oracle.end(Nanos(4), flush, &Ok(()));
    assert_eq!(oracle.judge_survivor(0, 2, &first), None);
    let violation = oracle.judge_survivor(0, 2, &zeroes).expect("it was flushed");
    assert!(violation.kind.starts_with("I9"), "{violation:?}");
    let second = content(&mut oracle, false);
    assert_eq!(oracle.judge_survivor(0, 2, &first), None);
    assert_eq!(oracle.judge_survivor(0, 2, &second), None);
    // With nothing running a look at the disks is a read: it settles what is there.
    oracle.crash(Nanos(5), ubcache_sim::Crash::Power);
    let begun = oracle.look(Nanos(6));
    assert_eq!(oracle.judge_rest(begun, 0, 2, &first), None);
    assert!(oracle.judge_rest(begun, 0, 2, &second).is_some(), "it was the other one");
}
