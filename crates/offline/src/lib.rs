//! Tools for cache sets that are not running: check, dump, read, recover, repair, pack, restore.
//!
//! One walk ([`walk()`]) reads a set as docs/reference/format.md §12 describes it, and continues
//! behind damage. All tools start from it. I/O is done through [`ubcache_env::Device`] only, so
//! that the simulator can run every tool after a crash.
//!
//! ```text
//!  Device ─▶ walk: superblock → journal → prio chain → volume table → nodes ─▶ View
//!             │                                                                 │
//!             ├─▶ Visitor: dump, check       check: backing devices, data      ◀─┤
//!             └─▶ Watcher: progress          cat: backing under cached extents ◀─┤
//!                                            recover: dirty data → backing     ◀─┤
//!                                            pack: the metadata in one file    ◀─┤
//!                                            repair, restore: a new set        ◀─┘
//! ```
//!
//! Imports go from the right to the left: `io`, `set` ◀ `walk` ◀ `check`, `cat`, `write` ◀ the
//! other tools.
//!
//! | module | holds |
//! |---|---|
//! | `io` | bounded reads, read-ahead, thread pool, ordered queue, buffer pool, [`Progress`] |
//! | `set` | the nouns: [`View`], [`Journal`], [`Extent`], [`Bucket`], [`Finding`], [`Report`] |
//! | `walk` | [`walk()`], [`Visitor`], [`open_set`]: reading a set, and the owner of each bucket |
//! | `check` | [`check()`]: backing devices, and data against them |
//! | `dump` | [`Dump`]: everything as lines of text or JSON |
//! | `cat` | [`VolumeMap`], [`read_volume`]: the content of a volume |
//! | `write` | new trees and new sets |
//! | `recover` | [`recover()`]: dirty data to the backing device |
//! | `repair` | [`survey`], [`write_repaired`]: a damaged set as far as it is certain |
//! | `pack` | [`pack()`]: the metadata in one file; [`Cache`]: a device, or a pack read as one |
//! | `restore` | [`dump_for_restore`], [`restore()`]: metadata as lines of text, and back |
//! | `make` | [`make_device`]: a superblock onto a device |
//! | `shift` | [`begin_move`], [`resume_move`]: the data of a disk, up or down by some sectors |
//! | `error` | [`OfflineError`] |
//!
//! Nothing here panics, whatever the bytes are.
#![forbid(unsafe_code)]

mod cat;
mod check;
mod dump;
mod error;
mod io;
mod make;
mod pack;
mod recover;
mod repair;
mod restore;
mod set;
mod shift;
mod walk;
mod write;

pub use cat::{DataPart, Segment, Source, VolumeMap, map_backed, map_flash_only, read_volume};
pub use check::{CheckOptions, Checked, check};
pub use dump::{Dump, DumpPart};
pub use error::{OfflineError, On};
pub use io::{Progress, Watcher};
pub use make::make_device;
pub use pack::{Cache, PackError, Packed, Packing, is_pack, pack};
pub use recover::{Outcome, RecoverOptions, Recovered, recover};
pub use repair::{
    Repair, RepairOptions, Uncertain, copy_device, survey, unreadable_data, write_repaired,
};
pub use restore::{
    Dumped, Lines, Restored, Standing, TargetState, dump_for_restore, look_at_target, read_dump,
    restore,
};
pub use set::{
    Bucket, EntryPlace, Extent, Finding, FindingKind, FoundEntry, Journal, Location, Lost, Owner,
    Report, Severity, Site, Stats, View,
};
pub use shift::{
    LEAST_SECTORS, MoveError, MovePlan, MoveState, NEW_WORK, Resumed, Stage, VEIL_MAGIC,
    begin_move, has_head, is_new_work, read_move, resume_move, veiled, work_bytes,
};
pub use walk::{DeviceKind, NodeVisit, PrioElement, Visitor, kind_of, open_set, walk};
