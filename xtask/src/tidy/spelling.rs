//! Spelling, by codespell (Debian package `codespell`).

use std::process::Command;

use super::Finding;

/// Words that are right here: crate names, parts of identifiers.
const RIGHT: &str = "crate,upto,inflight,crasher,tyes,contentn,fo,nd,te";

/// Files that are no text of ours, or none at all.
const NOT_OURS: &[&str] = &[".xz", ".svg", ".lock", ".pack"];

pub fn check(paths: &[String]) -> Vec<Finding> {
    let texts = paths.iter().filter(|path| !NOT_OURS.iter().any(|end| path.ends_with(end)));
    let texts = texts.filter(|path| !path.starts_with("fuzz/corpus/"));
    let output =
        Command::new("codespell").args(["--ignore-words-list", RIGHT]).args(texts).output();
    match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(place, message)| Finding {
                place: place.to_owned(),
                message: format!("spelling: {message}"),
            })
            .collect(),
        Err(error) => {
            println!("SKIPPED: spelling: codespell: {error}; sudo apt-get install codespell");
            Vec::new()
        }
    }
}
