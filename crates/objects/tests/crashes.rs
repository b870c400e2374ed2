//! The end of a writer at any request, and requests that take effect after it.

mod support;

use std::rc::Rc;

use support::{Disk, Memory, Model, create, load, open, options, run};
use ubcache_env::local::first;
use ubcache_env::{Env, Nanos};
use ubcache_objects::ObjectDisk;
use ubcache_objects::memory::{End, Faults};
use ubcache_sim::{SimEnv, SimWorld};

/// Requests of a real store that go wrong now and then.
const FAULTS: Faults = Faults { busy: 30, lost: 30, late: 30, late_within: Nanos::from_secs(20) };

/// Runs a load until it ends or its client does. Returns true if the client ended.
async fn load_until(
    world: &SimWorld,
    store: &Rc<Memory>,
    model: &Rc<Model>,
    end: Option<End>,
    steps: u64,
) -> bool {
    let env = world.new_instance();
    let client = store.client();
    if let Some(end) = end {
        client.end_at(end);
    }
    let ended = client.clone();
    let work = {
        let (env, model) = (env.clone(), model.clone());
        let task_env = env.clone();
        task_env.spawn(ubcache_env::Priority::Foreground, async move {
            let disk = ObjectDisk::open(&env, client, &options().0).await.expect("opens");
            model.verify(&disk, true).await;
            load(&env, &disk, &model, steps).await;
        })
    };
    let crashed =
        matches!(first(ended.ended(), work.join()).await, ubcache_env::local::Either::Left(()));
    world.kill(&env);
    crashed
}

async fn reopen(world: &SimWorld, store: &Rc<Memory>) -> (SimEnv, Disk) {
    let env = world.new_instance();
    let disk = open(&env, store).await.expect("opens after a crash");
    (env, disk)
}

/// Every object that is left is named.
async fn nothing_is_left(store: &Rc<Memory>, disk: &Disk) {
    let (objects, pages) = disk.named();
    let count = |prefix: &str| store.keys().iter().filter(|key| key.starts_with(prefix)).count();
    assert_eq!((count("data/"), count("pages/")), (objects, pages), "{:#?}", store.keys());
    assert_eq!(store.keys().len(), objects + pages + 2, "root and lease");
}

#[test]
fn a_crash_at_any_request_loses_nothing_that_was_flushed() {
    // Requests 1 to 12 or so are of the attachment.
    for request in 1..160 {
        for carried_out in [false, true] {
            run(request, async move |world, store| {
                let env = world.new_instance();
                create(&env, &store).await;
                let model = Model::new();
                let end = Some(End { request, carried_out });
                load_until(&world, &store, &model, end, 40).await;
                let (env, disk) = reopen(&world, &store).await;
                model.verify(&disk, true).await;
                assert!(load(&env, &disk, &model, 10).await);
                assert!(model.flush(&disk).await);
                env.sleep(Nanos::from_secs(5)).await;
                nothing_is_left(&store, &disk).await;
                assert_eq!(disk.close().await, Ok(()));
                model.settle();
                let (_, disk) = reopen(&world, &store).await;
                model.verify(&disk, false).await;
            });
        }
    }
}

#[test]
fn late_requests_of_a_dead_writer_are_never_read() {
    for seed in 0..150 {
        run(seed, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            let model = Model::new();
            for _ in 0..4 {
                store.faults.set(FAULTS);
                let end = End { request: env.random() % 250, carried_out: env.random() & 1 == 0 };
                load_until(&world, &store, &model, Some(end), 50).await;
                // Requests of the dead writer are still on their way.
                store.faults.set(Faults { late: 0, ..FAULTS });
                let (env, disk) = reopen(&world, &store).await;
                model.verify(&disk, true).await;
                load(&env, &disk, &model, 20).await;
                env.sleep(Nanos(env.random() % 30_000_000_000)).await;
                model.verify(&disk, false).await;
                load(&env, &disk, &model, 20).await;
                world.kill(&env);
            }
            store.faults.set(Faults::default());
            env.sleep(Nanos::from_secs(60)).await;
            let (env, disk) = reopen(&world, &store).await;
            model.verify(&disk, true).await;
            env.sleep(Nanos::from_secs(10)).await;
            nothing_is_left(&store, &disk).await;
        });
    }
}

#[test]
fn a_store_that_is_away_for_a_while_loses_nothing() {
    for seed in 0..30 {
        run(seed, async move |world, store| {
            let env = world.new_instance();
            create(&env, &store).await;
            let (options, events) = options();
            let disk = ObjectDisk::open(&env, store.client(), &options).await.expect("opens");
            let model = Model::new();
            let control = {
                let (env, store) = (world.env(), store.clone());
                world.env().spawn(ubcache_env::Priority::Background, async move {
                    for _ in 0..10 {
                        env.sleep(Nanos(env.random() % 100_000_000)).await;
                        store.away.set(true);
                        // Sometimes longer than the patience of the volume.
                        env.sleep(Nanos(env.random() % 60_000_000_000)).await;
                        store.away.set(false);
                    }
                })
            };
            while !control.is_finished() {
                load(&env, &disk, &model, 20).await;
                // Reads that failed and writes that found no room are made up for.
                env.sleep(Nanos::from_millis(10)).await;
            }
            control.join().await;
            model.verify(&disk, false).await;
            assert!(model.flush(&disk).await);
            world.kill(&env);
            let (_, disk) = reopen(&world, &store).await;
            model.verify(&disk, true).await;
            assert!(!events.borrow().is_empty());
        });
    }
}
