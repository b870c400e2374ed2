//! Why a tool could not do what it was asked to.

use ubcache_format::{Apart, Inode, Uuid};

use crate::set::Finding;

/// What a tool reads or writes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum On {
    /// The cache device, or the copy that is being made of it.
    Cache,
    /// A backing device.
    Backing,
    /// A dump that is being read.
    Dump,
    /// What the tool makes: a file, or standard output.
    Output,
}

/// Why a tool gave up. What it has done until then is said by the tool; none of them leaves a set worse than before.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// Damage that makes the result uncertain.
    #[error("{0}")]
    Damaged(Box<Finding>),
    /// The superblock is damaged, and nothing is left that it could be found again from.
    #[error("the superblock is damaged, and could not be found again: {finding}")]
    SuperblockLost {
        /// What is wrong with it.
        finding: Box<Finding>,
        /// Whether there was a backing device to say which set it is.
        with_backing: bool,
    },
    /// A read or a write failed.
    #[error("{doing}: {error}")]
    Io {
        /// What could not be read or written.
        on: On,
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        error: String,
    },
    /// The device is a backing device.
    #[error("a backing device, not a cache device")]
    NotACache,
    /// The cache was formatted, and never used.
    #[error("the cache has never been started: there is nothing in it")]
    NeverStarted,
    /// A dump is not as it was written.
    #[error("line {line}: {what}")]
    Dump {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
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
        "the backing device is not attached to this cache: its state is {state}, its set {found}, that of the cache {expected}"
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
    #[error("the cache does not know the backing device {0}, which says that it is dirty")]
    NoSlot(Uuid),
    /// There is no flash-only volume of this number.
    #[error("volume {0} is not a flash-only volume of this cache")]
    NotFlashOnly(Inode),
    /// Data would have to be written beyond the end of the backing device.
    #[error("{sectors} dirty sectors lie beyond the end of the backing device")]
    BeyondEnd {
        /// How many.
        sectors: u64,
    },
    /// The cache has no room for the nodes that say that all is clean.
    #[error("the cache has no room to be marked clean: {0}")]
    NoRoom(String),
}
