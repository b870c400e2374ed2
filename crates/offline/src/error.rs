//! Errors of the tools.

use ubcache_format::{Apart, Inode, Uuid};

use crate::set::Finding;

/// A device or file that a tool reads or writes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum On {
    /// The cache device, or the copy that is being made of it.
    Cache,
    /// A backing device.
    Backing,
    /// A dump that is being read.
    Dump,
    /// The result of the tool: a file, or standard output.
    Output,
}

/// Reason why a tool stopped. The tool reports the work that was done before; no error leaves a set
/// worse than it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// Damage that makes the result uncertain.
    #[error("{0}")]
    Damaged(Box<Finding>),
    /// The superblock is damaged, and nothing is left that it could be found again from.
    #[error("the superblock is damaged, and could not be found again: {finding}")]
    SuperblockLost {
        /// The fault.
        finding: Box<Finding>,
        /// True if a backing device was given that names the set.
        with_backing: bool,
    },
    /// A read or a write failed.
    #[error("{doing}: {error}")]
    Io {
        /// The device or file.
        on: On,
        /// The action that failed.
        doing: &'static str,
        /// The error of the device.
        error: String,
    },
    /// The device is a backing device.
    #[error("a backing device, not a cache device")]
    NotACache,
    /// The cache was formatted, and never used.
    #[error("the cache has never been started: it contains no data")]
    NeverStarted,
    /// A dump is not as it was written.
    #[error("line {line}: {what}")]
    Dump {
        /// The line, from 1.
        line: u64,
        /// The fault.
        what: String,
    },
    /// The device has no room for all buckets.
    #[error("the device has {found} sectors, the buckets of the set need {needed}")]
    TooSmall {
        /// Its size.
        found: u64,
        /// The size that it needs.
        needed: u64,
    },
    /// The backing device has no data in this cache.
    #[error(
        "the backing device is not attached to this cache: its state is {state}, its set {found}, \
         that of the cache {expected}"
    )]
    NotAttached {
        /// Its state, in words.
        state: &'static str,
        /// The set that the backing device names.
        found: Uuid,
        /// The set of the cache.
        expected: Uuid,
    },
    /// The cache and the backing device are not of one run.
    #[error("the cache and the backing device are not of one run: {0}")]
    OlderCopy(Apart),
    /// The volume table does not know the backing device.
    #[error("the cache has no record of the backing device {0}, whose state is dirty")]
    NoSlot(Uuid),
    /// There is no flash-only volume of this number.
    #[error("volume {0} is not a flash-only volume of this cache")]
    NotFlashOnly(Inode),
    /// Data would have to be written beyond the end of the backing device.
    #[error("{sectors} dirty sectors lie beyond the end of the backing device")]
    BeyondEnd {
        /// Number of sectors.
        sectors: u64,
    },
    /// The cache has no room for the nodes that say that all is clean.
    #[error("the cache has no room to be marked clean: {0}")]
    NoRoom(String),
}
