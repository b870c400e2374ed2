//! A log is read by its subjects: `area: imperative`, in at most 72 characters.

use super::{Finding, git};

const CHARACTERS_MAX: usize = 72;

/// Imperatives that look like participles.
const IMPERATIVES: &[&str] =
    &["bring", "embed", "feed", "need", "ping", "seed", "shed", "speed", "string"];

pub fn check() -> Vec<Finding> {
    // Commits from the one on that made tidy a part of CI.
    let first = git(&["log", "-Scargo xtask tidy", "--format=%H", "--", ".ci/run"]);
    let range = match first.as_deref().and_then(|hashes| hashes.lines().last()) {
        Some(hash) => format!("{hash}..HEAD"),
        None => return Vec::new(),
    };
    let commits = git(&["log", "--no-merges", "--format=%h %s", &range]).unwrap_or_default();
    commits
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(hash, subject)| {
            Some(Finding { place: hash.to_owned(), message: complaint(subject)? })
        })
        .collect()
}

fn complaint(subject: &str) -> Option<String> {
    let characters = subject.chars().count();
    if characters > CHARACTERS_MAX {
        return Some(format!(
            "subject has {characters} characters, {CHARACTERS_MAX} at most: {subject}"
        ));
    }
    let Some((area, text)) = subject.split_once(": ") else {
        return Some(format!("subject is not `area: imperative`: {subject}"));
    };
    let verb = text.split([' ', ',']).next().unwrap_or_default();
    let is_participle =
        ["ed", "ing", "kept", "made", "said", "told"].iter().any(|end| verb.ends_with(end));
    let is_verb =
        verb.starts_with(char::is_lowercase) && (!is_participle || IMPERATIVES.contains(&verb));
    (area.is_empty() || !is_verb)
        .then(|| format!("subject does not begin with a verb in the imperative: {subject}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_short_and_imperative() {
        for good in ["engine: keep copies", "cli, docs: name the device", "sim: seed the clock"] {
            assert_eq!(complaint(good), None);
        }
        let long = format!("engine: {}", "a".repeat(65));
        for bad in
            ["clippy", "engine: Keep it", "engine: kept", "docs: adding words", ": keep", &long]
        {
            assert!(complaint(bad).is_some(), "{bad}");
        }
    }
}
