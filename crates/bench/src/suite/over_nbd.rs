//! Hits and misses over NBD, beside other servers.

use std::fmt::Write;
use std::time::Duration;

use super::servers::{Serve, Server, Turns, in_turns, make};
use super::{Line, Options, Results, Row, Table};
use crate::nbd::load::{Load, PERCENTILES, Until, run};

const SWEEP: &[u32] = &[1, 2, 4, 8, 16, 32, 64];
/// Duration of a read of the slow backing device.
const SLOW: Duration = Duration::from_millis(5);
/// The part of a volume that is hit while other parts are missed.
const HOT_BYTES: u64 = 16 << 20;

/// Read hits of 4 KiB, all files in the page cache.
pub fn hits(options: &Options, results: &mut Results) -> Result<(), String> {
    let bytes = options.working_set_bytes();
    let files = make(options, "hits", bytes * 2 + (1 << 30), bytes, bytes)?;
    let backing = format!("{}", files.backing.display());
    let serve = Serve::with("ubcache.nbd", &["--page-cache=always", "--mode", "writethrough"]);
    let ubcache = Server::ubcache(options, &files, &serve)?;
    let size = bytes.to_string();
    let memory = Server::nbdkit(options, "nbdkit memory", "memory.nbd", &["memory", &size])?;
    let one =
        Server::nbdkit(options, "nbdkit -t 1 memory", "one.nbd", &["-t", "1", "memory", &size])?;
    let filter = |name, socket, more: &[&str]| {
        let mut arguments = vec!["--filter=cache", "file", &backing, "cache-on-read=true"];
        arguments.extend(more);
        Server::nbdkit(options, name, socket, &arguments)
    };
    let small = filter("nbdkit cache, 4 KiB", "small.nbd", &["cache-min-block-size=4K"])?;
    let large = filter("nbdkit cache", "large.nbd", &[])?;
    let floor = Server::floor(options, bytes)?;
    for server in [&memory, &one] {
        server.once(bytes, 1 << 20, true, 4)?;
    }
    for server in [&ubcache, &small, &large] {
        server.fill(bytes, 4096, 32)?;
    }
    let missed = ubcache.misses()?;

    let servers = [&ubcache, &memory, &small, &large, &floor];
    let span =
        |load: Load| Load { span_bytes: Some(bytes), until: Until::Time(options.turn()), ..load };
    let deep = in_turns(&servers, options.turns(), span)?;
    let singly = [&ubcache, &one, &small, &large, &floor];
    let single = in_turns(&singly, options.turns(), |load| Load { queue_depth: 1, ..span(load) })?;
    for (server, turns) in servers.iter().zip(&deep) {
        let points = PERCENTILES.iter().map(|&percentile| (percentile, turns.micros(percentile)));
        results.latency.push(Line { name: server.name.clone(), points: points.collect() });
        results.throughput.push(Line { name: server.name.clone(), points: Vec::new() });
    }
    for &queue_depth in SWEEP {
        let until = Until::Time(options.turn() / 2);
        let found = in_turns(&servers, 1, |load| Load { queue_depth, until, ..span(load) })?;
        for (line, turns) in results.throughput.iter_mut().zip(found) {
            line.points.push((f64::from(queue_depth), turns.iops));
        }
    }
    ubcache.only_hits_since(missed)?;
    results
        .tables
        .push(Table { section: "servers", text: table(&servers, &deep, &singly, &single) });
    rows(results, &deep, &single);
    Ok(())
}

fn rows(results: &mut Results, deep: &[Turns], single: &[Turns]) {
    let [ubcache, memory, small, large, floor] = deep else { unreachable!("five servers") };
    let command = |more: &str| {
        format!(
            "`ubcache serve --page-cache=always …`, then `ubcache-bench nbd unix:SOCKET --export \
             data {more} --server-pid PID`"
        )
    };
    let ratio = ubcache.server_micros / memory.server_micros;
    results.rows.push(Row {
        what: "NBD read hit, 4 KiB, QD 32, one connection, cache file in the page cache: server \
            CPU for a request"
            .to_owned(),
        goal: "≤ 2.5 µs and ≤ 0.45 × nbdkit memory".to_owned(),
        reached: format!("{:.2} µs", ubcache.server_micros),
        peer: format!(
            "nbdkit memory {:.2} µs, the protocol alone {:.2} \
            µs",
            memory.server_micros, floor.server_micros
        ),
        ratio: format!("{ratio:.2}"),
        met: Some(ubcache.server_micros <= 2.5 && ratio <= 0.45),
        command: command("-q 32"),
    });
    let best = small.iops.max(large.iops);
    let (to_memory, to_filter) = (ubcache.iops / memory.iops, ubcache.iops / best);
    results.rows.push(Row {
        what: "the same: requests a second".to_owned(),
        goal: "≥ 1.8 × nbdkit memory, ≥ 3.5 × its cache filter".to_owned(),
        reached: format!("{:.0}", ubcache.iops),
        peer: format!("nbdkit memory {:.0}, its cache filter at best {best:.0}", memory.iops),
        ratio: format!("{to_memory:.2}, {to_filter:.2}"),
        met: Some(to_memory >= 1.8 && to_filter >= 3.5),
        command: command("-q 32"),
    });
    let [ubcache, one, small, large, _] = single else { unreachable!("five servers") };
    let best = small.micros(50.0).min(large.micros(50.0));
    let (to_one, to_filter) =
        (ubcache.micros(50.0) / one.micros(50.0), ubcache.micros(50.0) / best);
    results.rows.push(Row {
        what: "NBD read hit, QD 1: median latency".to_owned(),
        goal: "≤ nbdkit -t 1 memory, ≤ 0.55 × its cache filter".to_owned(),
        reached: format!("{:.1} µs", ubcache.micros(50.0)),
        peer: format!(
            "nbdkit -t 1 memory {:.1} µs, its cache filter at best {best:.1} µs",
            one.micros(50.0)
        ),
        ratio: format!("{to_one:.2}, {to_filter:.2}"),
        met: Some(to_one <= 1.0 && to_filter <= 0.55),
        command: command("-q 1"),
    });
}

fn table(
    deep_servers: &[&Server],
    deep: &[Turns],
    single_servers: &[&Server],
    single: &[Turns],
) -> String {
    let mut text =
        "| server | QD | requests/s | median µs | 99 % µs | 99.9 % µs | server CPU µs | command |\n\
                    |---|---:|---:|---:|---:|---:|---:|---|\n"
            .to_owned();
    for (queue_depth, servers, turns) in [(32, deep_servers, deep), (1, single_servers, single)] {
        for (server, turns) in servers.iter().zip(turns) {
            let _ = writeln!(
                text,
                "| {} | {queue_depth} | {:.0} | {:.1} | {:.1} | {:.1} | {:.2} | `{}` |",
                server.name,
                turns.iops,
                turns.micros(50.0),
                turns.micros(99.0),
                turns.micros(99.9),
                turns.server_micros,
                server.command
            );
        }
    }
    text
}

/// Misses over a slow backing device, and hits beside them.
pub fn misses(options: &Options, results: &mut Results) -> Result<(), String> {
    let volume_bytes = 16 << 30;
    let files = make(options, "misses", 2 << 30, volume_bytes, 0)?;
    let delay = SLOW.as_micros().to_string();
    let serve = Serve::with("slow.nbd", &["--mode", "writethrough", "--demo-delay", &delay]);
    let ubcache = Server::ubcache(options, &files, &serve)?;
    let backing = format!("{}", files.backing.display());
    let slow = format!("rdelay={}ms", SLOW.as_millis());
    let filter = Server::nbdkit(
        options,
        "nbdkit cache",
        "filter.nbd",
        &["--filter=cache", "--filter=delay", "file", &backing, "cache-on-read=true", &slow],
    )?;
    // The last half is never hit but by chance.
    let cold = |load: Load| Load {
        offset_bytes: volume_bytes / 2,
        until: Until::Time(options.turn()),
        ..load
    };
    let found = in_turns(&[&ubcache, &filter], 1, cold)?;
    let [ours, theirs] = &found[..] else { unreachable!("two servers") };
    results.rows.push(Row {
        what: "misses over a backing device that takes 5 ms, QD 32: requests a second".to_owned(),
        goal: "≥ 6,000 (6,400 is the limit)".to_owned(),
        reached: format!("{:.0}", ours.iops),
        peer: format!("nbdkit's cache filter {:.0}", theirs.iops),
        ratio: format!("{:.1}", ours.iops / theirs.iops),
        met: Some(ours.iops >= 6000.0),
        command: "`ubcache serve --demo-delay 5000 …`, then `ubcache-bench nbd unix:SOCKET \
            --export data`"
            .to_owned(),
    });
    let mut kept = Vec::new();
    for server in [&ubcache, &filter] {
        server.fill(HOT_BYTES, 4096, 256)?;
        let hot = Load {
            span_bytes: Some(HOT_BYTES),
            until: Until::Time(options.turn()),
            ..server.load()
        };
        let mut shares = Vec::new();
        for seed in 0..options.turns() as u64 {
            let alone = run(&hot)?;
            let missing = Load { queue_depth: 8, seed: 100 + seed, ..cold(server.load()) };
            let beside = std::thread::scope(|scope| {
                let other = scope.spawn(|| run(&missing));
                let beside = run(&hot);
                other.join().expect("a load does not panic").and(beside)
            })?;
            shares.push(beside.iops() / alone.iops());
        }
        kept.push(super::median(shares));
    }
    results.rows.push(Row {
        what: "hits while 8 misses of 5 ms are in flight: share of the throughput alone".to_owned(),
        goal: "≥ 95 %".to_owned(),
        reached: format!("{:.1} %", kept[0] * 100.0),
        peer: format!("nbdkit's cache filter {:.1} %", kept[1] * 100.0),
        ratio: format!("{:.1}", kept[0] / kept[1]),
        met: Some(kept[0] >= 0.95),
        command: "the same, with `--working-set 16M` and beside it `--offset 8G -q 8`".to_owned(),
    });
    Ok(())
}
