//! Two writers of one volume.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use support::{Model, create, load, open, options, pattern, run};
use ubcache_env::{Device, Durability, Env, IoError, Nanos, Priority, Sector};
use ubcache_objects::memory::Faults;
use ubcache_objects::{ObjectDisk, OpenFailure, OpenOptions, StoreEvent};

#[test]
fn a_volume_in_use_is_refused_and_one_of_a_dead_holder_is_taken_after_a_while() {
    run(1, async move |world, store| {
        let env = world.new_instance();
        create(&env, &store).await;
        let polite = |holder: &str| OpenOptions {
            holder: holder.to_owned(),
            is_gone: Rc::new(|_| false),
            ..options().0
        };
        let first = world.new_instance();
        let disk = ObjectDisk::open(&first, store.client(), &polite("first")).await.expect("opens");
        let refused = ObjectDisk::open(&env, store.client(), &polite("second")).await.err();
        assert_eq!(refused, Some(OpenFailure::InUse("first".to_owned())));
        assert_eq!(disk.write(Sector(0), pattern(1).into(), Durability::Fua).await, Ok(()));
        world.kill(&first);
        let second =
            ObjectDisk::open(&env, store.client(), &polite("second")).await.expect("opens");
        assert_eq!(second.close().await, Ok(()));
        let before = env.now();
        ObjectDisk::open(&env, store.client(), &polite("third")).await.expect("opens");
        let waited = env.now().since(before);
        assert!(waited < Nanos::from_secs(1), "{waited:?} after a stop in order");
    });
}

#[test]
fn a_writer_that_was_displaced_fails_with_the_reason_and_changes_nothing() {
    for seed in 0..100 {
        run(seed, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            let old_env = world.new_instance();
            let (options, events) = options();
            let old = ObjectDisk::open(&old_env, store.client(), &options).await.expect("opens");
            let model = Model::new();
            assert!(load(&old_env, &old, &model, 20).await);
            store.faults.set(Faults {
                late: 20,
                lost: 20,
                late_within: Nanos::from_secs(10),
                busy: 20,
            });
            // The old one goes on beside the new one: its writes are of a model of their own.
            let task = {
                let (old, old_env) = (old.clone(), old_env.clone());
                old_env.clone().spawn(Priority::Foreground, async move {
                    loop {
                        let at = Sector(old_env.random() % 4000 * 8);
                        let tag = 1 << 60 | old_env.random();
                        let data = pattern(tag).into();
                        let wrote = old.write(at, data, Durability::Volatile).await;
                        let flushed = old.flush().await;
                        if wrote.is_err() || flushed.is_err() {
                            return;
                        }
                    }
                })
            };
            let new = open(&env, &store).await.expect("opens");
            let mark = pattern(77);
            let write = new.write(Sector(0), mark.into(), Durability::Fua);
            assert_eq!(write.await, Ok(()));
            let names = new.named();
            task.join().await;
            env.sleep(Nanos::from_secs(30)).await;
            assert_eq!(new.named(), names);
            let (buf, result) = new.read(Sector(0), pattern(0)).await;
            assert_eq!((support::tag_of(buf.as_slice()), result), (77, Ok(())));
            assert_eq!(
                old.write(Sector(0), pattern(5).into(), Durability::Fua).await,
                Err(IoError::Os(116))
            );
            assert!(old.read(Sector(0), pattern(0)).await.1.is_err(), "it may be out of date");
            let lost = |event: &StoreEvent| matches!(event, StoreEvent::Lost { .. });
            assert_eq!(events.borrow().iter().filter(|event| lost(event)).count(), 1);
        });
    }
}

#[test]
fn of_writers_that_attach_at_the_same_time_at_most_one_writes() {
    for seed in 0..150 {
        run(seed, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            if seed % 2 == 1 {
                store.faults.set(Faults {
                    late: 20,
                    lost: 20,
                    late_within: Nanos::from_secs(10),
                    busy: 20,
                });
            }
            let flushed: Rc<RefCell<Vec<u64>>> = Rc::default();
            let tasks: Vec<_> = (0..3_u64)
                .map(|writer| {
                    let env = world.new_instance();
                    let (store, flushed) = (store.clone(), flushed.clone());
                    env.clone().spawn(Priority::Foreground, async move {
                        env.sleep(Nanos(env.random() % 20_000_000)).await;
                        let Ok(disk) = open(&env, &store).await else { return };
                        for turn in 0..20 {
                            let tag = writer << 32 | turn;
                            let data = pattern(tag).into();
                            if disk.write(Sector(0), data, Durability::Fua).await.is_ok() {
                                flushed.borrow_mut().push(tag);
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.join().await;
            }
            // In the order of success: once another writer has begun, the one before has ended.
            let mut writers: Vec<u64> = flushed.borrow().iter().map(|tag| tag >> 32).collect();
            writers.dedup();
            let mut once = writers.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(writers.len(), once.len(), "{writers:?} took turns");
            store.faults.set(Faults::default());
            env.sleep(Nanos::from_secs(20)).await;
            let last = flushed.borrow().last().copied();
            let disk = open(&env, &store).await.expect("opens");
            let (buf, result) = disk.read(Sector(0), pattern(0)).await;
            assert_eq!(result, Ok(()));
            // A write whose flush was not answered may be there, too.
            let found = support::tag_of(buf.as_slice());
            assert!(
                last.is_none_or(|last| found >> 32 == last >> 32 && found >= last || seed % 2 == 1)
            );
        });
    }
}
