//! Output of steps that run side by side, in blocks, and what is told at the end.

use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines of the output of a failed step that are shown again at the end.
const LAST_LINES: usize = 60;

/// See the module.
#[derive(Default)]
pub struct Report {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    skipped: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    /// Prints a line, never inside a block.
    pub fn say(&self, line: &str) {
        let _one = self.told();
        println!("{line}");
    }

    /// Keeps the line of a skipped test for the end.
    pub fn skipped(&self, line: &str) {
        self.told().skipped.push(line.to_owned());
    }

    /// Keeps a failure for the end.
    pub fn failed(&self, what: &str) {
        println!("xtask: FAILED: {what}");
        self.told().failed.push(what.to_owned());
    }

    /// Shows the whole output of a step.
    pub fn ended(&self, name: &str, output: &Output, time: Duration) {
        let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        let mut told = self.told();
        println!("{text}");
        println!("xtask: {name}: {}, {} s", output.status, time.as_secs());
        told.skipped.extend(text.lines().filter_map(of_skipped));
        if !output.status.success() {
            let why = failures(&text).join("\n    ");
            told.failed.push(format!("{name}: {}\n    {why}", output.status));
        }
    }

    /// Repeats what was skipped and what failed; `true` if nothing failed.
    pub fn end(self, time: Duration) -> bool {
        let Told { mut skipped, failed } =
            self.told.into_inner().unwrap_or_else(PoisonError::into_inner);
        skipped.sort();
        skipped.dedup();
        for line in &skipped {
            println!("xtask: {line}");
        }
        for what in &failed {
            println!("xtask: FAILED: {what}");
        }
        let verdict = if failed.is_empty() { "passed" } else { "failed" };
        println!("xtask: {verdict} in {} s, {} skipped", time.as_secs(), skipped.len());
        failed.is_empty()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_skipped(line: &str) -> Option<String> {
    line.find("SKIPPED: ").map(|at| line[at..].to_owned())
}

/// Lines that say why a step failed: panics of tests that were to pass, with what follows them,
/// and the list of failed tests. The last lines, if there are none.
fn failures(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let names: Vec<&str> = lines
        .iter()
        .rev()
        .skip_while(|line| !line.starts_with("test result: FAILED"))
        .take_while(|line| **line != "failures:")
        .filter_map(|line| line.strip_prefix("    "))
        .collect();
    let panicked =
        |line: &&str| names.iter().any(|name| line.contains(&format!("thread '{name}'")));
    let told = |(at, line): (usize, &&str)| {
        panicked(line).then(|| lines[at..lines.len().min(at + 12)].to_vec())
    };
    let mut why: Vec<&str> = lines.iter().enumerate().filter_map(told).flatten().collect();
    why.extend(&names);
    if why.is_empty() {
        why = lines[lines.len().saturating_sub(LAST_LINES)..].to_vec();
    }
    why
}

#[cfg(test)]
mod tests {
    use super::failures;

    #[test]
    fn a_failed_test_is_told_with_its_panic() {
        let text = "running 2 tests\nthread 'one' (7) panicked at a.rs:1:2:\nleft is right\n\
                    test one ... FAILED\ntest two ... ok\n\nfailures:\n\nfailures:\n    one\n\n\
                    test result: FAILED. 1 passed\n";
        let why = failures(text);
        assert_eq!(why.first(), Some(&"thread 'one' (7) panicked at a.rs:1:2:"));
        assert!(why.contains(&"left is right") && why.ends_with(&["one"]), "{why:?}");
    }

    #[test]
    fn a_step_without_tests_is_told_by_its_last_lines() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        assert_eq!(failures(&text).len(), super::LAST_LINES);
        assert_eq!(failures(&text).last(), Some(&"99"));
    }
}
