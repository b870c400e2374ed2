//! The executor and the streams.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::{Notify, join};
use ubcache_env::{Buf, Env, IoVec, Nanos, Priority, Stream, StreamError};
use ubcache_sim::{Policy, SimStream, SimWorld, Stuck, WorldConfig};

#[test]
fn virtual_sleeps_end_in_order() {
    for seed in 0..50 {
        let world = SimWorld::new(WorldConfig { timer_slop: Nanos(0), ..WorldConfig::new(seed) });
        let env = world.env();
        let order = world.run(async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for hours in [3, 1, 2] {
                let (inside, order) = (env.clone(), order.clone());
                env.spawn(Priority::Background, async move {
                    inside.sleep(Nanos::from_secs(hours * 3600)).await;
                    order.borrow_mut().push(hours);
                });
            }
            env.sleep(Nanos::from_secs(4 * 3600)).await;
            order.take()
        });
        assert_eq!(order, Ok(vec![1, 2, 3]));
        assert!(world.now() >= Nanos::from_secs(4 * 3600) && world.steps() < 100);
    }
}

#[test]
fn deadlock_report_names_waiting_tasks() {
    let world = SimWorld::new(WorldConfig::new(1));
    let result = world.run(async { Notify::default().notified().await });
    let Err(Stuck::Deadlock(text)) = result else { panic!("{result:?}") };
    assert!(text.contains("world.rs"), "{text}");
}

#[test]
fn endless_loop_is_reported() {
    let world = SimWorld::new(WorldConfig { max_steps: 10_000, ..WorldConfig::new(1) });
    let env = world.env();
    let result: Result<(), Stuck> = world.run(async move {
        loop {
            env.yield_now().await;
        }
    });
    assert!(matches!(result, Err(Stuck::Steps(_))));
}

/// A task that waits by yielding does not keep others from running, whatever the policy.
#[test]
fn yield_lets_other_tasks_run() {
    for policy in [Policy::Uniform, Policy::Fifo, Policy::Ranks, Policy::Queues] {
        for seed in 0..50 {
            let world =
                SimWorld::new(WorldConfig { policy, max_steps: 20_000, ..WorldConfig::new(seed) });
            let env = world.env();
            let done = world.run(async move {
                let flag = Rc::new(Cell::new(false));
                let (set, inside) = (flag.clone(), env.clone());
                env.spawn(Priority::Background, async move {
                    inside.sleep(Nanos::from_micros(20)).await;
                    set.set(true);
                });
                while !flag.get() {
                    env.yield_now().await;
                }
            });
            assert_eq!(done, Ok(()), "{policy:?}");
        }
    }
}

#[test]
fn killed_instance_runs_no_task() {
    let world = SimWorld::new(WorldConfig::new(1));
    let (env, instance, inside) = (world.env(), world.new_instance(), world.clone());
    let count = world.run(async move {
        let count = Rc::new(Cell::new(0));
        let (counter, task) = (count.clone(), instance.clone());
        instance.spawn(Priority::Foreground, async move {
            loop {
                task.sleep(Nanos::from_millis(1)).await;
                counter.set(counter.get() + 1);
            }
        });
        env.sleep(Nanos::from_millis(10)).await;
        inside.kill(&instance);
        let before = count.get();
        instance.spawn(Priority::Foreground, async { panic!("a dead instance starts nothing") });
        env.sleep(Nanos::from_millis(10)).await;
        (before, count.get())
    });
    let (before, after) = count.expect("it ends");
    assert!(before > 5 && before == after);
}

#[test]
fn streams_deliver_bytes_in_order_however_cut() {
    for seed in 0..100 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let env = world.env();
        let received = world.run(async move {
            let (left, right) = SimStream::pair(&env, Nanos::from_millis(1));
            let send = async {
                for chunk in 0..40_u8 {
                    left.send(IoVec::from(Buf::from_bytes(&vec![chunk; 5000])))
                        .await
                        .expect("connected");
                }
                left.close();
            };
            let receive = async {
                let mut all = Vec::new();
                loop {
                    let (buf, count) = right.recv(Buf::zeroed(3000)).await;
                    match count.expect("connected") {
                        0 => return all,
                        count => all.extend_from_slice(&buf.as_slice()[..count]),
                    }
                }
            };
            join(send, receive).await.1
        });
        let received = received.expect("it ends");
        assert_eq!(received.len(), 200_000);
        assert!(received.iter().enumerate().all(|(at, byte)| *byte as usize == at / 5000));
        world.end();
    }
}

#[test]
fn a_disconnect_ends_both_sides() {
    let world = SimWorld::new(WorldConfig::new(3));
    let env = world.env();
    let ends = world.run(async move {
        let (left, right) = SimStream::pair(&env, Nanos::from_millis(1));
        left.send(IoVec::zeroes(1000)).await.expect("connected");
        left.disconnect();
        let mut got = 0;
        loop {
            match right.recv(Buf::zeroed(512)).await.1 {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) => panic!("{error}"),
            }
        }
        (got <= 1000, right.send(IoVec::zeroes(1)).await)
    });
    assert_eq!(ends, Ok((true, Err(StreamError::Closed))));
}
