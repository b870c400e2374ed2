//! Walls of the engine: a struct that changes behind a shared reference is changed by its own
//! methods. A cell that another room could write is a wall with a hole.

mod support;

use std::fs;
use std::path::Path;

use support::sources;

#[test]
fn no_cell_is_a_field_that_other_rooms_can_write() {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/src");
    let mut files = Vec::new();
    sources(&engine, &mut files);
    let mut fields = 0;
    let mut open = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        for line in text.lines().map(str::trim) {
            let Some((name, kind)) = line.split_once(": ") else { continue };
            if line.starts_with("//") || !line.ends_with(',') || !kind.contains("Cell<") {
                continue;
            }
            fields += 1;
            // Seen in the whole crate, or beyond it; `pub(super)` stays within the room.
            if name.starts_with("pub ") || name.starts_with("pub(crate) ") {
                open.push(format!("{}: {line}", file.display()));
            }
        }
    }
    assert!(fields > 50, "{fields} cells in the engine");
    assert!(open.is_empty(), "cells that others can write:\n{}", open.join("\n"));
}
