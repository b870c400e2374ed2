//! Text without control characters: names that clients and superblocks provide can't begin a line
//! of their own, nor command a terminal.

use std::borrow::Cow;

/// Escapes control characters. `ansi`: ESC stays, which the formatter has put there.
pub fn plain(text: &str, ansi: bool) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\t' && !(ansi && c == '\x1b');
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if bad(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("a disk\tof 1G", false), "a disk\tof 1G");
        assert_eq!(plain("x\nready: \u{1b}[2J\u{9b}", false), "x\\nready: \\u{1b}[2J\\u{9b}");
        assert_eq!(plain("\u{1b}[2mx\r\n", true), "\u{1b}[2mx\\r\\n");
    }
}
