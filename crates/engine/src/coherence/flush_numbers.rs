//! Flushes of the backing device, numbered from 1 in the order in which they start.

use std::cell::Cell;

use ubcache_env::local::{Lock, Permit};

/// See the module.
#[derive(Default, Debug)]
pub(crate) struct Flushes {
    one_at_a_time: Lock,
    started: Cell<u64>,
    newest_good: Cell<u64>,
    failures: Cell<u64>,
}

impl Flushes {
    /// Waits until no other flush is under way.
    pub async fn turn(&self) -> Permit {
        self.one_at_a_time.lock().await
    }

    #[cfg(feature = "mutants")]
    pub fn is_under_way(&self) -> bool {
        self.one_at_a_time.is_locked()
    }

    /// Number of the flush that started last.
    pub fn started(&self) -> u64 {
        self.started.get()
    }

    /// Number of the newest flush that succeeded: it covers what was complete when it started.
    pub fn newest_good(&self) -> u64 {
        self.newest_good.get()
    }

    /// Flushes that failed, whoever asked for them: a write beside one may be lost (F5).
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    pub fn starts(&self) {
        self.started.set(self.started.get() + 1);
    }

    /// The flush that started last has succeeded.
    pub fn succeeds(&self) {
        self.newest_good.set(self.started.get());
    }

    /// A flush failed, of this volume's or not.
    pub fn fails(&self) {
        self.failures.set(self.failures.get() + 1);
    }
}
