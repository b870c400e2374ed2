//! Outcomes of batches of writeback, also of those that are under way beside the task.

use std::cell::Cell;

use ubcache_env::SectorRange;
use ubcache_env::local::Notify;

/// Outcome of a batch.
#[derive(Copy, Clone, Default, Debug)]
pub(crate) struct Cleaned {
    pub sectors: u64,
    /// Runs that stay dirty: something failed.
    pub failed: u64,
    /// A range over which a backing write or another writeback is in flight.
    pub busy: Option<SectorRange>,
}

impl Cleaned {
    /// The outcome of two batches.
    pub fn with(self, other: Cleaned) -> Cleaned {
        Cleaned {
            sectors: self.sectors + other.sectors,
            failed: self.failed + other.failed,
            busy: other.busy.or(self.busy),
        }
    }
}

/// The batches of a volume that are under way, and what became of those that have ended.
#[derive(Default)]
pub(crate) struct Batches {
    pub(super) running: Cell<usize>,
    pub(super) outcome: Cell<Cleaned>,
    pub(super) ended: Notify,
}

impl Batches {
    pub(super) fn ends(&self, cleaned: Cleaned) {
        self.outcome.set(self.outcome.get().with(cleaned));
        self.running.set(self.running.get() - 1);
        self.ended.notify_all();
    }
}
