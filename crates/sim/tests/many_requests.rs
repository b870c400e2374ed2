//! Work per request does not depend on how many requests are in flight.
//!
//! Each of many clients has one request, and all begin at once. The polls of all tasks are counted,
//! those of the background too, from the first start to the last check: what comes once in a run
//! makes them more for each of few requests, so they must get fewer with the number of requests.

use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::{Plan, RunOptions, run_plan};

const SECTORS: u64 = 4096;

/// Clients without a pattern that a prefetch or a sequential bypass could see.
fn place(client: u64) -> u64 {
    client * 2_654_435_761 % SECTORS
}

fn request(kind: &str, client: u64) -> String {
    let place = place(client);
    match kind {
        "read" => format!("read {place}+1"),
        "write" => format!("write {place}+1"),
        "fua" => format!("write {place}+1 fua"),
        "discard" => format!("discard {place}+1"),
        "flush" if client.is_multiple_of(2) => "flush".to_owned(),
        "mixed" if client.is_multiple_of(2) => format!("read {place}+1"),
        _ => format!("write {place}+1"),
    }
}

/// A plan of so many requests at once; `control` is a line of its own.
fn plan(cache: &str, mode: &str, kind: &str, clients: u64, control: &str) -> Plan {
    let mut text = format!(
        "ubcache-plan 1\n\
         world seed=1 policy=fifo poll-cost-ns=500 timer-slop-ns=50000 last-crash=0\n\
         cache {cache} node-keys=30 extents=1048576 lazy=0 volatile=1 discard=0 profile=fast\n\
         volume sectors={SECTORS} mode={mode} initial=500 volatile=1 discard=1 block=1 \
         profile=slow\n{control}"
    );
    for client in 0..clients {
        text += &format!("c{client} v0 {}\n", request(kind, client));
    }
    text.parse().expect("a plan")
}

/// Polls for each request.
fn polls_each(plan: &Plan) -> f64 {
    let outcome = run_plan::<CacheSystem>(plan, RunOptions::default());
    let reports = outcome.violations.iter().map(|violation| violation.report.as_str());
    assert!(outcome.is_good(), "{}", reports.collect::<Vec<_>>().join("\n"));
    outcome.steps as f64 / plan.ops.len() as f64
}

/// So many polls for each request are enough, for 100 of them as for 10 000.
fn stays_flat(cache: &str, mode: &str, kind: &str, control: impl Fn(u64) -> String) {
    let counts = [100, 1000, 10_000];
    let polls =
        counts.map(|clients| polls_each(&plan(cache, mode, kind, clients, &control(clients))));
    println!("{cache} {mode} {kind}: {polls:.1?} polls for each of {counts:?} requests");
    assert!(
        polls[1] <= polls[0] && polls[2] <= polls[1],
        "{cache} {mode} {kind}: {polls:.1?} polls for each of {counts:?} requests"
    );
}

/// Thousands of writes that waited for room in the journal all woke with each entry, of which one
/// has room for some dozens: polls for each grew with their number (a writeback write of 10 000
/// took 15 with 4,096 buckets of 4 KiB). They wait in a queue, of which the first is woken.
#[test]
fn polls_per_request_do_not_grow_with_the_requests_in_flight() {
    for kind in ["read", "write", "fua", "mixed", "flush", "discard"] {
        stays_flat("bucket=64 block=1 buckets=513", "writeback", kind, |_| String::new());
        stays_flat("bucket=8 block=1 buckets=513", "writethrough", kind, |_| String::new());
        stays_flat("bucket=8 block=1 buckets=4096", "writeback", kind, |_| String::new());
        stays_flat("bucket=8 block=1 buckets=513", "writeback", kind, |_| String::new());
    }
}

/// Clients that had ended their operation waited for the end of a pause, and every other operation
/// that ended woke all of them: seeds 881611251940, 881611251691, 881611252837 and 881611256344
/// took millions of polls before a stop, and were called stuck. Paused clients end now.
#[test]
fn a_stop_waits_for_thousands_of_requests_without_waking_them() {
    let restart = |clients| format!("at {clients} +10us restart\n");
    stays_flat("bucket=64 block=1 buckets=513", "writearound", "read", restart);
}
