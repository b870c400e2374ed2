//! Ways in which an instance ends without a stop, and the memory that outlives one of them.

use std::cell::RefCell;
use std::collections::VecDeque;

use ubcache_env::KeptMemory;

/// End of an instance without a stop: all memory is lost, and more.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The devices lose what was not durable, and the kept memory is lost.
    Power,
    /// The devices keep everything, and the kept memory is lost.
    Host,
    /// The devices and the kept memory keep everything.
    Process,
}

impl Crash {
    /// Name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Crash::Power => "POWER FAILURE",
            Crash::Host => "HOST RESTART",
            Crash::Process => "PROCESS DEATH",
        }
    }
}

/// Kept memory of a run.
#[derive(Debug)]
pub struct SimKept {
    capacity: usize,
    bytes: RefCell<VecDeque<u8>>,
}

impl SimKept {
    /// An empty one of so many bytes.
    pub fn new(capacity: usize) -> SimKept {
        SimKept { capacity, bytes: RefCell::default() }
    }

    /// The host has restarted or lost its power.
    pub fn lose(&self) {
        self.bytes.borrow_mut().clear();
    }
}

impl KeptMemory for SimKept {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn read(&self) -> Vec<u8> {
        self.bytes.borrow().iter().copied().collect()
    }

    fn append(&self, bytes: &[u8]) {
        let mut all = self.bytes.borrow_mut();
        all.extend(bytes);
        assert!(all.len() <= self.capacity, "{} bytes of {} are kept", all.len(), self.capacity);
    }

    fn drop_front(&self, bytes: usize) {
        self.bytes.borrow_mut().drain(..bytes);
    }
}
