//! The engine alone: processor time, instructions, memory, and what it writes.

use std::fmt::Write;

use ubcache_engine::{SetOptions, Tuning};

use super::{Options, Results, Row, Table};
use crate::amplification::{Sync, amplification};
use crate::engine::{Bench, Cost, Load, Memory};
use crate::instructions;

const GIB: u64 = 1 << 30;
const MIB: f64 = (1 << 20) as f64;

/// Processor time and instructions.
pub fn engine(options: &Options, results: &mut Results) -> Result<(), String> {
    let failed = |error: ubcache_engine::EngineError| error.to_string();
    let requests = if options.quick { 1_000_000 } else { 4_000_000 };
    let mut costs: Vec<Cost> = Vec::new();
    let mut bench = Bench::new(Load::Hit, GIB, SetOptions::default()).map_err(failed)?;
    costs.push(bench.measure(requests, 20));
    bench.only_hot();
    costs.push(bench.measure(requests, 20));
    drop(bench);
    let others = if options.quick { GIB / 4 } else { GIB };
    for load in [Load::Write, Load::WriteClean, Load::WriteThrough, Load::Miss] {
        let mut bench = Bench::new(load, others, SetOptions::default()).map_err(failed)?;
        costs.push(bench.measure(requests / 4, 20));
    }
    let counted = instructions::count(Load::Hit, 64 << 20, 20_000, &[], None);
    let [hit, hot, write, ..] = &costs[..] else { unreachable!("six loads") };
    let command = |load: Load| format!("`ubcache-bench engine --load {load}`");
    let within = hit.nanos_best <= 350.0 && hot.nanos_best <= 180.0;
    results.rows.push(Row {
        what:
            "engine over devices that do nothing, read hit, 4 KiB, 1 GiB cached / 16 MiB of it: CPU"
                .to_owned(),
        goal: "≤ 350 / 180 ns".to_owned(),
        reached: format!("{:.0} / {:.0} ns", hit.nanos_best, hot.nanos_best),
        peer: "Open CAS Framework 682 / 359 ns (other machine)".to_owned(),
        ratio: format!("{:.2} / {:.2}", hit.nanos_best / 682.0, hot.nanos_best / 359.0),
        met: Some(within),
        command: command(Load::Hit),
    });
    results.rows.push(Row {
        what: "the same: instructions".to_owned(),
        goal: "≤ 2,000".to_owned(),
        reached: counted.as_ref().map_or_else(Clone::clone, |count| format!("{count:.0}")),
        peer: "–".to_owned(),
        ratio: "–".to_owned(),
        met: counted.ok().map(|count| count <= 2000.0),
        command: format!("{} `--instructions`", command(Load::Hit)),
    });
    results.rows.push(Row {
        what: "the same: steady writeback write, share of the journal included: CPU".to_owned(),
        goal: "≤ 620 ns".to_owned(),
        reached: format!("{:.0} ns", write.nanos_best),
        peer: "Open CAS Framework 1036 ns (other machine)".to_owned(),
        ratio: format!("{:.2}", write.nanos_best / 1036.0),
        met: Some(write.nanos_best <= 620.0),
        command: command(Load::Write),
    });
    let mut text = "| load | ns | ns, best slice | allocations | bytes allocated | cache writes | \
        bytes to the cache | backing writes |\n\
                    |---|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for cost in &costs {
        let each = |number: u64| number as f64 / cost.requests as f64;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.3} | {:.0} | {:.3} |",
            cost.load,
            cost.nanos,
            cost.nanos_best,
            cost.allocations,
            cost.allocated_bytes,
            each(cost.cache.writes),
            each(cost.cache.written_bytes),
            each(cost.backing.writes)
        );
    }
    results.tables.push(Table { section: "engine", text });
    Ok(())
}

/// Measures the memory of a set.
pub fn memory(_: &Options, results: &mut Results) -> Result<(), String> {
    let failed = |error: ubcache_engine::EngineError| error.to_string();
    let command = "`ubcache-bench engine --memory`".to_owned();
    let small = Memory::measure(GIB, 4 << 10, SetOptions::default()).map_err(failed)?;
    let per_gib = small.bytes_per_gib() / MIB;
    results.rows.push(Row {
        what: "memory for metadata, 4 KiB random (the worst case), everything resident: MiB for \
            every cached GiB"
            .to_owned(),
        goal: "≤ 6".to_owned(),
        reached: format!("{per_gib:.2}, and {:.1} in any case", small.empty_bytes as f64 / MIB),
        peer: "Open CAS Framework 10.3, and 18 in any case".to_owned(),
        ratio: format!("{:.2}", per_gib / 10.3),
        met: Some(per_gib <= 6.0),
        command: command.clone(),
    });
    let large = Memory::measure(16 * GIB, 64 << 10, SetOptions::default()).map_err(failed)?;
    let per_gib = large.bytes_per_gib() / MIB;
    results.rows.push(Row {
        what: "memory for metadata, extents of 64 KiB: MiB for every cached GiB".to_owned(),
        goal: "≤ 0.5".to_owned(),
        reached: format!("{per_gib:.2}"),
        peer: "–".to_owned(),
        ratio: "–".to_owned(),
        met: Some(per_gib <= 0.5),
        command,
    });
    // A quarter of the extents fit.
    let extents = (GIB / 4096 / 4) as usize;
    let tuning = Tuning { extents_in_memory_max: extents, ..Tuning::default() };
    let limited = SetOptions { tuning, ..SetOptions::default() };
    let (held, mut bench) = Memory::measure_for_hits(GIB, 4 << 10, limited).map_err(failed)?;
    let cost = bench.measure(100_000, 10);
    let share = held.bytes_per_gib() / small.bytes_per_gib();
    results.rows.push(Row {
        what: format!(
            "the same with 4 KiB random and a limit of {extents} extents in memory, a \
            quarter of what is cached"
        ),
        goal: "obeyed, with a stated cost".to_owned(),
        reached: format!(
            "{:.2} MiB for every GiB; a random hit reads {:.2} times from the cache device and \
             takes {:.0} ns",
            held.bytes_per_gib() / MIB,
            cost.cache.reads as f64 / cost.requests as f64,
            cost.nanos_best
        ),
        peer: "without the limit".to_owned(),
        ratio: format!("{share:.2}"),
        met: Some(share < 0.5),
        command: format!("`ubcache-bench engine --load hit --extents-in-memory {extents}`"),
    });
    Ok(())
}

/// Bytes that reach the cache device for a byte of a client.
pub fn written_bytes(options: &Options, results: &mut Results) -> Result<(), String> {
    let requests = if options.quick { 300_000 } else { 2_000_000 };
    let working_set = if options.quick { GIB / 4 } else { GIB };
    let mut found = Vec::new();
    for sync in [Sync::Never, Sync::FlushEvery(32), Sync::EveryWrite] {
        found.push(amplification(sync, working_set, requests).map_err(|error| error.to_string())?);
    }
    results.rows.push(Row {
        what: "bytes written to the cache device for a byte of the client, 4 KiB random writeback \
            writes, QD 32: no \
               flush / one after 32 writes / every write durable"
            .to_owned(),
        goal: "≤ 1.1 / ≤ 1.3 / ≤ 2.2".to_owned(),
        reached: format!("{:.3} / {:.3} / {:.3}", found[0], found[1], found[2]),
        peer: "–".to_owned(),
        ratio: "–".to_owned(),
        met: Some(found[0] <= 1.1 && found[1] <= 1.3 && found[2] <= 2.2),
        command: "`ubcache-bench suite --only written`".to_owned(),
    });
    Ok(())
}
