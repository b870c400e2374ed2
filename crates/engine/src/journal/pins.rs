//! The records that the ring has to keep: index nodes on the device lack them.

use std::cell::Cell;

use ubcache_env::local::{Notified, Notify};
use ubcache_format::JournalSeq;

/// Set by the index whenever a leaf begins or ceases to lack a record; read by the journal.
#[derive(Debug, Default)]
pub(crate) struct EntryPins {
    oldest: Cell<Option<JournalSeq>>,
    leaves: Cell<usize>,
    /// A leaf was written: fewer lack records, or the oldest of these is a later one.
    fewer: Notify,
}

impl EntryPins {
    /// So many leaves lack records, the oldest of which is in this entry.
    pub fn set(&self, oldest: Option<JournalSeq>, leaves: usize) {
        let moved = self.oldest.replace(oldest) != oldest;
        if leaves < self.leaves.replace(leaves) || moved {
            self.fewer.notify_all();
        }
    }

    /// Returns when an entry may be needed less than now.
    pub fn fewer(&self) -> Notified<'_> {
        self.fewer.notified()
    }

    /// The oldest entry with a record that some leaf lacks.
    pub fn oldest(&self) -> Option<JournalSeq> {
        self.oldest.get()
    }

    /// Number of leaves that lack records.
    pub fn leaves(&self) -> usize {
        self.leaves.get()
    }
}
