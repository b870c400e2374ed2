//! The product has no mutant of the engine in it: neither the table nor the code of one.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

use std::fs;
use std::path::Path;

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the mutants on the simulator's command line.
fn names() -> Vec<String> {
    let text = source("mutants/mod.rs");
    let table = text.split("\nmutants! {").nth(1).expect("the table of mutants");
    let table = table.split("\n}\n").next().expect("its end");
    let name = |line: &str| {
        let (_, rest) = line.trim().split_once(", \"")?;
        let (name, _) = rest.split_once("\",")?;
        (name.contains('-') && !name.contains(' ')).then(|| name.to_owned())
    };
    table.lines().filter_map(name).collect()
}

/// Names of the functions that only mutants have: all of their files, but for those with a word of
/// everybody's.
fn functions() -> Vec<String> {
    let text = source("mutants/bodies.rs") + &source("mutants/historic.rs");
    let name = |line: &str| {
        let (_, rest) = line.split_once("fn ")?;
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
        Some(rest[..end].to_owned())
    };
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.filter_map(name).filter(|name| name.contains('_')).collect()
}

#[test]
fn neither_names_nor_functions_of_mutants_are_in_the_product() {
    let names = names();
    assert!(names.len() > 60, "{} names of mutants", names.len());
    let functions = functions();
    assert!(functions.len() > 18, "{} functions of mutants", functions.len());
    let program = fs::read(env!("CARGO_BIN_EXE_ubcache")).expect("the program");
    let program = String::from_utf8_lossy(&program);
    let has = |text: &str| program.contains(text);
    for function in ["read_superblock", "write_backing", "insert_dirty", "bring_down"] {
        assert!(has(function), "a program whose functions have names: {function}");
    }
    let words = names.iter().chain(&functions);
    let found: Vec<&String> = words.filter(|word| has(word)).collect();
    assert!(found.is_empty(), "mutants in the product: {found:?}");
}
