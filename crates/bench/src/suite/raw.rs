//! The share of a device's speed that is left with ubcache in between: O_DIRECT on the same file
//! system, beside fio.

use std::path::Path;

use super::fio::{Job, Outcome, write_noise};
use super::servers::{Serve, Server, Turns, make};
use super::{Options, Results, Row, median};
use crate::nbd::load::{Load, Order, Until, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Stalls are looked for with a cache that is so many times as large as the volume.
const VOLUME_SHARE: u64 = 16;

/// Turns of ubcache and of fio.
fn in_turns(
    options: &Options,
    server: &Server,
    change: impl Fn(Load) -> Load,
    job: &Job,
    file: &Path,
) -> Result<(Turns, Vec<Outcome>), String> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..options.turns() {
        let load =
            Load { until: Until::Time(options.turn()), seed: turn as u64 + 1, ..server.load() };
        let outcome = run(&change(load))?;
        if outcome.errors > 0 {
            return Err(format!("{} requests failed", outcome.errors));
        }
        ours.push(outcome);
        theirs.push(job.run(file)?);
    }
    Ok((Turns::of(&ours), theirs))
}

fn middle(outcomes: &[Outcome], number: fn(&Outcome) -> f64) -> f64 {
    median(outcomes.iter().map(number).collect())
}

fn shown(job: &Job, outcomes: &[Outcome]) -> String {
    format!("`fio {} --filename=FILE`", job.command(outcomes[0].engine).join(" "))
}

/// Hits, synced writes, and long sequential requests.
pub fn hits_and_writes(options: &Options, results: &mut Results) -> Result<(), String> {
    let bytes = options.working_set_bytes();
    let file = options.directory.join("raw.img");
    write_noise(&file, bytes)?;
    // Dirty data must not fill the cache beyond the point where writes go to the backing device. A
    // device has no holes: filling those of a file costs the file system more than the writes
    // themselves.
    write_noise(&options.directory.join("raw-cache.img"), bytes * 8)?;
    let files = make(options, "raw", bytes * 8, bytes, bytes)?;
    let serve = Serve::with("raw.nbd", &["--mode", "writeback", "--set", "writeback_running=0"]);
    let server = Server::ubcache(options, &files, &serve)?;
    server.fill(bytes, MIB as u32, 8)?;
    let missed = server.misses()?;
    let span = Some(bytes);
    let job = |pattern, block_bytes, queue_depth, fdatasync| Job {
        pattern,
        block_bytes,
        queue_depth,
        fdatasync,
        time: options.turn(),
    };

    let random = job("randread", 4096, 32, false);
    let (ours, theirs) =
        in_turns(options, &server, |load| Load { span_bytes: span, ..load }, &random, &file)?;
    let raw = middle(&theirs, |outcome| outcome.iops);
    results.rows.push(Row {
        what: "read hits, 4 KiB, QD 32, O_DIRECT: requests a second".to_owned(),
        goal: "≥ 0.92 × raw".to_owned(),
        reached: format!("{:.0}", ours.iops),
        peer: format!("fio {} on a file beside it {raw:.0}", theirs[0].engine),
        ratio: format!("{:.2}", ours.iops / raw),
        met: Some(ours.iops >= 0.92 * raw),
        command: shown(&random, &theirs),
    });

    let long = |write_percent| {
        move |load| Load {
            block_bytes: MIB as u32,
            queue_depth: 8,
            order: Order::Sequential,
            write_percent,
            span_bytes: span,
            ..load
        }
    };
    let reads = job("read", MIB, 8, false);
    let (ours, theirs) = in_turns(options, &server, long(0), &reads, &file)?;
    let raw = middle(&theirs, |outcome| outcome.bandwidth);
    results.rows.push(Row {
        what: "sequential read hits, 1 MiB, QD 8: MB/s".to_owned(),
        goal: "≥ 0.9 × raw".to_owned(),
        reached: format!("{:.0}", ours.bandwidth / 1e6),
        peer: format!("fio {:.0}", raw / 1e6),
        ratio: format!("{:.2}", ours.bandwidth / raw),
        met: Some(ours.bandwidth >= 0.9 * raw),
        command: shown(&reads, &theirs),
    });
    server.only_hits_since(missed)?;

    let synced = job("randwrite", 4096, 1, true);
    let fua =
        |load| Load { queue_depth: 1, write_percent: 100, fua: true, span_bytes: span, ..load };
    let (ours, theirs) = in_turns(options, &server, fua, &synced, &file)?;
    let raw = middle(&theirs, |outcome| outcome.iops);
    results.rows.push(Row {
        what: "durable writes, 4 KiB with FUA, QD 1, writeback: requests a second".to_owned(),
        goal: "≥ 0.45 × raw writes with fdatasync".to_owned(),
        reached: format!("{:.0}", ours.iops),
        peer: format!("fio {raw:.0}"),
        ratio: format!("{:.2}", ours.iops / raw),
        met: Some(ours.iops >= 0.45 * raw),
        command: shown(&synced, &theirs),
    });

    let writes = job("write", MIB, 8, false);
    let (ours, theirs) = in_turns(options, &server, long(100), &writes, &file)?;
    let raw = middle(&theirs, |outcome| outcome.bandwidth);
    results.rows.push(Row {
        what: "sequential writes, 1 MiB, QD 8, writeback: MB/s".to_owned(),
        goal: "≥ 0.9 × raw".to_owned(),
        reached: format!("{:.0}", ours.bandwidth / 1e6),
        peer: format!("fio {:.0}", raw / 1e6),
        ratio: format!("{:.2}", ours.bandwidth / raw),
        met: Some(ours.bandwidth >= 0.9 * raw),
        command: shown(&writes, &theirs),
    });
    Ok(())
}

/// The longest that a client waits while garbage is collected, buckets are reused and dirty data is
/// written back.
pub fn stalls(options: &Options, results: &mut Results) -> Result<(), String> {
    let cache_bytes = cache_bytes(options)?;
    let file = options.directory.join("raw.img");
    write_noise(&file, GIB)?;
    // The files have no holes, as devices have none: what they cost a file system stops writes for
    // a sixth of a second.
    write_noise(&options.directory.join("stalls-cache.img"), cache_bytes)?;
    let volume_bytes = cache_bytes / VOLUME_SHARE;
    let files = make(options, "stalls", cache_bytes, volume_bytes, volume_bytes)?;
    // Most of the volume may not be dirty, so that writeback has to keep up.
    let serve = Serve::with("stalls.nbd", &["--mode", "writeback", "--set", "writeback_percent=2"]);
    let server = Server::ubcache(options, &files, &serve)?;
    // Each is looked at for half of the time in every turn.
    let turns = 3;
    let time = options.stall_time() / turns;
    let job =
        Job { pattern: "randwrite", block_bytes: 4096, queue_depth: 32, fdatasync: false, time };
    let (mut ours, mut theirs, mut requests) = (0.0_f64, 0.0_f64, 0);
    for seed in 0..u64::from(turns) {
        theirs = theirs.max(job.run(&file)?.longest_micros);
        let outcome =
            run(&Load { write_percent: 100, until: Until::Time(time), seed, ..server.load() })?;
        ours = ours.max(outcome.latency.max() as f64 / 1e3);
        requests += outcome.requests;
        if outcome.errors > 0 {
            return Err(format!("{} requests failed", outcome.errors));
        }
    }
    let beyond = (ours - theirs) / 1e3;
    results.rows.push(Row {
        what: format!(
            "longest wait of a client in {:.0} s of random writes, 4 KiB, QD 32, writeback, a set \
             of {} GiB: ms",
            options.stall_time().as_secs_f64(),
            cache_bytes >> 30
        ),
        goal: "≤ 50 ms beyond the raw device's own worst".to_owned(),
        reached: format!("{:.1} ({requests} writes)", ours / 1e3),
        peer: format!("fio {:.1}", theirs / 1e3),
        ratio: format!("{beyond:+.1} ms"),
        met: Some(beyond <= 50.0),
        command: "`ubcache serve --mode writeback --set writeback_percent=2 …`, then \
            `ubcache-bench nbd unix:SOCKET --export data -w 100`"
            .to_owned(),
    });
    Ok(())
}

/// 64 GiB if the file system has room for that, and less if not.
fn cache_bytes(options: &Options) -> Result<u64, String> {
    let output = std::process::Command::new("df")
        .args(["--output=avail", "-B1"])
        .arg(&options.directory)
        .output();
    let output = output.map_err(|error| format!("df: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let free: u64 = text.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let wanted = if options.quick { 4 } else { 64 };
    // The cache, the volume, the file that is written without a cache, and what others need
    // meanwhile.
    let room = free.saturating_sub(2 * GIB) / (VOLUME_SHARE + 1) * VOLUME_SHARE / GIB;
    if room < 2 {
        Err("there is no room for the files".to_owned())
    } else {
        Ok(room.min(wanted) * GIB)
    }
}
