//! All tests. Programs of tests run side by side, because most of them wait for clients most of
//! the time, and beside them the simulator and the fuzz targets, which are built and run in
//! optimized form. Output comes in blocks, and what failed is named at the end.

mod programs;
mod report;

use std::process::{Command, Stdio};
use std::time::Instant;

use report::Report;

use super::{TOOLS, instructions};

/// Seeds of the simulator that every change has to pass. They reach every mark of the engine.
const SEEDS: &str = "0..2000";

/// Options of an optimized build that is only run here: link-time optimization takes minutes, and
/// a directory is shared with `cargo xtask instructions`.
pub const OPTIMIZED: [&str; 5] =
    ["--release", "--config", "profile.release.lto=\"off\"", "--target-dir", "target/without-lto"];

/// A step beside the programs of tests: its name, the arguments of cargo.
type Step = (&'static str, &'static [&'static [&'static str]]);

const STEPS: [Step; 3] = [
    (
        "the simulator, over many seeds",
        &[
            &["run"],
            &OPTIMIZED,
            &["-p", "ubcache-sim", "--bin", "ubcache-simulate", "--"],
            &["--seeds", SEEDS, "--jobs", "2", "--require-marks"],
        ],
    ),
    (
        "fuzz targets over their corpus, and over changed inputs",
        &[&["run"], &OPTIMIZED, &["-p", "ubcache-torture", "--", "fuzz", "--for", "15s"]],
    ),
    // In a directory of its own: nothing that is shipped is ever built with this feature.
    (
        "the simulator finds every mutant of the engine",
        &[
            &["test", "--release", "--config", "profile.release.lto=\"off\""],
            &["--target-dir", "target/mutants", "-p", "ubcache-sim", "--features", "mutants"],
            &["--test", "mutants", "--test", "rules", "--test", "bypass_write_race"],
            &["--test", "crash_at_every_write", "--", "--nocapture"],
        ],
    ),
];

/// Runs everything; `true` if all of it passed.
pub fn run(cargo: &str) -> bool {
    let begin = Instant::now();
    let report = Report::default();
    let programs = programs::build(cargo).unwrap_or_else(|why| {
        report.failed(&format!("tests can't be built: {why}"));
        Vec::new()
    });
    std::thread::scope(|scope| {
        scope.spawn(|| programs::run(&programs, &report));
        scope.spawn(|| beside(cargo, &report));
    });
    step("examples in documentation", cargo, &["test", "--workspace", "--doc"], &report);
    println!("xtask: instruction counts");
    match instructions::compare(cargo, false) {
        Some(instructions::Compared::Skipped(why)) => {
            report.skipped(&format!("SKIPPED: instruction counts: {why}"));
        }
        Some(instructions::Compared::Within) => {}
        None => report.failed("instruction counts"),
    }
    report.end(begin.elapsed())
}

fn beside(cargo: &str, report: &Report) {
    for (name, arguments) in STEPS {
        step(name, cargo, &arguments.concat(), report);
    }
}

/// Runs cargo, which builds what the step needs, and shows its output at the end.
fn step(name: &str, cargo: &str, arguments: &[&str], report: &Report) {
    report.say(&format!("xtask: begins: {name}: cargo {}", arguments.join(" ")));
    let mut command = Command::new(cargo);
    command.args(arguments);
    carried_out(name, command, report);
}

/// Runs a command to its end, with the tools of this checkout, and reports it.
fn carried_out(name: &str, mut command: Command, report: &Report) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::env::current_dir().unwrap_or_default().join(TOOLS).join("bin");
    let path = std::env::join_paths(std::env::split_paths(&path).chain([tools])).unwrap_or(path);
    let begin = Instant::now();
    match command.env("PATH", path).stdin(Stdio::null()).output() {
        Ok(output) => report.ended(name, &output, begin.elapsed()),
        Err(why) => report.failed(&format!("{name}: can't be run: {why}")),
    }
}
