//! Progress of long work, reported to a [`Watcher`].

use std::cell::Cell;

/// Progress of long work.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Name of the phase: "journal", "tree", …
    pub phase: &'static str,
    /// Bytes done in this phase.
    pub done: u64,
    /// Bytes to do in this phase, as far as is known.
    pub total: u64,
}

/// Receiver of progress. A function is one.
pub trait Watcher {
    /// Called often; has to be quick.
    fn watch(&self, progress: Progress);
}

impl Watcher for () {
    fn watch(&self, _: Progress) {}
}

impl<F: Fn(Progress)> Watcher for F {
    fn watch(&self, progress: Progress) {
        self(progress);
    }
}

/// A phase of work: counts bytes and reports them to the watcher.
pub(crate) struct Phase<'a> {
    watcher: &'a dyn Watcher,
    name: &'static str,
    done: Cell<u64>,
    total: u64,
}

impl<'a> Phase<'a> {
    pub fn new(watcher: &'a dyn Watcher, name: &'static str, total: u64) -> Phase<'a> {
        watcher.watch(Progress { phase: name, done: 0, total });
        Phase { watcher, name, done: Cell::new(0), total }
    }

    pub fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        let done = self.done.get();
        self.watcher.watch(Progress { phase: self.name, done, total: self.total.max(done) });
    }
}
