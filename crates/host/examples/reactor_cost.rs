//! Costs of the reactor: nanoseconds per await, per task switch, per round trip through the I/O
//! backend, and per I/O of a cached file.
//!
//! `cargo run --release -p ubcache-host --example reactor_cost`
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::rc::Rc;
use std::time::Instant;

use ubcache_env::local::{Notify, join_all};
use ubcache_env::{Buf, Device, Env, Priority, Sector};
use ubcache_host::{Host, HostEnv, HostFile, IoBackend, OpenOptions, PageCache};

const FILE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        match Host::new(backend) {
            Ok(host) => {
                println!("{}:", host.backend_name());
                host.block_on(measure(host.env()))?;
            }
            Err(error) => println!("{backend:?}: not available: {error}"),
        }
    }
    Ok(())
}

async fn measure(env: HostEnv) -> Result<(), Box<dyn std::error::Error>> {
    yields(&env, 1, 2_000_000).await;
    yields(&env, 64, 40_000).await;
    ping_pong(&env, 1_000_000).await;
    spawns(&env, 500_000).await;
    nops(&env, 1, 100_000).await;
    nops(&env, 32, 20_000).await;
    nops(&env, 256, 4_000).await;
    timers(&env, 200_000).await;
    let path = std::env::temp_dir().join(format!("reactor_cost.{}", std::process::id()));
    let measured = reads(&env, &path).await;
    std::fs::remove_file(&path)?;
    measured
}

fn report(what: &str, count: u64, started: Instant) {
    let nanoseconds = started.elapsed().as_nanos() as f64 / count as f64;
    println!("  {what:<44} {nanoseconds:>9.1} ns");
}

async fn yields(env: &HostEnv, tasks: u64, rounds: u64) {
    let started = Instant::now();
    let tasks_running: Vec<_> = (0..tasks)
        .map(|_| {
            let inner = env.clone();
            env.spawn(Priority::Foreground, async move {
                for _ in 0..rounds {
                    inner.yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks_running {
        task.join().await;
    }
    report(&format!("await: yield, {tasks} tasks"), tasks * rounds, started);
}

async fn ping_pong(env: &HostEnv, rounds: u64) {
    let (ping, pong) = (Rc::new(Notify::default()), Rc::new(Notify::default()));
    let (their_ping, their_pong) = (ping.clone(), pong.clone());
    let started = Instant::now();
    let other = env.spawn(Priority::Foreground, async move {
        for _ in 0..rounds {
            let heard = their_ping.notified();
            their_pong.notify_one();
            heard.await;
        }
    });
    let task = env.spawn(Priority::Foreground, async move {
        // One less: the first answer of the other task comes before this one listens.
        for _ in 1..rounds {
            let heard = pong.notified();
            ping.notify_one();
            heard.await;
        }
        ping.notify_one();
    });
    task.join().await;
    report("await: wake another task, be woken by it", 2 * rounds, started);
    other.join().await;
}

async fn spawns(env: &HostEnv, count: u64) {
    let started = Instant::now();
    for _ in 0..count {
        env.spawn(Priority::Foreground, async {}).join().await;
    }
    report("spawn a task and join it", count, started);
}

async fn nops(env: &HostEnv, tasks: u64, rounds: u64) {
    let started = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let inner = env.clone();
            env.spawn(Priority::Foreground, async move {
                for _ in 0..rounds {
                    inner.nop().await;
                }
            })
        })
        .collect();
    for task in running {
        task.join().await;
    }
    report(&format!("NOP through the backend, {tasks} tasks"), tasks * rounds, started);
}

async fn timers(env: &HostEnv, count: u64) {
    let started = Instant::now();
    let at = env.now();
    join_all(
        (0..count)
            .map(|index| env.sleep_until(at.after(ubcache_env::Nanos(1_000_000 + index * 10)))),
    )
    .await;
    report("timer, set and fired (all at once)", count, started);
}

async fn reads(env: &HostEnv, path: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::write(path, vec![7; FILE_BYTES as usize])?;
    for (page_cache, name) in [(PageCache::Always, "page cache"), (PageCache::Never, "O_DIRECT")] {
        let file = Rc::new(HostFile::open(
            env,
            path,
            OpenOptions { page_cache, ..OpenOptions::default() },
        )?);
        for tasks in [1, 32] {
            let rounds = 20_000 / tasks;
            let started = Instant::now();
            let running: Vec<_> = (0..tasks)
                .map(|_| {
                    let (inner, file) = (env.clone(), file.clone());
                    env.spawn(Priority::Foreground, async move {
                        let mut buf = Buf::zeroed(4096);
                        for _ in 0..rounds {
                            let at = Sector(inner.random() % (FILE_BYTES / 4096) * 8);
                            let (back, result) = file.read(at, buf).await;
                            result.expect("the file is there");
                            buf = back;
                        }
                    })
                })
                .collect();
            for task in running {
                task.join().await;
            }
            report(&format!("read 4 KiB, {name}, {tasks} tasks"), tasks * rounds, started);
        }
    }
    Ok(())
}
