//! The load generator against the smallest server.
#![allow(clippy::disallowed_methods, reason = "a server needs a thread")]

use std::sync::mpsc;
use std::time::Duration;

use ubcache_bench::nbd::load::{Load, Order, Until, run};
use ubcache_bench::nbd::{Address, memory_server};

fn server(directory: &tempfile::TempDir) -> Address {
    let address = Address::Unix(directory.path().join("memory.nbd"));
    let (listens, ready) = mpsc::channel();
    let at = address.clone();
    std::thread::spawn(move || {
        memory_server::serve(&at, 8 << 20, || listens.send(()).expect("somebody waits"))
    });
    ready.recv().expect("the server listens");
    address
}

#[test]
fn every_request_is_answered_and_counted_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = server(&directory);
    for (connections, queue_depth, block_bytes, write_percent, flush_every) in [
        (1, 1, 4096, 0, 0),
        (1, 32, 4096, 0, 0),
        (3, 7, 512, 50, 0),
        (2, 16, 1 << 20, 100, 0),
        (1, 32, 4096, 100, 32),
    ] {
        let load = Load {
            connections,
            queue_depth,
            block_bytes,
            write_percent,
            flush_every,
            order: Order::Scattered,
            until: Until::Requests(1000),
            ..Load::new(address.clone())
        };
        let outcome = run(&load).expect("the server answers");
        assert_eq!((outcome.requests, outcome.errors), (1000, 0), "{load:?}");
        assert_eq!(outcome.latency.len(), 1000);
        // After 32 writes comes one flush, which moves no bytes.
        let flushes = if flush_every > 0 { 1000 / 33 } else { 0 };
        assert_eq!(outcome.bytes, (1000 - flushes) * u64::from(block_bytes), "{load:?}");
        if queue_depth == 32 && write_percent == 0 {
            assert!(outcome.calls < 1500, "requests go out together: {} calls", outcome.calls);
        }
    }
}

#[test]
fn load_ends_in_time_and_reports_errors() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = server(&directory);
    let load = Load { until: Until::Time(Duration::from_millis(50)), ..Load::new(address.clone()) };
    assert!(run(&load).expect("the server answers").requests > 0);
    let beyond = Load { offset_bytes: 8 << 20, ..load };
    assert!(run(&beyond).is_err_and(|why| why.contains("no room")));
    let nobody = Load::new(Address::Unix(directory.path().join("nobody")));
    assert!(run(&nobody).is_err_and(|why| why.contains("connecting")));
}
