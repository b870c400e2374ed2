//! The device over a store without faults.

mod support;

use std::rc::Rc;

use support::{BLOCK, BLOCKS, Model, OBJECT, SHAPE, create, load, open, options, pattern, run};
use ubcache_env::testing::device_conformance;
use ubcache_env::{Buf, Device, Durability, Env, IoError, Nanos, Sector, SectorRange};
use ubcache_objects::memory::Conditions;
use ubcache_objects::{GrowFailure, ObjectDisk, OpenFailure, OpenOptions, Shape, StoreError};

fn objects(from: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(from * OBJECT / 512), count * OBJECT / 512)
}

#[test]
fn it_has_the_duties_of_a_device() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let disk = open(&env, &store).await.expect("opens");
        device_conformance(&env, Rc::new(disk)).await;
    });
}

#[test]
fn a_load_reads_what_it_wrote_and_finds_it_after_a_stop() {
    for seed in 0..20 {
        run(seed, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            let model = Model::new();
            for _ in 0..3 {
                let disk = open(&env, &store).await.expect("opens");
                model.verify(&disk, false).await;
                assert!(load(&env, &disk, &model, 60).await);
                assert_eq!(disk.close().await, Ok(()));
                model.settle();
                assert!(disk.flush().await.is_err(), "a closed volume takes nothing");
            }
        });
    }
}

#[test]
fn holes_are_absent_objects() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let disk = open(&env, &store).await.expect("opens");
        let all = SectorRange::new(Sector(0), SHAPE.size_bytes / 512);
        assert_eq!(disk.holes(all, 10).await, Ok(vec![(all, true)]));
        let write = disk.write(Sector(5 * OBJECT / 512), pattern(7).into(), Durability::Fua);
        assert_eq!(write.await, Ok(()));
        let data = || store.keys().into_iter().filter(|key| key.starts_with("data/")).count();
        assert_eq!(data(), 1);
        let expected = vec![(objects(0, 5), true), (objects(5, 1), false)];
        assert_eq!(disk.holes(all, 2).await, Ok(expected));
        // Zeroes take no space, and neither does what is discarded.
        assert_eq!(disk.write_zeroes(objects(4, 3)).await, Ok(()));
        assert_eq!(disk.flush().await, Ok(()));
        assert_eq!(disk.holes(all, 10).await, Ok(vec![(all, true)]));
        env.sleep(Nanos::from_secs(1)).await;
        assert_eq!(data(), 0, "{:?}", store.keys());
        let disk = open(&env, &store).await.expect("opens");
        assert_eq!(disk.holes(all, 10).await, Ok(vec![(all, true)]));
    });
}

#[test]
fn a_flush_writes_only_the_pages_that_changed() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let disk = open(&env, &store).await.expect("opens");
        let model = Model::new();
        for block in 0..BLOCKS {
            assert!(model.write(&disk, block, Durability::Volatile).await);
        }
        assert!(model.flush(&disk).await);
        env.sleep(Nanos::from_secs(1)).await;
        let pages = || -> Vec<String> {
            store.keys().into_iter().filter(|key| key.starts_with("pages/")).collect()
        };
        let before = pages();
        assert_eq!(before.len(), 3, "{before:?}");
        assert!(model.write(&disk, 0, Durability::Fua).await);
        env.sleep(Nanos::from_secs(1)).await;
        let after = pages();
        assert_eq!(before[1..], after[1..]);
        assert_ne!(before[0], after[0]);
    });
}

#[test]
fn written_data_takes_no_more_memory_than_permitted() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let disk = open(&env, &store).await.expect("opens");
        // One block of each of many objects, and no flush.
        for object in 0..200 {
            let at = Sector(object * OBJECT / 512);
            assert_eq!(
                disk.write(at, pattern(object + 1).into(), Durability::Volatile).await,
                Ok(())
            );
            assert!(disk.memory_bytes() <= options().0.write_memory_bytes);
        }
        for object in 0..200 {
            let at = Sector(object * OBJECT / 512);
            let (buf, result) = disk.read(at, Buf::zeroed(BLOCK as usize)).await;
            assert_eq!(result, Ok(()));
            assert_eq!(support::tag_of(buf.as_slice()), object + 1);
        }
    });
}

#[test]
fn a_stream_of_reads_is_fetched_ahead_and_does_not_wait() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        let shape = Shape { object_bytes: 1 << 20, size_bytes: 8 << 20 };
        let options = OpenOptions { read_memory_bytes: 4 << 20, ..options().0 };
        let created = ubcache_objects::create(&env, store.client(), shape, &options).await;
        created.expect("creates");
        let client = store.client();
        let disk = ObjectDisk::open(&env, client.clone(), &options).await.expect("opens");
        let mut data = Buf::zeroed(8 << 20);
        data.as_mut_slice().fill(9);
        assert_eq!(disk.write(Sector(0), data.into(), Durability::Fua).await, Ok(()));
        env.sleep(Nanos::from_secs(1)).await;
        let (before, mut waits) = (client.requests(), 0);
        for at in (0..8 << 20).step_by(16 << 10) {
            let begin = env.now();
            let (buf, result) = disk.read(Sector(at / 512), Buf::zeroed(16 << 10)).await;
            assert!(result.is_ok() && buf.as_slice().iter().all(|byte| *byte == 9));
            waits += u64::from(env.now().since(begin) > Nanos::from_micros(100));
            env.sleep(Nanos::from_micros(500)).await;
        }
        let requests = client.requests() - before;
        assert!(requests <= 32, "{requests} requests for 512 reads");
        assert!(waits <= 6, "{waits} of 512 reads waited for the store");
    });
}

#[test]
fn a_volume_grows_while_it_is_used_and_keeps_its_size() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let disk = open(&env, &store).await.expect("opens");
        assert_eq!(disk.write(Sector(0), pattern(3).into(), Durability::Volatile).await, Ok(()));
        // A page more.
        let size = SHAPE.size_bytes + 2000 * OBJECT;
        let end = Sector((size - BLOCK) / 512);
        let late = disk.write(end, pattern(4).into(), Durability::Volatile).await;
        assert!(matches!(late, Err(IoError::OutOfRange { .. })));
        assert_eq!(disk.grow(size).await, Ok(()));
        assert_eq!(disk.refresh_size().await, Ok(size / 512));
        let (buf, result) = disk.read(end, Buf::zeroed(BLOCK as usize)).await;
        assert_eq!((support::tag_of(buf.as_slice()), result), (0, Ok(())));
        assert_eq!(disk.write(end, pattern(4).into(), Durability::Fua).await, Ok(()));
        assert_eq!(disk.grow(SHAPE.size_bytes).await, Err(GrowFailure::Shorter(size)));
        assert!(matches!(disk.grow(size + 512).await, Err(GrowFailure::Shape(_))));
        let disk = open(&env, &store).await.expect("opens");
        assert_eq!(disk.shape().size_bytes, size);
        for (at, tag) in [(Sector(0), 3), (end, 4)] {
            let (buf, result) = disk.read(at, Buf::zeroed(BLOCK as usize)).await;
            assert_eq!((support::tag_of(buf.as_slice()), result), (tag, Ok(())));
        }
    });
}

#[test]
fn a_volume_is_created_once_and_has_to_be_there() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        assert_eq!(open(&env, &store).await.err(), Some(OpenFailure::NoVolume));
        create(&env, &store).await;
        let again = ubcache_objects::create(&env, store.client(), SHAPE, &options().0).await;
        assert_eq!(again, Err(OpenFailure::Exists(SHAPE.size_bytes)));
    });
}

#[test]
fn a_store_that_ignores_conditions_is_refused_for_writing() {
    for (conditions, message) in [
        (
            Conditions::Ignored,
            "the store is not fit for writing: found a PUT with If-None-Match: * that replaced an \
             object; expected status 412",
        ),
        (
            Conditions::MatchIgnored,
            "the store is not fit for writing: found a PUT with If-Match of another tag that \
             replaced an object; expected status 412",
        ),
    ] {
        run(1, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            let disk = open(&env, &store).await.expect("opens");
            assert_eq!(disk.write(Sector(0), pattern(3).into(), Durability::Fua).await, Ok(()));
            assert_eq!(disk.close().await, Ok(()));
            store.conditions.set(conditions);
            let failure = open(&env, &store).await.err().expect("is refused");
            assert_eq!(failure.to_string(), message);
            assert!(store.keys().iter().all(|key| !key.starts_with("probe")));
            // Data that is there can be read.
            let options = OpenOptions { read_only: true, ..options().0 };
            let disk = ObjectDisk::open(&env, store.client(), &options).await.expect("opens");
            let (buf, result) = disk.read(Sector(0), Buf::zeroed(BLOCK as usize)).await;
            assert_eq!((support::tag_of(buf.as_slice()), result), (3, Ok(())));
            let write = disk.write(Sector(0), pattern(4).into(), Durability::Fua);
            assert_eq!(write.await, Err(IoError::Os(30)));
        });
    }
}

#[test]
fn a_newer_root_is_refused_with_both_versions() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let root = store.content("root").expect("a root");
        let root = String::from_utf8(root.to_vec()).expect("text");
        store.tamper("root", root.replace("\"version\":1", "\"version\":2").into());
        let failure = open(&env, &store).await.err().expect("is refused");
        assert_eq!(
            failure.to_string(),
            "object \"root\": found version 2; expected the root of a ubcache volume, version 1"
        );
        assert_eq!(failure, open(&env, &store).await.err().expect("is refused again"));
        assert!(!matches!(failure, OpenFailure::Store(StoreError::Other(_))));
    });
}
