//! The on-disk format of Linux bcache: bytes in, typed values out, and back. No I/O, and no way to
//! panic whatever the bytes are. `docs/reference/format.md` is the description that this crate
//! follows.
//!
//! ```text
//!  superblock ──▶ Geometry            who the device is, and the sizes that everything else depends on
//!      │
//!      ▼
//!  journal ─────▶ ReplayRange         the newest entry describes the set, older ones still hold extents
//!      │  ├──▶ prio                   the generation of every bucket: which pointers are stale
//!      │  ├──▶ uuids                  which volume has which inode
//!      │  └──▶ node ◀── bset ◀── key  the btree: which sectors of which volume are where
//! ```
//!
//! | Module | What is in it |
//! |---|---|
//! | `units` | sectors, buckets, generations, UUIDs: a type for every kind of number |
//! | `geometry` | sizes and magic numbers that follow from a cache superblock |
//! | `checksum` | the CRC in its three parametrisations |
//! | `superblock` | superblocks of both kinds of devices |
//! | `header` | header files: the superblock of a disk that has none |
//! | `move_record` | what a disk says that a volume is moved to, or was moved from |
//! | `pointer`, `key`, `key_checks` | pointers, keys, and the checks that apply to them |
//! | `plain_key` | keys with one pointer at most, read without allocation |
//! | `packed` | keys as they are on disk |
//! | `bset`, `node` | the parts of a btree node |
//! | `layer` | how the bsets of a leaf combine |
//! | `salvage` | salvage of a damaged node |
//! | `journal` | journal entries, and which of them to replay |
//! | `stamp` | who wrote an entry |
//! | `prio`, `uuids` | bucket generations, and the volume table |
//! | `words` | words of bcache's programs for modes, states and policies |
//! | `error` | defects: the structure, the place, the value found, the value expected |

#![forbid(unsafe_code)]

mod bset;
mod bytes;
mod checksum;
mod error;
mod geometry;
mod header;
mod journal;
mod key;
mod key_checks;
mod layer;
mod move_record;
mod move_regions;
mod node;
mod packed;
mod plain_key;
mod pointer;
mod prio;
mod run_numbers;
mod salvage;
mod stamp;
mod superblock;
mod units;
mod uuids;
mod words;

pub use bset::*;
pub use checksum::*;
pub use error::*;
pub use geometry::*;
pub use header::*;
pub use journal::*;
pub use key::*;
pub use layer::*;
pub use move_record::*;
pub use move_regions::*;
pub use node::*;
pub use packed::*;
pub use plain_key::*;
pub use pointer::*;
pub use prio::*;
pub use run_numbers::*;
pub use salvage::*;
pub use stamp::{Drops, LastRun, OwnPolicy, Padding, Stamp};
pub use superblock::*;
pub use units::*;
pub use uuids::*;
