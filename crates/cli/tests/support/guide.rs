//! The blocks of commands of a guide.

use std::path::Path;

/// The commands of each block of a guide in docs/guide, without comments at their ends.
pub fn blocks(guide: &str) -> Vec<Vec<String>> {
    blocks_of_kind(guide, "")
}

/// The same of the blocks that have this word at their beginning, as `sh`: what a test can't run.
pub fn blocks_of_kind(guide: &str, wanted: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide").join(guide);
    let text = std::fs::read_to_string(path).expect("a guide");
    let mut blocks = Vec::new();
    // A part of a configuration has a word at its beginning, too.
    let mut open: Option<(bool, Vec<String>)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind == wanted, Vec::new())),
            (None, None) => {}
            (Some(_), Some(_)) => {
                blocks
                    .extend(open.take().filter(|(is_meant, _)| *is_meant).map(|(_, lines)| lines));
            }
            (Some((_, lines)), None) => {
                lines.push(line.split(" #").next().unwrap_or(line).trim_end().to_owned());
            }
        }
    }
    blocks
}
