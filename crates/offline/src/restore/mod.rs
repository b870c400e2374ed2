//! Dumps from which a set can be built again, and building it.
//!
//! A dump is lines of JSON objects, in this order; numbers are sectors of 512 bytes, generations
//! and priorities as they are on disk:
//!
//! ```text
//!  {"type":"restore","version":1,"device_sectors":…,"journal_seq":…}
//!  {"type":"superblock","uuid":…,"set_uuid":…,"bucket_sectors":…,"block_sectors":…,"buckets":…,
//!   "bytes":hex}
//!  {"type":"volume","slot":…,"uuid":…,"label":text or "label_bytes":hex,"first_reg":…,
//!   "last_reg":…,"invalidated":…,"flash_only":…,"sectors":…}   one for each slot ever used
//!  {"type":"buckets","first":…,"generations":[…],"priorities":[…]}    1024 a line, all buckets
//!  {"type":"extent","volume":…,"sector":…,"sectors":…,"dirty":…,"at":sector,"generation":…}
//!                       all of the tree with the journal over it; holes have no "at"
//!  {"type":"end","volumes":…,"extents":…}
//! ```
//!
//! Stale extents and holes are in it as they are in the tree. Not in it: which buckets have the
//! metadata, for that is written anew into buckets that no extent uses, and the priorities of
//! buckets without data, which mean nothing.
//!
//! Restoring reads a dump twice: once to check all of it, then to write the tree while it is read.
//! Memory: 9 bytes a bucket, and 16 an extent while it is checked.

mod dump;
mod lines;
mod read;
mod target;

pub use self::dump::dump_for_restore;
pub use self::lines::Lines;
pub use self::read::{Dumped, read_dump};
pub use self::target::{Restored, Standing, TargetState, look_at_target, restore};
