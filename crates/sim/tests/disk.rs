//! Promises and faults of the simulated disk.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use ubcache_env::local::join;
use ubcache_env::{Buf, Device, Durability, Env, IoError, IoVec, Nanos, Sector, SectorRange};
use ubcache_sim::disk::{Faults, Outage, Rates, ZoneFaults};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

fn filled(sectors: u64, byte: u8) -> IoVec {
    IoVec::from(Buf::from_bytes(&vec![byte; sectors as usize * 512]))
}

/// First byte of each of the first sectors.
fn bytes(disk: &SimDisk, sectors: u64) -> Vec<u8> {
    disk.peek(SectorRange::new(Sector(0), sectors)).chunks(512).map(|sector| sector[0]).collect()
}

/// Runs the same scene for many seeds.
fn scenes<F: Future<Output = ()> + 'static>(
    config: DiskConfig,
    scene: impl Fn(SimEnv, SimDisk, u64) -> F,
) {
    for seed in 0..200 {
        let world = SimWorld::new(WorldConfig { timer_slop: Nanos(0), ..WorldConfig::new(seed) });
        let disk = SimDisk::new(&world, config.clone());
        world.run(scene(world.env(), disk, seed)).expect("the scene ends");
        world.end();
    }
}

#[test]
fn unflushed_writes_may_be_lost_sector_by_sector() {
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    let into = seen.clone();
    scenes(DiskConfig::new("disk", 64), move |_, disk, _| {
        let into = into.clone();
        async move {
            for byte in 1..=3 {
                disk.write(Sector(0), filled(4, byte), Durability::Volatile)
                    .await
                    .expect("no faults");
                if byte == 1 {
                    disk.flush().await.expect("no faults");
                }
            }
            assert_eq!(bytes(&disk, 4), [3; 4]);
            disk.power_failure();
            assert_eq!(disk.unflushed_sectors(), 0);
            into.borrow_mut().insert(bytes(&disk, 4));
        }
    });
    let seen = seen.borrow();
    assert!(seen.iter().flatten().all(|byte| (1..=3).contains(byte)), "{seen:?}");
    assert!(
        seen.len() > 20 && seen.contains(&vec![1; 4]) && seen.contains(&vec![3; 4]),
        "{seen:?}"
    );
}

#[test]
fn flushed_and_fua_writes_are_kept() {
    scenes(DiskConfig::new("disk", 64), |_, disk, _| async move {
        disk.write(Sector(0), filled(1, 1), Durability::Volatile).await.expect("no faults");
        disk.write(Sector(1), filled(1, 2), Durability::Volatile).await.expect("no faults");
        disk.flush().await.expect("no faults");
        disk.write(Sector(0), filled(1, 8), Durability::Volatile).await.expect("no faults");
        disk.write(Sector(0), filled(1, 9), Durability::Fua).await.expect("no faults");
        disk.power_failure();
        assert_eq!(bytes(&disk, 2), [9, 2]);
    });
}

#[test]
fn without_a_volatile_cache_nothing_acknowledged_is_lost() {
    let config = DiskConfig { volatile_cache: false, ..DiskConfig::new("disk", 64) };
    scenes(config, |_, disk, _| async move {
        disk.write(Sector(0), filled(4, 1), Durability::Volatile).await.expect("no faults");
        disk.power_failure();
        assert_eq!(bytes(&disk, 4), [1; 4]);
    });
}

/// A write that completes after the flush was submitted is not covered, even if it has landed
/// before.
#[test]
fn a_flush_covers_what_had_completed() {
    let lost = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = lost.clone();
    scenes(DiskConfig::new("disk", 64), move |env, disk, _| {
        let counter = counter.clone();
        async move {
            let write = disk.write(Sector(0), filled(8, 1), Durability::Volatile);
            let flush = async {
                env.sleep(Nanos::from_micros(5)).await;
                disk.flush().await
            };
            let (write, flush) = join(write, flush).await;
            write.and(flush).expect("no faults");
            disk.power_failure();
            counter.set(counter.get() + bytes(&disk, 8).iter().filter(|byte| **byte == 0).count());
        }
    });
    assert!(lost.get() > 100, "{}", lost.get());
}

#[test]
fn a_write_in_flight_lands_in_any_part() {
    for power in [false, true] {
        let seen = Rc::new(RefCell::new(BTreeSet::new()));
        let into = seen.clone();
        scenes(DiskConfig::new("disk", 64), move |env, disk, _| {
            let into = into.clone();
            async move {
                let writer = disk.clone();
                let write = async move {
                    let _ = writer.write(Sector(0), filled(3, 7), Durability::Fua).await;
                };
                env.spawn(ubcache_env::Priority::Foreground, write);
                env.sleep(Nanos::from_micros(6)).await;
                assert_eq!(disk.in_flight(), 1, "the fastest write takes longer");
                if power {
                    disk.power_failure()
                } else {
                    disk.host_restart()
                }
                let found = bytes(&disk, 3);
                env.sleep(Nanos::from_secs(1)).await;
                assert_eq!(bytes(&disk, 3), found, "nothing comes later");
                into.borrow_mut().insert(found);
            }
        });
        assert_eq!(seen.borrow().len(), 8, "each of three sectors old or new: {:?}", seen.borrow());
    }
}

#[test]
fn a_failed_flush_keeps_nothing_and_a_failed_write_lands_or_not() {
    scenes(DiskConfig::new("disk", 64), |_, disk, _| async move {
        let rates = Rates { flush: 1_000_000, write: 0, ..Rates::default() };
        disk.set_faults(Faults::everywhere(rates, 1));
        disk.write(Sector(0), filled(1, 1), Durability::Volatile).await.expect("writes work");
        assert_eq!(disk.flush().await, Err(IoError::Os(5)));
        assert_eq!(disk.unflushed_sectors(), 1);
        assert_eq!(disk.flush().await, Ok(()), "the budget is used up");
        let rates = Rates { write: 1_000_000, ..Rates::default() };
        disk.set_faults(Faults::everywhere(rates, 1));
        assert!(disk.write(Sector(0), filled(4, 2), Durability::Fua).await.is_err());
        let found = bytes(&disk, 4);
        assert!(
            found.iter().zip([1, 0, 0, 0]).all(|(byte, old)| *byte == 2 || *byte == old),
            "{found:?}"
        );
    });
}

#[test]
fn bad_sectors_fail_until_they_are_written() {
    scenes(DiskConfig::new("disk", 64), |_, disk, _| async move {
        disk.make_bad(SectorRange::new(Sector(2), 1));
        assert!(disk.read(Sector(0), Buf::for_sectors(4)).await.1.is_err());
        assert!(disk.read(Sector(0), Buf::for_sectors(2)).await.1.is_ok());
        disk.write(Sector(2), filled(1, 1), Durability::Volatile).await.expect("writes work");
        assert!(disk.read(Sector(0), Buf::for_sectors(4)).await.1.is_ok());
    });
}

/// A disk with errors goes on where it was when they are over; a worn out one can still be read.
#[test]
fn outages_end_after_their_span() {
    scenes(DiskConfig::new("disk", 64), |env, disk, _| async move {
        disk.write(Sector(0), filled(1, 1), Durability::Volatile).await.expect("no faults");
        disk.fail(Outage::ReadOnly, None);
        assert_eq!(
            disk.write(Sector(0), filled(1, 2), Durability::Fua).await,
            Err(IoError::Os(30))
        );
        assert_eq!(disk.write_zeroes(SectorRange::new(Sector(0), 1)).await, Err(IoError::Os(30)));
        assert_eq!(disk.flush().await, Ok(()));
        let (buf, result) = disk.read(Sector(0), Buf::for_sectors(1)).await;
        assert!(result.is_ok() && buf.as_slice()[0] == 1, "reads work");
        disk.fail(Outage::Errors, Some(Nanos::from_millis(5)));
        assert_eq!(disk.flush().await, Err(IoError::Os(5)));
        assert_eq!(disk.read(Sector(0), Buf::for_sectors(1)).await.1, Err(IoError::Os(5)));
        env.sleep(Nanos::from_millis(6)).await;
        assert_eq!(disk.flush().await, Ok(()));
        assert_eq!(bytes(&disk, 1), [1]);
    });
}

/// A disk that is pulled out loses what was not flushed; writes in flight fail and come no later.
#[test]
fn pulled_disk_loses_unflushed_writes() {
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    let into = seen.clone();
    scenes(DiskConfig::new("disk", 64), move |env, disk, _| {
        let into = into.clone();
        async move {
            disk.write(Sector(0), filled(1, 1), Durability::Fua).await.expect("no faults");
            disk.write(Sector(0), filled(1, 2), Durability::Volatile).await.expect("no faults");
            let writer = disk.clone();
            let write = env.spawn(ubcache_env::Priority::Foreground, async move {
                let result = writer.write(Sector(1), filled(1, 3), Durability::Fua).await;
                assert_eq!(result, Err(IoError::Gone));
            });
            env.sleep(Nanos::from_micros(6)).await;
            assert_eq!(disk.in_flight(), 1, "the fastest write takes longer");
            disk.fail(Outage::Gone, None);
            let found = bytes(&disk, 2);
            write.join().await;
            assert_eq!(disk.flush().await, Err(IoError::Gone));
            assert_eq!(bytes(&disk, 2), found, "nothing comes later");
            disk.host_restart();
            assert_eq!(disk.flush().await, Ok(()), "the next program finds it plugged in");
            into.borrow_mut().insert(found);
        }
    });
    let seen: Vec<Vec<u8>> = seen.take().into_iter().collect();
    assert_eq!(seen, [[1, 0], [1, 3], [2, 0], [2, 3]]);
}

/// Each zone has errors of its own; a flush belongs to no zone.
#[test]
fn errors_stay_in_their_zone() {
    scenes(DiskConfig::new("disk", 64), |_, disk, _| async move {
        let rates = Rates { read: 1_000_000, write: 1_000_000, flush: 1_000_000, latent: 0 };
        let zone = Some(SectorRange::new(Sector(8), 8));
        disk.set_faults(Faults { zones: vec![ZoneFaults { zone, rates, budget: 2 }] });
        assert!(disk.read(Sector(0), Buf::for_sectors(8)).await.1.is_ok());
        assert!(disk.flush().await.is_ok());
        assert!(disk.read(Sector(0), Buf::for_sectors(9)).await.1.is_err());
        assert!(disk.write(Sector(15), filled(4, 1), Durability::Volatile).await.is_err());
        assert!(disk.read(Sector(8), Buf::for_sectors(8)).await.1.is_ok(), "the budget is used up");
    });
}

#[test]
fn discard_zeroes_or_keeps_and_write_zeroes_zeroes() {
    scenes(DiskConfig::new("disk", 64), |_, disk, _| async move {
        disk.write(Sector(0), filled(8, 5), Durability::Volatile).await.expect("no faults");
        disk.discard(SectorRange::new(Sector(0), 4)).await.expect("it can");
        disk.write_zeroes(SectorRange::new(Sector(4), 2)).await.expect("no faults");
        let found = bytes(&disk, 8);
        assert!(found[..4].iter().all(|byte| [0, 5].contains(byte)), "{found:?}");
        assert_eq!(found[4..], [0, 0, 5, 5]);
    });
}

#[test]
fn invalid_requests_are_reported() {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk =
        SimDisk::new(&world, DiskConfig { block_bytes: 4096, ..DiskConfig::new("disk", 64) });
    let user = disk.clone();
    let results = world.run(async move {
        let outside = user.write(Sector(60), filled(8, 1), Durability::Volatile).await;
        let crooked = user.write(Sector(4), filled(8, 1), Durability::Volatile).await;
        (outside, crooked)
    });
    assert!(matches!(results, Ok((Err(IoError::OutOfRange { .. }), Err(IoError::Os(22))))));
    assert_eq!(world.take_complaints().len(), 2);
}
