//! Sleeps of the engine. A task that waits for something waits for its event: a loop that sleeps
//! and looks again is late, and turns for nothing. A sleep whose point is time stands below with
//! its reason.

mod support;

use std::fs;
use std::path::Path;

use support::sources;

/// File, the line that sleeps, and the reason.
const SLEEPS: &[(&str, &str, &str)] = &[
    (
        "journal/write.rs",
        "first(wake, self.context.env.sleep_until(at)).await;",
        "the delay of the journal: records of some time share an entry",
    ),
    (
        "alloc/allocator.rs",
        "self.context.env.sleep(ROUND_IN_VAIN).await;",
        "callers wait for a number of rounds, so a round takes a time",
    ),
    (
        "alloc/allocator.rs",
        "self.context.env.sleep(PAUSE_AFTER_ERROR).await;",
        "after an error: the cache device needs a moment",
    ),
    (
        "alloc/allocator.rs",
        "if let Either::Right(()) = first(event, self.context.env.sleep(HELP_PERIOD)).await",
        "help of writeback and flushes is asked for over a time",
    ),
    (
        "alloc/allocator.rs",
        "first(event, self.context.env.sleep_until(at)).await;",
        "buckets without space are tried again at a period (N3)",
    ),
    (
        "index/journal_reclaim.rs",
        "self.context.env.sleep(PAUSE_AFTER_ERROR).await;",
        "after an error: the cache device needs a moment",
    ),
    (
        "index/node_write.rs",
        "self.context.env.sleep(PAUSE_AFTER_ERROR).await;",
        "after an error: the cache device needs a moment",
    ),
    (
        "index/node_write.rs",
        "let tick = self.context.env.sleep(LOOK_PERIOD);",
        "a leaf is written when it is old enough",
    ),
    (
        "gc/pass.rs",
        "self.context.env.sleep(PAUSE_AFTER_ERROR).await;",
        "after an error: the cache device needs a moment",
    ),
    (
        "gc/pass.rs",
        "first(wake, self.context.env.sleep(LOOK_PERIOD)).await;",
        "a pass is due by the bytes that were written, and no write stops to compare them",
    ),
    (
        "counted_device.rs",
        "self.env.sleep(MEMORY_RETRY_INTERVAL).await;",
        "the system does not say when it has memory again",
    ),
    (
        "counted_device/successor.rs",
        "match first(request, self.env.sleep(SUCCESSOR_PATIENCE)).await {",
        "clients wait no longer than that for the disk that their volume moves to",
    ),
    (
        "set/smaller_cache.rs",
        "set.context.env.sleep(PAUSE).await;",
        "a bucket beyond the end is in use, or there is no room: dropping a pin wakes nobody, and \
         writeback and evictions make room",
    ),
    (
        "set/move_copy.rs",
        "context.env.sleep(MEMORY_RETRY_INTERVAL).await;",
        "the system does not say when it has memory again",
    ),
    (
        "set/move_copy.rs",
        "first(woken, env.sleep(wait)).await;",
        "a limit of bytes a second is a wait; another limit and the end of the move wake it",
    ),
    (
        "request/read/ahead.rs",
        "let expiry = self.context.env.sleep(ahead.unused_after);",
        "what was read ahead and is not asked for is let go after a time",
    ),
    (
        "request/publish.rs",
        "self.context.env.sleep(PAUSE_AFTER_ERROR),",
        "after an error: the backing device needs a moment, or an operator",
    ),
    (
        "request/publish.rs",
        "first(wake, self.context.env.sleep(pause)).await;",
        "a flush is due when the last one is old enough",
    ),
    (
        "scrub/pass.rs",
        "first(woken, self.context.env.sleep(wait)).await;",
        "the pace of a scrub, which the administrator sets",
    ),
    (
        "writeback/task.rs",
        "first(wake, self.context.env.sleep(period)).await;",
        "the rate of writeback follows the dirty data at a period that the administrator sets",
    ),
    (
        "writeback/task.rs",
        "first(wake, self.context.env.sleep(over.since(now))).await;",
        "the delay of writeback, which the administrator sets",
    ),
    (
        "writeback/task.rs",
        "self.rest_until(self.context.env.sleep(span)).await;",
        "the pace and the delay of writeback, and the pause after an error",
    ),
];

#[test]
fn a_task_that_waits_waits_for_an_event() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/src");
    let mut files = Vec::new();
    sources(&engine, &mut files);
    assert!(files.len() > 100, "{} files of the engine", files.len());
    let mut sleeps = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        let path = file.strip_prefix(&engine).expect("it is in there").to_string_lossy();
        let calls =
            |line: &&str| [".sleep(", ".sleep_until("].iter().any(|call| line.contains(call));
        let lines = text.lines().map(str::trim).filter(calls);
        sleeps.extend(lines.map(|line| (path.to_string(), line.to_owned())));
    }
    let mut wrong = Vec::new();
    for (path, line) in &sleeps {
        if !SLEEPS.iter().any(|(file, sleep, _)| file == path && sleep == line) {
            wrong.push(format!("{path} sleeps, and the list has no reason for it: {line}"));
        }
    }
    for (file, sleep, _) in SLEEPS {
        let times = sleeps.iter().filter(|(path, line)| file == path && sleep == line).count();
        if times != 1 {
            wrong.push(format!("{file} sleeps {times} times in this way, expected once: {sleep}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
