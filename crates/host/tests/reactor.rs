//! Tasks, timers, priorities, calls from other threads, signals, over both backends.

#![allow(clippy::disallowed_methods, reason = "tests of what other threads may do")]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::Duration;

use ubcache_env::local::{Notify, first, join_all};
use ubcache_env::{Env, Nanos, Priority};
use ubcache_host::signal::{SIGHUP, SIGTERM};
use ubcache_host::{Host, HostEnded, IoBackend};

/// Over both backends, and over the ring with waits spent awake.
fn hosts() -> impl Iterator<Item = Host> {
    let awake = [(IoBackend::Ring, 0), (IoBackend::Pool, 0), (IoBackend::Ring, 1000)];
    awake.into_iter().filter_map(|(backend, busy_poll)| {
        let host = Host::new(backend)
            .inspect_err(|error| println!("skipped: no {backend:?} backend here: {error}"))
            .ok()?;
        host.set_busy_poll(Duration::from_micros(busy_poll));
        Some(host)
    })
}

#[test]
fn timers_fire_in_order() {
    for host in hosts() {
        let env = host.env();
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = env.now();
        let sleeps = [30, 10, 20, 0, 10].into_iter().enumerate().map(|(index, milliseconds)| {
            let (env, order) = (env.clone(), order.clone());
            async move {
                let at = start.after(Nanos::from_millis(milliseconds));
                env.sleep_until(at).await;
                assert!(env.now() >= at, "never too early");
                order.borrow_mut().push(index);
            }
        });
        host.block_on(join_all(sleeps));
        assert_eq!(*order.borrow(), [3, 1, 4, 2, 0]);
        let late = env.now().since(start).as_millis();
        assert!((30..2000).contains(&late), "{late} ms");
        // Sleepers that give up leave nothing behind.
        for _ in 0..1000 {
            host.block_on(first(env.sleep(Nanos::from_secs(1_000_000)), env.yield_now()));
        }
    }
}

#[test]
fn short_sleeps_are_short() {
    for host in hosts() {
        let env = host.env();
        let start = env.now();
        host.block_on(async {
            for _ in 0..20 {
                env.sleep(Nanos::from_micros(100)).await;
            }
        });
        let taken = env.now().since(start).as_micros();
        println!("{}: 20 sleeps of 100 us took {taken} us", host.backend_name());
        assert!(taken >= 2000);
    }
}

/// Foreground goes on while background work is plentiful, and the other way round.
#[test]
fn priorities_are_fair() {
    for host in hosts() {
        let env = host.env();
        let counts = Rc::new([const { Cell::new(0_u64) }; 3]);
        for priority in [Priority::Foreground, Priority::Journal, Priority::Background] {
            for _ in 0..100 {
                let (env, counts) = (env.clone(), counts.clone());
                let inner = env.clone();
                env.spawn(priority, async move {
                    loop {
                        counts[priority as usize].set(counts[priority as usize].get() + 1);
                        inner.yield_now().await;
                    }
                });
            }
        }
        host.block_on(env.sleep(Nanos::from_millis(100)));
        let [foreground, journal, background] = [0, 1, 2].map(|index: usize| counts[index].get());
        println!("{}: {foreground} {journal} {background}", host.backend_name());
        assert!(background > 100, "background is not starved: {background}");
        assert!(
            journal >= background && foreground >= journal,
            "{foreground} {journal} {background}"
        );
    }
}

/// Bug: fills shared a queue with writeback, and thousands of them kept it from its turn for
/// seconds. Counted in polls: a background task has a turn for every few polls of fills, however
/// many fills there are.
#[test]
fn fills_do_not_starve_the_background() {
    for host in hosts() {
        let env = host.env();
        let fills = Rc::new(Cell::new(0_u64));
        for _ in 0..10_000 {
            let (inner, fills) = (env.clone(), fills.clone());
            env.spawn(Priority::Fill, async move {
                loop {
                    fills.set(fills.get() + 1);
                    inner.yield_now().await;
                }
            });
        }
        let inner = env.clone();
        let work = env.spawn(Priority::Background, async move {
            for _ in 0..1000 {
                inner.yield_now().await;
            }
        });
        host.block_on(work.join());
        assert!(
            fills.get() <= 20 * 1000,
            "{}: {} polls of fills",
            host.backend_name(),
            fills.get()
        );
        assert!(
            fills.get() >= 500,
            "{}: fills have their share: {}",
            host.backend_name(),
            fills.get()
        );
    }
}

/// A foreground task woken while background tasks hog the thread runs within one of their polls
/// or few.
#[test]
fn foreground_task_waits_for_few_background_polls() {
    for host in hosts() {
        let env = host.env();
        for _ in 0..50 {
            let inner = env.clone();
            env.spawn(Priority::Background, async move {
                loop {
                    let start = inner.now();
                    while inner.now().since(start) < Nanos::from_micros(200) {}
                    inner.yield_now().await;
                }
            });
        }
        let longest = host.block_on(async {
            let mut longest = Nanos::default();
            for _ in 0..100 {
                let start = env.now();
                env.yield_now().await;
                longest = longest.max(env.now().since(start));
            }
            longest
        });
        println!("{}: longest wait {} us", host.backend_name(), longest.as_micros());
        assert!(longest < Nanos::from_millis(50), "{longest:?}");
    }
}

#[test]
fn yielding_lets_all_others_run() {
    for host in hosts() {
        let env = host.env();
        let order = Rc::new(RefCell::new(String::new()));
        let tasks = ["a", "b", "c"].map(|name| {
            let (inner, order) = (env.clone(), order.clone());
            env.spawn(Priority::Foreground, async move {
                for _ in 0..3 {
                    order.borrow_mut().push_str(name);
                    inner.yield_now().await;
                }
            })
        });
        host.block_on(async {
            for task in &tasks {
                task.join().await;
            }
        });
        assert_eq!(*order.borrow(), "abcabcabc");
    }
}

#[test]
fn calls_from_other_threads_run_on_the_host() {
    for host in hosts() {
        let env = host.env();
        let sum = Arc::new(AtomicU64::new(0));
        let notify = Rc::new(Notify::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (remote_handle, sum) = (host.remote_handle(), sum.clone());
                std::thread::spawn(move || {
                    for index in 0..1000 {
                        let sum = sum.clone();
                        let call = move |host: &Host| {
                            assert!(host.env().now() > Nanos(0), "it runs on the host's thread");
                            sum.fetch_add(index, Ordering::Relaxed);
                        };
                        remote_handle.send(Box::new(call)).expect("the host lives");
                        if index % 100 == 0 {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        host.block_on(async {
            while sum.load(Ordering::Relaxed) < 4 * 499_500 {
                first(notify.notified(), env.sleep(Nanos::from_millis(1))).await;
            }
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it did not panic"));
        // A question and its answer, while the host sleeps.
        let (remote_handle, (answer, question)) = (host.remote_handle(), mpsc::channel());
        let asking = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            let call = move |host: &Host| answer.send(host.backend_name()).expect("it listens");
            remote_handle.send(Box::new(call)).expect("the host lives");
            question.recv_timeout(Duration::from_secs(10)).expect("an answer comes")
        });
        host.block_on(env.sleep(Nanos::from_millis(50)));
        assert_eq!(asking.join().expect("it did not panic"), host.backend_name());
        let remote_handle = host.remote_handle();
        drop(host);
        assert_eq!(remote_handle.send(Box::new(|_| ())), Err(HostEnded));
    }
}

/// Wakers may be called from other threads, for a task and for the future of `block_on`.
#[test]
fn wakes_from_other_threads_reach_their_tasks() {
    fn woken_by_thread() -> impl Future<Output = ()> {
        let (sender, receiver) = mpsc::channel::<Waker>();
        let done = Arc::new(AtomicU64::new(0));
        let set = done.clone();
        std::thread::spawn(move || {
            let waker = receiver.recv().expect("somebody waits");
            std::thread::sleep(Duration::from_millis(2));
            set.store(1, Ordering::Release);
            waker.wake();
        });
        let mut sender = Some(sender);
        std::future::poll_fn(move |cx| {
            if let Some(sender) = sender.take() {
                sender.send(cx.waker().clone()).expect("the thread listens");
            }
            if done.load(Ordering::Acquire) == 1 { Poll::Ready(()) } else { Poll::Pending }
        })
    }
    for host in hosts() {
        let env = host.env();
        for _ in 0..20 {
            host.block_on(woken_by_thread());
            let task = env.spawn(Priority::Journal, woken_by_thread());
            host.block_on(task.join());
        }
        // A task that is woken after the end of its host.
        env.spawn(Priority::Foreground, woken_by_thread());
        host.block_on(env.yield_now());
        drop(host);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_wake_their_waiters() {
    for host in hosts() {
        let env = host.env();
        for number in [SIGTERM, SIGHUP] {
            let signal = host.signal(number).expect("a handler");
            let process = std::process::id().to_string();
            host.block_on(async {
                let early = first(signal.wait(), env.sleep(Nanos::from_millis(1))).await;
                assert!(matches!(early, ubcache_env::local::Either::Right(())));
                let flag = format!("-{number}");
                let sent = std::process::Command::new("kill").args([&flag, &process]).status();
                assert!(sent.expect("kill runs").success());
                signal.wait().await;
            });
        }
        assert!(host.signal(9).is_err(), "SIGKILL can't be caught");
    }
}

/// A panic of a task passes through `block_on`, and the host still ends in order.
#[test]
fn panic_of_a_task_passes_through_block_on() {
    for host in hosts() {
        let env = host.env();
        env.spawn(Priority::Foreground, async { panic!("on purpose") });
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            host.block_on(env.sleep(Nanos::from_secs(10)));
        }));
        assert!(caught.is_err());
        host.block_on(env.nop());
    }
}

/// More operations at once than the queues of a ring have room for.
#[test]
fn more_operations_than_ring_entries_complete() {
    for host in hosts() {
        let env = host.env();
        for _ in 0..3 {
            host.block_on(join_all((0..20_000).map(|_| env.nop())));
        }
    }
}

/// Set in the process that only says what `Auto` chooses: the variable is read once a process.
const ONLY_SAY: &str = "UBCACHE_TEST_ONLY_SAY";

#[test]
fn environment_variable_chooses_the_backend() {
    if std::env::var_os(ONLY_SAY).is_some() {
        match Host::new(IoBackend::Auto) {
            Ok(host) => println!("choice: {}", host.backend_name()),
            Err(error) => println!("no choice: {error}"),
        }
        return;
    }
    let choice = |variable: &str| {
        let executable = std::env::current_exe().expect("this test has a name");
        let output = std::process::Command::new(executable)
            .args(["--exact", "environment_variable_chooses_the_backend", "--nocapture"])
            .env("UBCACHE_IO", variable)
            .env(ONLY_SAY, "1")
            .output();
        String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned()
    };
    assert!(choice("pool").contains("choice: pool"));
    assert!(choice("nonsense").contains("no choice: UBCACHE_IO is \"nonsense\""));
    let automatic = choice("");
    if Host::new(IoBackend::Ring).is_ok() {
        assert!(automatic.contains("choice: ring"), "{automatic}");
        assert!(choice("ring").contains("choice: ring"));
    } else {
        assert!(automatic.contains("choice: pool"), "{automatic}");
        assert!(choice("ring").contains("no choice: "));
    }
}
