//! The walk over a set: superblock, journal, prio chain, volume table, every node, and what follows
//! from all of them together (docs/reference/format.md §12).
//!
//! Damage does not stop the walk as long as anything is left to read: a [`Visitor`] gets all
//! findings, and the [`View`](crate::View) lists the intervals of keys that are lost.
//!
//! Memory, all bounded by the size of the device: 8 bytes a bucket; 24 bytes an extent, and 16 more
//! while extents are compared with each other, so about 40 MB a million extents, unless they are
//! only added up; 96 bytes a node; the journal entries that replay needs; 9 MiB of what is read
//! ahead.

mod driver_journal;
mod journal;
mod journal_bucket;
mod leaf;
mod leaf_batch;
mod occupancy;
mod open;
mod overlay;
mod owners;
mod prio;
mod run;
mod superblock;
mod totals;
mod tree;
mod visitor;
mod volume_table;

pub(crate) use self::driver_journal::driver_entries;
pub(crate) use self::open::Findings;
pub use self::open::open_set;
pub use self::run::walk;
pub(crate) use self::run::{WalkOptions, walk_from, walk_with};
pub use self::superblock::{DeviceKind, kind_of};
pub(crate) use self::superblock::{missing, read_superblock};
pub use self::visitor::{NodeVisit, PrioElement, Visitor};
