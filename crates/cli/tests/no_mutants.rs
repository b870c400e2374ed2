//! The product has no mutant of the engine in it: neither the table nor the code of one.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

use std::fs;
use std::path::Path;

/// Functions that only mutants have. `restore` and the like are common words.
const FUNCTIONS: &[&str] =
    &["with_late_removal", "write_uncopied", "seemingly_empty", "write_superblock_unflushed"];

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

#[test]
fn neither_names_nor_functions_of_mutants_are_in_the_product() {
    let names = names();
    assert!(names.len() > 60, "{} names of mutants", names.len());
    let bodies = source("mutants/bodies.rs") + &source("mutants/historic.rs");
    for function in FUNCTIONS {
        assert!(bodies.contains(&format!("fn {function}")), "{function} is a mutant's");
    }
    let program = fs::read(env!("CARGO_BIN_EXE_ubcache")).expect("the program");
    let program = String::from_utf8_lossy(&program);
    let has = |text: &str| program.contains(text);
    assert!(has("read_superblock"), "a program whose functions have names");
    let words = names.iter().map(String::as_str).chain(FUNCTIONS.iter().copied());
    let found: Vec<&str> = words.filter(|word| has(word)).collect();
    assert!(found.is_empty(), "mutants in the product: {found:?}");
}
