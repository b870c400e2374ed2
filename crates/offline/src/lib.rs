//! Tools for cache sets that are not running: check, show, read, recover, repair.
//!
//! One walk ([`walk()`]) reads a set as docs/reference/format.md §12 has it and goes on where it meets damage. All tools start
//! from it. I/O is done through [`ubcache_env::Device`] only, so that the simulator can run every tool after a crash.
//!
//! ```text
//!  Device ──▶ walk: superblock → journal → prio chain → volume table → nodes ──▶ View ──▶ check: owners, staleness,
//!              │                                                           │              reserves, clean = backing
//!              ├──▶ Visitor: dump, check                                   ├──▶ cat: backing under cached extents
//!              └──▶ Watcher: progress                                      ├──▶ recover: dirty data → backing
//!                                                                           └──▶ repair: what is certain, anew
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`mod@walk`] | [`walk()`], [`Visitor`]: the one walk over a set |
//! | [`journal`] | [`Journal`]: entries that count, and what the driver would find |
//! | [`tree`] | [`NodeVisit`]; the tree, level by level |
//! | [`view`] | [`View`], [`Extent`], [`Bucket`]: what a walk brings back |
//! | [`check`] | [`check_set`] |
//! | [`finding`] | [`Finding`], [`Kind`], [`Report`]: what, where, meaning, remedy |
//! | [`disk`] | [`Progress`], [`Watcher`]; reading in bounds |
//! | [`content`] | [`VolumeMap`], [`read_volume`]: what a volume reads as |
//! | [`mod@recover`] | [`recover()`]: dirty data to the backing device |
//! | [`mod@repair`] | [`survey`], [`write_repaired`]: a damaged set as far as it is certain |
//! | [`mod@pack`] | [`pack()`]: the metadata in one file; [`Cache`]: a device, or a pack read as one |
//! | [`mod@restore`] | [`dump_for_restore`], [`restore()`]: metadata as lines from which it is built again |
//! | [`mod@dump`] | [`Dump`]: everything as lines of text or JSON |
//! | [`create`] | [`make_device`]: a superblock onto a device |
//! | [`error`] | [`OfflineError`] |
//! | `rewrite` | a new tree in which a volume is clean |
//! | `lay_down` | a new set: tree, volume table, prio chain, journal entry |
//! | `ahead` | reading ahead: the next is read while threads look at what has come |
//! | `leaf` | leaves that are as they should be, in one go |
//! | `overlay` | newer extents over older ones |
//! | `scan` | what is in one bucket of the journal |
//! | `tally`, `taken` | sums over extents that are in order; which sectors they take |
//! | `crew`, `line` | work that threads share: all at once, and one piece after the other |
//! | `account` | owners of buckets, staleness, reserves |
//!
//! Nothing here panics, whatever the bytes are.
#![forbid(unsafe_code)]

mod account;
mod ahead;
pub mod check;
pub mod content;
pub mod create;
mod crew;
pub mod disk;
pub mod dump;
pub mod error;
pub mod finding;
pub mod journal;
mod lay_down;
mod leaf;
mod line;
mod overlay;
pub mod pack;
pub mod recover;
pub mod repair;
pub mod restore;
mod rewrite;
mod scan;
mod taken;
mod tally;
pub mod tree;
pub mod view;
pub mod walk;

pub use check::{check_report, check_set, check_set_metadata, check_set_watched};
pub use content::{Piece, Segment, Source, VolumeMap, map_backed, map_flash_only, read_volume};
pub use create::make_device;
pub use disk::{Progress, Watcher};
pub use dump::{Dump, What};
pub use error::{OfflineError, On};
pub use finding::{Finding, Kind, Place, Report, Severity, Site, Stats};
pub use journal::{EntryPlace, FoundEntry, Journal};
pub use pack::{Cache, PackError, Packed, Packing, is_pack, pack};
pub use recover::{Outcome, RecoverOptions, Recovered, open_set, recover};
pub use repair::{Repair, RepairOptions, Uncertain, copy_device, survey, unreadable_data, write_repaired};
pub use restore::{
    Dumped, Lines, Restored, Standing, TargetState, dump_for_restore, look_at_target, read_dump, restore,
};
pub use tree::NodeVisit;
pub use view::{Bucket, Extent, Lost, Owner, View};
pub use walk::{DeviceKind, PrioElement, Visitor, kind_of, walk};
