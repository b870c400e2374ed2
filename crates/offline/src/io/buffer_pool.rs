//! Buffers that are read into again and again.

use std::cell::RefCell;

use ubcache_env::Buf;

/// Memory to read into that was used before: asking for it, clearing it and touching it for the
/// first time takes as long as reading into it does.
pub(crate) struct BufferPool {
    free: RefCell<Vec<Buf>>,
    bytes_max: u64,
}

impl BufferPool {
    /// A place that keeps so many bytes at most.
    pub fn new(bytes_max: u64) -> BufferPool {
        BufferPool { free: RefCell::default(), bytes_max }
    }

    pub fn take(&self, bytes: usize) -> Buf {
        let mut free = self.free.borrow_mut();
        match free.iter().position(|buf| buf.len() == bytes) {
            Some(index) => free.swap_remove(index),
            None => {
                // Buffers of other lengths are freed for it, so that the total does not grow.
                let mut room = 0;
                while room < bytes
                    && let Some(other) = free.pop()
                {
                    room += other.len();
                }
                Buf::zeroed(bytes)
            }
        }
    }

    /// Keeps memory for the next one, if there is room. Of other lengths, what was kept makes room.
    pub fn give(&self, buf: Buf) {
        let mut free = self.free.borrow_mut();
        let mut kept: u64 = free.iter().map(|buf| buf.len() as u64).sum();
        while kept + buf.len() as u64 > self.bytes_max
            && let Some(index) = free.iter().position(|other| other.len() != buf.len())
        {
            kept -= free.swap_remove(index).len() as u64;
        }
        if kept + buf.len() as u64 <= self.bytes_max {
            free.push(buf);
        }
    }
}
