//! A fault of a configuration file, with its place.

use std::fmt;
use std::path::{Path, PathBuf};

/// A fault, at a place of a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The place; none: the file as a whole.
    pub place: Option<Place>,
    /// The fault in words, with what is expected.
    pub what: String,
}

/// A place of a file.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Place {
    /// The place of a byte of a text.
    pub fn of(text: &str, byte: usize) -> Place {
        let before = text.get(..byte.min(text.len())).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        Place { line, column: before[begin..].chars().count() + 1 }
    }
}

impl Fault {
    /// A fault of a file as a whole: it can't be read.
    pub fn of_file(file: &Path, what: impl fmt::Display) -> Fault {
        Fault { file: file.to_owned(), place: None, what: what.to_string() }
    }

    /// A fault at a place.
    pub fn at(file: &Path, place: Place, what: impl fmt::Display) -> Fault {
        Fault { file: file.to_owned(), place: Some(place), what: what.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "a = 1\nµ = \"ü\" x\n";
        let at = |part| {
            let place = Place::of(text, text.find(part).expect("it is there"));
            (place.line, place.column)
        };
        assert_eq!(at("a"), (1, 1));
        assert_eq!(at("µ"), (2, 1));
        assert_eq!(at("x"), (2, 9));
        assert_eq!(Place::of(text, 1000), Place { line: 3, column: 1 });
    }
}
