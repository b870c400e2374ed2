//! `ubcache check` of a large set without a comparison with its disk: all of the time goes to
//! metadata.
//!
//! The set is made as for [`super::restart`], but zeroes in its metadata are written too: nothing
//! is read faster than from a device.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use ubcache_format::Geometry;

use super::fio::{Job, write_noise};
use super::restart::{full_set, write_kept};
use super::{Options, Results, Row, median};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const BUCKET_BYTES: u64 = 512 << 10;
const NODE_BYTES: u64 = 256 << 10;

/// Bytes of metadata in a second, beside what the device gives when it is read from one end to the
/// other.
pub fn metadata_rate(options: &Options, results: &mut Results) -> Result<(), String> {
    let cache_bytes = if options.quick { 8 * GIB } else { 32 * GIB };
    let cache = options.directory.join("check-cache.img");
    let rig = full_set(cache_bytes)?;
    write_kept(&cache, &rig.cache, false)?;
    let journal_buckets =
        u64::from(Geometry::default_journal_buckets((cache_bytes / BUCKET_BYTES) as u32));
    let mut journal_bytes = 0;
    rig.cache.each_kept(|at, content| {
        let written = (1..=journal_buckets).contains(&(at / BUCKET_BYTES));
        journal_bytes += if written { content.len() as u64 } else { 0 };
    });
    drop(rig);
    let raw = options.directory.join("raw.img");
    write_noise(&raw, GIB)?;
    let job = Job {
        pattern: "read",
        block_bytes: MIB,
        queue_depth: 8,
        fdatasync: false,
        time: options.turn(),
    };
    let (mut seconds, mut processor, mut bandwidths, mut counted) =
        (Vec::new(), Vec::new(), Vec::new(), (0, 0));
    let mut engine = "";
    for _ in 0..options.turns() * 2 {
        let (began, before) = (Instant::now(), seconds_of_children());
        let output = Command::new(&options.ubcache).args(["check", "--json"]).arg(&cache).output();
        seconds.push(began.elapsed().as_secs_f64());
        processor.push(seconds_of_children() - before);
        let output = output.map_err(|error| format!("{}: {error}", options.ubcache.display()))?;
        counted = counts(&output.stdout)
            .filter(|_| output.status.success())
            .ok_or_else(|| format!("ubcache check: {}", String::from_utf8_lossy(&output.stderr)))?;
        let outcome = job.run(&raw)?;
        bandwidths.push(outcome.bandwidth);
        engine = outcome.engine;
    }
    let (nodes, extents) = counted;
    // Include the part of the journal that was never written: it is read as well, but takes no
    // time.
    let bytes = nodes * NODE_BYTES + journal_bytes;
    let rate = bytes as f64 / median(seconds.clone());
    let raw = median(bandwidths);
    results.rows.push(Row {
        what: format!(
            "`check` of {} GiB in {:.1} million pieces, {} MiB of metadata: MB/s over all of its \
             time",
            cache_bytes / GIB,
            extents as f64 / 1e6,
            bytes / MIB,
        ),
        goal: "≥ 0.8 × raw".to_owned(),
        reached: format!(
            "{:.0} ({:.3} s, {:.2} s of processor time)",
            rate / 1e6,
            median(seconds),
            median(processor)
        ),
        peer: format!("fio {:.0}", raw / 1e6),
        ratio: format!("{:.2}", rate / raw),
        met: Some(rate >= 0.8 * raw),
        command: format!(
            "`ubcache check CACHE`, beside `fio {} --filename=FILE`",
            job.command(engine).join(" ")
        ),
    });
    Ok(())
}

/// Processor time of all programs that were run and have ended, to a hundredth of a second; 0 if
/// the kernel does not report it.
fn seconds_of_children() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have anything in it: fields 16 and 17 of proc_pid_stat(5).
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(13).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Nodes and extents of a report.
fn counts(report: &[u8]) -> Option<(u64, u64)> {
    let report: Value = serde_json::from_slice(report).ok()?;
    let stats = report.get("stats")?;
    Some((stats.get("nodes")?.as_u64()?, stats.get("extents")?.as_u64()?))
}
