//! The list of marks is what the code says: nothing unlisted, nothing listed that does not exist.

use std::collections::BTreeSet;
use std::path::Path;

use ubcache_engine::marks::{MARKS, UNREACHED};

/// The string literals between `mark(` and the end of the statement, over all sources.
fn marks_in_code(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("the sources are there").path();
        if path.is_dir() {
            marks_in_code(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            for call in text.split("env.mark(").skip(1) {
                let call = call.split([';', ',']).next().unwrap_or_default();
                let literals: Vec<&str> = call.split('"').skip(1).step_by(2).collect();
                assert!(!literals.is_empty(), "{}: a mark is a literal: {call}", path.display());
                found.extend(literals.into_iter().map(str::to_owned));
            }
        }
    }
}

#[test]
fn mark_list_equals_the_marks_in_the_code() {
    let mut code = BTreeSet::new();
    marks_in_code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    let names = MARKS.iter().chain(UNREACHED).map(|(name, _)| (*name).to_owned());
    let listed: BTreeSet<String> = names.collect();
    assert_eq!(listed.len(), MARKS.len() + UNREACHED.len(), "no name is listed twice");
    let unlisted: Vec<_> = code.difference(&listed).collect();
    let unused: Vec<_> = listed.difference(&code).collect();
    assert!(unlisted.is_empty() && unused.is_empty(), "unlisted: {unlisted:?}, unused: {unused:?}");
}
