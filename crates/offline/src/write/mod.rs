//! Writing metadata to a cache device: a tree, or a whole set.
//!
//! | file | holds |
//! |---|---|
//! | `tree` | a new tree and the journal entry that names it |
//! | `new_set` | a new set: tree, volume table, prio chain, journal entry, superblock |
//! | `device` | flushes with the errors of the tools |

mod device;
mod new_set;
mod tree;

pub(crate) use self::device::flush;
pub(crate) use self::new_set::{NewSet, ring_index, write_set};
pub(crate) use self::tree::{free_buckets, mark_volume_clean};
