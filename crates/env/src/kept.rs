//! Memory that outlives the process and no power failure, such as a file of a tmpfs.
//!
//! The journal keeps there what it has not written to the cache device yet
//! (docs/internals/coherence.md, rule V3). It is a queue of bytes: new ones are put behind, old
//! ones are given up in front.

use std::fmt;

/// A queue of bytes that a process finds as an earlier one left it, at whatever instruction that
/// one was killed.
///
/// # Contract
/// Each call of [`KeptMemory::append`] and [`KeptMemory::drop_front`] takes effect as a whole or
/// not at all, in the order of the calls, and before it returns. After a power failure the queue is
/// empty. One process at a time uses it.
pub trait KeptMemory: fmt::Debug {
    /// Bytes that it can hold.
    fn capacity(&self) -> usize;

    /// The bytes in it, oldest first.
    fn read(&self) -> Vec<u8>;

    /// Puts `bytes` behind all others.
    ///
    /// # Panics
    /// There is no room for them: the caller counts.
    fn append(&self, bytes: &[u8]);

    /// Gives up the oldest `bytes` bytes.
    ///
    /// # Panics
    /// There are not so many.
    fn drop_front(&self, bytes: usize);
}
