//! Every rule of docs/internals/coherence.md has a mutant, or a reason why it has none.

use std::path::Path;

use ubcache_engine::Mutant;

/// The rules that the document defines, those about what the world asserts (I1 …) left out.
fn rules(document: &str) -> impl Iterator<Item = &str> {
    let names = document.lines().filter_map(|line| line.strip_prefix("- **")?.split_once(".**"));
    names.map(|(name, _)| name).filter(|name| !name.starts_with('I'))
}

/// Returns true if one of the words, which commas and spaces separate, is this one.
fn has(words: &str, word: &str) -> bool {
    words.split([',', ' ']).any(|other| other == word)
}

#[test]
fn every_rule_has_a_mutant_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |file: &str| {
        std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let rest = read("docs/internals/simulation.md");
    let rest = rest.split_once("## Rules without a mutant\n").expect("the section is there").1;
    let table = rest.split_once("\n## ").expect("another section follows").0;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| rule"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let document = read("docs/internals/coherence.md");
    for rule in rules(&document) {
        let breaks = |mutant: &&Mutant| {
            mutant.switches_off().iter().any(|part| part.numbers().contains(&rule))
        };
        let mutant = Mutant::ALL.iter().find(breaks);
        let row = rows.iter().find(|row| has(row[0], rule));
        match (mutant, row) {
            (None, None) => panic!("{rule} has neither a mutant nor a row in the table"),
            (Some(mutant), Some(_)) => panic!("{rule} has a mutant, {}", mutant.name()),
            _ => {}
        }
    }
    for row in rows {
        assert!(row.len() == 3 && !row[2].is_empty(), "a reason: {row:?}");
        if row[1].is_empty() {
            continue;
        }
        let (file, test) = row[1].trim_matches('`').split_once("` `").expect("a file and a test");
        assert!(read(file).contains(&format!("fn {test}()")), "{file} has the test {test}");
    }
}
