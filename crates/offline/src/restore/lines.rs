//! Lines of a dump, and the version of their format.

use crate::error::OfflineError;

/// Lines of a dump, from the first on; the errors of reading are in words.
pub trait Lines {
    /// Begins anew.
    fn lines(&self) -> Result<Box<dyn Iterator<Item = Result<String, String>> + '_>, String>;
}

impl Lines for [String] {
    fn lines(&self) -> Result<Box<dyn Iterator<Item = Result<String, String>> + '_>, String> {
        Ok(Box::new(self.iter().cloned().map(Ok)))
    }
}

/// The version of the lines that are written and read.
pub(super) const VERSION: u64 = 1;

/// The error of a line.
pub(super) fn wrong(line: u64, what: impl std::fmt::Display) -> OfflineError {
    OfflineError::Dump { line, what: what.to_string() }
}
