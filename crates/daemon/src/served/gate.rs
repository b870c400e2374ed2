//! A place where new connections wait while they are held.

use std::cell::Cell;

use ubcache_env::local::{Either, Notify, first};

/// Open at first.
#[derive(Default, Debug)]
pub(crate) struct Gate {
    held: Cell<bool>,
    changed: Notify,
}

impl Gate {
    /// From now on nobody passes.
    pub fn hold(&self) {
        self.held.set(true);
        self.changed.notify_all();
    }

    /// Everybody passes again.
    pub fn open(&self) {
        self.held.set(false);
        self.changed.notify_all();
    }

    /// Waits for something that has no effect when it is dropped; it is begun only while the gate
    /// is open, and again when it opens.
    pub async fn pass<F: Future>(&self, wait: impl Fn() -> F) -> F::Output {
        loop {
            while self.held.get() {
                self.changed.notified().await;
            }
            if let Either::Left(output) = first(wait(), self.changed.notified()).await {
                return output;
            }
        }
    }
}
