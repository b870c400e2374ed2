//! Kept memory that outlives nothing: it costs what that of the host does, without a file.

use std::cell::{Cell, RefCell};

use ubcache_env::KeptMemory;

/// A ring of bytes.
#[derive(Debug)]
pub struct NullKept {
    bytes: RefCell<Box<[u8]>>,
    front: Cell<usize>,
    end: Cell<usize>,
}

impl NullKept {
    /// An empty one of so many bytes.
    pub fn new(capacity: usize) -> NullKept {
        NullKept {
            bytes: RefCell::new(vec![0; capacity].into()),
            front: Cell::new(0),
            end: Cell::new(0),
        }
    }
}

impl KeptMemory for NullKept {
    fn capacity(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn read(&self) -> Vec<u8> {
        let bytes = self.bytes.borrow();
        (self.front.get()..self.end.get()).map(|at| bytes[at % bytes.len()]).collect()
    }

    fn append(&self, new: &[u8]) {
        let mut bytes = self.bytes.borrow_mut();
        let (at, capacity) = (self.end.get() % bytes.len(), bytes.len());
        let first = new.len().min(capacity - at);
        bytes[at..at + first].copy_from_slice(&new[..first]);
        bytes[..new.len() - first].copy_from_slice(&new[first..]);
        self.end.set(self.end.get() + new.len());
    }

    fn drop_front(&self, bytes: usize) {
        self.front.set(self.front.get() + bytes);
    }
}
