//! Instructions that the engine needs for a request, under callgrind, against a file that is
//! checked in.
//!
//! Counts do not depend on the machine or on what else it does, but they do on the compiler: if
//! that is another one, nothing is compared.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::suite::OPTIMIZED;

const LOADS: &[&str] =
    &["hit", "hot-hit", "ublk-hit", "miss", "write", "write-clean", "write-through"];
/// Loads of frontends, by command of `ubcache-bench`, and requests at a time: vhost-user-blk
/// without an engine, and NBD with one.
const FRONTENDS: [(&str, &str, &str); 4] = [
    ("guest-hit", "guest", "1"),
    ("guest-hits", "guest", "32"),
    ("nbd-hit", "served", "1"),
    ("nbd-hits", "served", "32"),
];
/// A count may differ by this share from the one in the file.
const TOLERANCE: f64 = 0.02;

/// Result of a comparison.
pub enum Compared {
    /// All counts are what they were.
    Within,
    /// No comparison was possible, and the reason.
    Skipped(String),
}

fn file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt"))
}

/// Counts and compares, or writes the file again. None: a count differs, or an error occurred; it
/// has been printed.
pub fn compare(cargo: &str, update: bool) -> Option<Compared> {
    if !super::has("valgrind") {
        println!("xtask: install valgrind to count instructions");
        return Some(Compared::Skipped("valgrind is not installed".to_owned()));
    }
    let compiler = compiler()?;
    let known = std::fs::read_to_string(file()).unwrap_or_default();
    let (known_compiler, known) = parse(&known);
    if !update && known_compiler != compiler {
        let why = format!("the file is of \"{known_compiler}\", this is \"{compiler}\"");
        println!("xtask: {why}");
        return Some(Compared::Skipped(why));
    }
    let counts = count(cargo)?;
    if update {
        let mut text = format!(
            "# Instructions of the engine for a request of 4 KiB, by load: cargo xtask \
             instructions --update\n\
             compiler {compiler}\n"
        );
        for (load, count) in &counts {
            let _ = writeln!(text, "{load} {count:.0}");
            println!("xtask: {load}: {count:.0} instructions");
        }
        if let Err(error) = std::fs::write(file(), text) {
            println!("xtask: {}: {error}", file().display());
            return None;
        }
        return Some(Compared::Within);
    }
    let mut good = true;
    for (load, count) in &counts {
        let before = known.get(load).copied().unwrap_or(0.0);
        let within = (count - before).abs() <= before * TOLERANCE;
        good &= within;
        let verdict = if within { "as before" } else { "NOT within 2 %" };
        println!("xtask: {load}: {count:.0} instructions, {before:.0} in the file: {verdict}");
    }
    if !good {
        println!("xtask: if that is meant to be: cargo xtask instructions --update");
    }
    good.then_some(Compared::Within)
}

fn parse(text: &str) -> (String, BTreeMap<String, f64>) {
    let mut compiler = String::new();
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(' ') {
            Some(("compiler", version)) => compiler = version.to_owned(),
            Some((load, count)) => {
                counts.insert(load.to_owned(), count.parse().unwrap_or(0.0));
            }
            None => {}
        }
    }
    (compiler, counts)
}

fn compiler() -> Option<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn count(cargo: &str) -> Option<BTreeMap<String, f64>> {
    let mut engine = vec!["engine", "--instructions", "--working-set", "16M"];
    engine.extend(["--requests", "10000"]);
    engine.extend(LOADS.iter().flat_map(|load| ["--load", load]));
    let mut counts = counted(cargo, &engine, LOADS)?;
    for (load, command, depth) in FRONTENDS {
        let arguments = [command, "--instructions", "--requests", "10000", "--depth", depth];
        counts.extend(counted(cargo, &arguments, &[load])?);
    }
    Some(counts)
}

/// Runs the benchmark, which counts these loads.
fn counted(cargo: &str, arguments: &[&str], loads: &[&str]) -> Option<BTreeMap<String, f64>> {
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet"]).args(OPTIMIZED).args(["-p", "ubcache-bench", "--"]);
    command.args(arguments);
    let output = command.stderr(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [load, count, "instructions"] = words[..] {
            counts.insert(load.to_owned(), count.parse().ok()?);
        }
    }
    let all = output.status.success() && counts.len() == loads.len();
    if !all {
        println!("xtask: the benchmark did not count all loads: {text}");
    }
    all.then_some(counts)
}
