//! Defects in bytes that were read: each names the structure, the place in it, the value found and
//! the value expected.

use core::fmt;

/// The kind of structure that an error was found in.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Structure {
    /// A superblock (docs/reference/format.md §2).
    Superblock,
    /// A key or its pointers (docs/reference/format.md §4).
    Key,
    /// A btree node or one of its key sets (docs/reference/format.md §5).
    Node,
    /// A journal entry (docs/reference/format.md §6).
    JournalEntry,
    /// The journal as a whole (docs/reference/format.md §6.3).
    Journal,
    /// A prio set (docs/reference/format.md §7).
    PrioSet,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Structure::Superblock => "superblock",
            Structure::Key => "key",
            Structure::Node => "btree node",
            Structure::JournalEntry => "journal entry",
            Structure::Journal => "journal",
            Structure::PrioSet => "prio set",
        })
    }
}

/// Bytes that do not hold what they should.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{structure}, byte {at}: {problem}")]
pub struct FormatError {
    /// The outermost structure that was being read.
    pub structure: Structure,
    /// The offset in bytes, from the start of that structure, of what is wrong.
    pub at: u64,
    /// The defect at this place.
    #[source]
    pub problem: Problem,
}

/// A defect at the place that a [`FormatError`] names.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes end before the structure does.
    #[error("found only {found} bytes, expected at least {expected}")]
    TooShort {
        /// Bytes that are there.
        found: u64,
        /// Bytes that are needed.
        expected: u64,
    },
    /// The magic number is that of something else.
    #[error("found magic number {found:#018x}, expected {expected:#018x}")]
    Magic {
        /// The number on the disk.
        found: u64,
        /// The number that this set uses for this structure.
        expected: u64,
    },
    /// The stored checksum is not the one computed from the bytes.
    #[error("found checksum {found:#018x}, expected {expected:#018x}, computed over {bytes} bytes")]
    Checksum {
        /// The checksum on the disk.
        found: u64,
        /// The checksum of the bytes on the disk.
        expected: u64,
        /// Number of bytes that the checksum covers.
        bytes: u64,
    },
    /// A field has a value that it must not have.
    #[error("{field} is {found}, expected {expected}")]
    Value {
        /// The name of the field.
        field: &'static str,
        /// The value on the disk, as text.
        found: String,
        /// The allowed values, as text.
        expected: String,
    },
    /// Journal entries that replay needs can not be found.
    #[error("entries {first} to {last} are missing, expected all of {oldest} to {newest}")]
    EntriesMissing {
        /// The first missing sequence number of the first gap.
        first: u64,
        /// The last missing sequence number of the first gap.
        last: u64,
        /// The oldest entry that replay needs.
        oldest: u64,
        /// The newest entry.
        newest: u64,
    },
    /// There is no valid journal entry at all, although the superblock says that the set was
    /// started.
    #[error("no valid entry found in {buckets} buckets, expected at least one")]
    NoEntries {
        /// Number of journal buckets that were read.
        buckets: u64,
    },
}

impl FormatError {
    pub(crate) fn new(structure: Structure, at: u64, problem: Problem) -> Self {
        Self { structure, at, problem }
    }

    pub(crate) fn too_short(structure: Structure, found: usize, expected: u64) -> Self {
        Self::new(structure, 0, Problem::TooShort { found: found as u64, expected })
    }

    /// A field with a value it must not have.
    pub(crate) fn value(
        structure: Structure,
        at: u64,
        field: &'static str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        let (found, expected) = (found.to_string(), expected.to_string());
        Self::new(structure, at, Problem::Value { field, found, expected })
    }

    /// Turns the error into one of the structure that contains this one at `offset` bytes.
    #[must_use]
    pub fn within(mut self, structure: Structure, offset: u64) -> Self {
        self.structure = structure;
        self.at = self.at.saturating_add(offset);
        self
    }
}
