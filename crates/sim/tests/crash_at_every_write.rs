//! Small scripted runs of the real engine, with a power failure at every write.
//!
//! Each scenario runs once. Right before and right after each write of each disk, whatever a power
//! failure could leave is recovered from: all outcomes where they are few, a sample where they are
//! many. What must hold then is what the oracle, the offline check and the engine's own assertions
//! say.

use ubcache_engine::Rules;
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::Plan;
use ubcache_sim::runner::{CrashOptions, CrashReport, crash_at_every_write};

/// All outcomes up to 2^6; more are sampled.
const OPTIONS: CrashOptions = CrashOptions { first_start: false, outcomes_max: 64, samples: 8 };

/// Every scenario runs with each of these schedules, on devices with blocks of 512 bytes and of 4
/// KiB. With 512 bytes every sector of a write survives or not on its own.
const SCHEDULES: [&str; 4] = ["uniform", "fifo", "ranks", "queues"];
const BLOCKS: [u32; 2] = [1, 8];

const BYPASS: &str = "
    at 0 +0us set v0 writeback_running 0
    c0 v0 read 0+8
    c0 v0 sleep 100000us
    c0 v0 flush
    at 4 +0us set v0 cache_mode writearound
    c0 v0 sleep 100000us
    c0 v0 write 0+8
    c0 v0 sleep 100000us
    at 7 +0us set v0 cache_mode writeback
    c0 v0 sleep 100000us
    c0 v0 write 0+8
    c0 v0 flush
    at 10 +0us set v0 cache_mode writearound
    c0 v0 sleep 100000us
    c0 v0 write 0+8
    c0 v0 flush";

const EVICTION: &str = "
    c0 v0 read 0+8
    c0 v0 sleep 100000us
    c0 v0 flush
    at 3 +0us evict
    c0 v0 sleep 100000us
    c0 v0 write 0+8
    c0 v0 sleep 100000us
    at 6 +0us evict
    c0 v0 read 0+16
    c0 v0 sleep 100000us
    c0 v0 flush";

const WRITEBACK: &str = "
    at 0 +0us set v0 writeback_percent 0
    at 0 +0us set v0 writeback_delay 0
    c0 v0 write 0+8
    c0 v0 write 16+8
    c0 v0 write 24+8
    c0 v0 flush
    c0 v0 sleep 3000000us
    c0 v0 write 16+8
    c0 v0 sleep 3000000us
    c0 v0 flush";

const FLUSH: &str = "
    c0 v0 write 0+8
    c0 v0 flush
    c0 v0 write 0+8
    c0 v0 write 8+8 fua
    c0 v0 write 16+8
    c0 v0 flush";

const DISCARD: &str = "
    c0 v0 write 0+8
    c0 v0 read 8+16
    c0 v0 sleep 100000us
    c0 v0 flush
    c0 v0 sleep 100000us
    c0 v0 discard 0+24
    c0 v0 flush
    c0 v0 zeroes 0+16
    c0 v0 flush";

const RECOVERY: &str = "
    c0 v0 write 0+8 fua
    c0 v0 write 8+8
    c0 v0 read 32+8
    c0 v0 flush
    c1 v0 write 0+16
    c1 v0 write 16+8 fua
    at 6 +30us power-failure
    at 6 +30us host-restart
    c0 v0 write 0+8
    c0 v0 flush";

const CLIENTS: &str = "
    c0 v0 write 0+8
    c1 v0 write 0+16
    c2 v0 read 0+16
    c0 v0 flush
    c1 v0 read 8+8
    c2 v0 write 8+8 fua
    at 4 +0us set v0 cache_mode writearound
    c0 v0 write 0+8
    c1 v0 write 8+8
    c2 v0 discard 0+8
    c1 v0 flush
    at 9 +200us set v0 cache_mode writeback
    c0 v0 write 0+16
    c2 v0 write 8+8
    c0 v0 flush";

const UNFLUSHED: &str = "
    c0 v0 write 0+8
    c0 v0 read 0+8
    c0 v0 sleep 1000000us
    c0 v0 write 64+8
    c0 v0 sleep 6000000us
    c0 v0 write 0+8
";

const RESTART: &str = "
    c0 v0 write 0+8
    at 1 +1000us host-restart
    c0 v0 sleep 1000000us
    c0 v0 read 0+8
    c0 v0 sleep 1000000us
    c0 v0 write 64+8
    c0 v0 flush
";

const DETACH: &str = "
    at 0 +0us set v0 writeback_running 0
    c0 v0 write 0+8
    c0 v0 read 16+8
    c0 v0 write 8+8
    at 3 +1000us set v0 detach 1
    c0 v0 sleep 3000000us
    c0 v0 write 0+8
    c0 v0 flush
    c0 v0 write 16+8
    at 7 +1000us set v0 attach 1
    c0 v0 sleep 1000000us
    c0 v0 read 0+8
    c0 v0 write 8+8
    c0 v0 flush
";

const MOVE: &str = "
    at 0 +0us set v0 writeback_percent 0
    at 0 +0us set v0 writeback_delay 0
    c0 v0 write 0+8
    c0 v0 flush
    c0 v0 write 16+8
    at 3 +0us set v0 move 1
    c0 v0 write 8+8
    c1 v0 write 64+16
    c0 v0 read 0+16
    c0 v0 discard 32+8
    c1 v0 zeroes 96+8
    c0 v0 write 120+8
    c0 v0 flush
    c0 v0 sleep 3000000us
    c0 v0 write 0+8
    c0 v0 flush
    at 13 +0us set v0 move 1
    c0 v0 write 24+8
    c0 v0 sleep 3000000us
    c0 v0 flush
";

/// A cache and a volume of 64 KiB, on disks with volatile caches. The script has a line for every
/// operation and every command, as in a plan.
fn plan(mode: &str, node_keys: u32, script: &str) -> Plan {
    let world = "ubcache-plan 1\nworld seed=1 policy=uniform poll-cost-ns=500 timer-slop-ns=0 \
        last-crash=0\n";
    let cache = format!(
        "cache bucket=16 block=1 buckets=513 node-keys={node_keys} extents=500 lazy=0 volatile=1 \
         discard=0 profile=fast\n"
    );
    let volume = format!(
        "volume sectors=128 mode={mode} initial=1000 volatile=1 discard=1 block=1 profile=fast\n"
    );
    let (controls, ops): (Vec<&str>, Vec<&str>) = script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .partition(|line| line.starts_with("at "));
    let text = format!("{world}{cache}{volume}{}\n{}\n", controls.join("\n"), ops.join("\n"));
    text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The plan with every schedule and every size of a block.
fn worlds(plan: &Plan) -> impl Iterator<Item = Plan> {
    (1..).zip(SCHEDULES).flat_map(move |(number, schedule)| {
        BLOCKS.map(|block| {
            let mut plan = plan.clone();
            plan.seed = number;
            plan.policy = schedule.parse().expect("it is the name of a policy");
            plan.cache.block_sectors = block;
            plan.volumes[0].block_sectors = block;
            plan
        })
    })
}

/// Runs the scenario; it has to reach the marks, or it does not test what it says.
fn scenario(name: &str, plan: &Plan, options: CrashOptions, marks: &[&str]) {
    let mut total = CrashReport::default();
    for plan in worlds(plan) {
        let report = crash_at_every_write::<CacheSystem>(&plan, options, Rules::default());
        if let Some(violation) = &report.violation {
            panic!("{name}: {}\n{}\nthe plan:\n{plan}", violation.kind, violation.report);
        }
        assert!(report.moments > report.writes, "{name}: before and after each write: {report:?}");
        total.writes += report.writes;
        total.moments += report.moments;
        total.exhausted += report.exhausted;
        total.crashes += report.crashes;
        report
            .marks
            .iter()
            .for_each(|(mark, count)| *total.marks.entry(mark).or_insert(0) += count);
    }
    println!(
        "{name}: {} writes, {} moments ({} with every outcome), {} crashes",
        total.writes, total.moments, total.exhausted, total.crashes
    );
    for mark in marks {
        assert!(total.marks.contains_key(mark), "{name} does not reach {mark}: {:?}", total.marks);
    }
}

#[test]
fn first_run_and_attach() {
    let options = CrashOptions { first_start: true, ..OPTIONS };
    scenario(
        "first run, attach",
        &plan("writeback", 0, "c0 v0 write 0+8"),
        options,
        &["attached_anew"],
    );
}

#[test]
fn flush_and_fua() {
    for mode in ["writeback", "writethrough", "writearound"] {
        scenario(&format!("flush and FUA, {mode}"), &plan(mode, 0, FLUSH), OPTIONS, &[]);
    }
}

#[test]
fn bypass_write_over_clean_and_dirty() {
    scenario(
        "bypass write",
        &plan("writethrough", 0, BYPASS),
        OPTIONS,
        &["durable_invalidation", "written_back_for_write"],
    );
}

#[test]
fn mode_switches() {
    let script = "
        c0 v0 write 0+8
        at 2 +0us set v0 cache_mode writethrough
        c0 v0 sleep 100000us
        c0 v0 write 0+8
        c0 v0 flush
        at 5 +0us set v0 cache_mode none
        c0 v0 sleep 100000us
        c0 v0 write 0+8
        c0 v0 flush";
    scenario("mode switch", &plan("writeback", 0, script), OPTIONS, &[]);
}

#[test]
fn writeback_batches() {
    scenario("writeback", &plan("writeback", 0, WRITEBACK), OPTIONS, &["marked_clean"]);
}

#[test]
fn discard_over_clean_and_dirty() {
    scenario("discard", &plan("writeback", 0, DISCARD), OPTIONS, &["durable_invalidation"]);
}

#[test]
fn clean_stop_and_start() {
    let script = "
        c0 v0 write 0+8
        c0 v0 read 16+8
        at 2 +1000us restart
        c0 v0 write 0+8
        c0 v0 flush";
    scenario("clean stop", &plan("writeback", 0, script), OPTIONS, &[]);
}

/// The chain of the larger cache has an element more.
#[test]
fn cache_that_grows() {
    let script = "
        c0 v0 write 0+8
        c0 v0 read 16+8
        at 2 +1000us grow-cache 64
        at 2 +1000us restart
        c0 v0 write 0+8
        c0 v0 write 8+8 fua
        c0 v0 flush";
    let mut plan = plan("writeback", 0, script);
    plan.cache.buckets = 2700;
    scenario("cache that grows", &plan, OPTIONS, &["cache_grown"]);
}

/// Dirty data, clean data, the root and the volume table are beyond the new end: buckets are taken
/// from the lowest on, and those of the start go to the first chain.
#[test]
fn cache_that_shrinks() {
    let script = "
        at 0 +0us set v0 writeback_running 0
        c0 v0 write 0+8
        c0 v0 read 16+8
        at 2 +1000us shrink-cache 20
        c0 v0 write 8+8
        c0 v0 write 0+8 fua
        c0 v0 flush
        at 5 +20000us restart
        c0 v0 read 0+32
        c0 v0 write 0+8 fua";
    let mut plan = plan("writeback", 0, script);
    plan.cache.buckets = 540;
    scenario("cache that shrinks", &plan, OPTIONS, &["cache_shrunk"]);
}

#[test]
fn prio_chains_and_garbage_collection() {
    let script = "
        c0 v0 write 0+8
        c0 v0 write 8+8
        c0 v0 write 0+8 fua
        at 3 +1000us gc
        c0 v0 sleep 1000000us
        c0 v0 write 8+8 fua
        at 5 +1000us evict
        c0 v0 sleep 1000000us
        c0 v0 read 64+8
        c0 v0 flush";
    scenario("prio chain, gc", &plan("writeback", 0, script), OPTIONS, &["gc_pass", "prio_write"]);
}

#[test]
fn eviction_and_reuse() {
    scenario("eviction", &plan("writearound", 0, EVICTION), OPTIONS, &["prio_write"]);
}

#[test]
fn splits_of_the_root() {
    let mut script = String::new();
    for at in 0..12 {
        script += &format!("c0 v0 write {}+8\n", at * 7 % 16 * 8);
    }
    script += "c0 v0 flush\nat 13 +1000us restart\nc0 v0 write 0+8\nc0 v0 flush\n";
    scenario("split of the root", &plan("writeback", 4, &script), OPTIONS, &["root_split"]);
}

#[test]
fn wraps_of_the_journal() {
    let mut script = String::new();
    for round in 0..40 {
        script += &format!("c0 v0 write {}+8 fua\n", round % 4 * 8);
    }
    scenario(
        "journal",
        &plan("writeback", 4, &script),
        OPTIONS,
        &["journal_reclaim", "journal_full"],
    );
}

/// Data that is read back before it is flushed is not in the index when the backing device loses
/// it.
#[test]
fn copies_of_unflushed_data() {
    scenario("un-flushed data", &plan("writearound", 0, UNFLUSHED), OPTIONS, &[]);
    scenario("un-flushed data, writethrough", &plan("writethrough", 0, UNFLUSHED), OPTIONS, &[]);
}

/// After a host restart the backing device holds un-flushed data without a record of it.
#[test]
fn host_restart() {
    scenario("host restart", &plan("writearound", 0, RESTART), OPTIONS, &[]);
    scenario("host restart, writeback", &plan("writeback", 0, RESTART), OPTIONS, &[]);
}

#[test]
fn detach_and_attach() {
    scenario(
        "detach, attach",
        &plan("writeback", 0, DETACH),
        OPTIONS,
        &["detached", "attached_again"],
    );
}

/// The start after a power failure is crashed as well, at every write of the recovery.
#[test]
fn recovery() {
    scenario(
        "recovery, writeback",
        &plan("writeback", 4, RECOVERY),
        OPTIONS,
        &["journal_replayed"],
    );
    scenario("recovery, writethrough", &plan("writethrough", 4, RECOVERY), OPTIONS, &[]);
}

/// Three clients on the same sectors: writes in flight over each other, fills, and a flush among
/// them.
#[test]
fn clients_beside_each_other() {
    for mode in ["writeback", "writethrough"] {
        scenario(&format!("three clients, {mode}"), &plan(mode, 0, CLIENTS), OPTIONS, &[]);
    }
}

/// A volume moves to another disk, and back: a crash leaves one of them that a start takes.
#[test]
fn move_to_another_disk() {
    for mode in ["writeback", "writethrough"] {
        let marks = &["volume_moved"];
        scenario(&format!("a move, {mode}"), &plan(mode, 0, MOVE), OPTIONS, marks);
    }
}

/// The scenarios find rules that are broken on purpose.
#[cfg(feature = "mutants")]
#[test]
fn crashes_find_broken_rules() {
    use ubcache_engine::Mutant;
    let plans = [
        plan("writethrough", 0, BYPASS),
        plan("writearound", 0, EVICTION),
        plan("writeback", 0, WRITEBACK),
        plan("writeback", 0, FLUSH),
        plan("writethrough", 0, FLUSH),
        plan("writeback", 0, DISCARD),
        plan("writeback", 4, RECOVERY),
        plan("writeback", 0, CLIENTS),
        plan("writearound", 0, UNFLUSHED),
        plan("writearound", 0, RESTART),
        plan("writethrough", 0, MOVE),
    ];
    let find = |mutant: Mutant| {
        plans.iter().flat_map(worlds).find_map(|plan| {
            crash_at_every_write::<CacheSystem>(&plan, OPTIONS, mutant.into()).violation
        })
    };
    for mutant in [
        Mutant::InvalidateParallel,
        Mutant::InvalidateAfter,
        Mutant::InvalidateBoth,
        Mutant::InvalidateNotDurable,
        Mutant::DiscardNotDurable,
        Mutant::BypassDropsDirty,
        Mutant::NoUnflushedTracking,
        Mutant::FlushSkipsBacking,
        Mutant::FlushSkipsJournal,
        Mutant::FuaSkipsJournal,
        Mutant::FuaNotPassedOn,
        Mutant::NoFlushAtAttach,
        Mutant::DirtyKeyBeforeData,
        Mutant::CleanWithoutBackingFlush,
        Mutant::WritebackBeforeDurableDirty,
        Mutant::JournalWithoutPreflush,
        Mutant::JournalLetsGoEarly,
        Mutant::ReplaySkipsLastEntry,
        Mutant::ReplaySkipsRemovals,
        Mutant::ChainNotNamed,
        Mutant::MoveWritesOne,
        Mutant::MoveUnflushed,
        Mutant::MoveUndecided,
    ] {
        let violation = find(mutant).unwrap_or_else(|| panic!("{} is not found", mutant.name()));
        println!("{}: {}", mutant.name(), violation.kind);
    }
}
