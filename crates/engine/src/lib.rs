//! The cache: a bcache set driven in user space, with a coherence protocol that keeps a clean
//! cached sector equal to its backing sector under every interleaving, error and power cut.
//!
//! The crate is pure: it reaches devices, clock, tasks and randomness through [`ubcache_env`]
//! only, runs on one thread, and what stands between two awaits is atomic. The simulator runs
//! exactly this code.
//!
//! Modules from the highest to the lowest: each imports what is below it, which a test over the
//! imports keeps (`xtask/tests/circles.rs`).
//!
//! | module | holds |
//! |---|---|
//! | `set` | opening, attaching, stopping, failing |
//! | `volume` | a volume: what frontends call |
//! | `request` | reads, writes, flushes, discards |
//! | `writeback` | dirty data to the backing device |
//! | `scrub` | clean data compared with the backing device |
//! | `inspect`, `memory_held` | what is in memory, for assertions from outside, and how much |
//! | `coherence` | the in-flight table, what is un-flushed, what is unpublished |
//! | `bypass` | which requests go past the cache |
//! | `flash` | flash-only volumes: what frontends call of them |
//! | `gc` | passes over the index, moving data together |
//! | `volume_table` | the backing devices that the set knows |
//! | `index` | the btree: leaves, look-ups, changes, node writes, splits |
//! | `alloc` | buckets, generations, prio chain, room for data |
//! | `replacement` | which buckets of clean data go first |
//! | `bucket_set` | a set of buckets, a bit for each |
//! | `journal` | records, group commit, replay, reclaim |
//! | `context` | what every part uses: clock, cache device, geometry, settings, health |
//! | `counted_device`, `lost_by_failed_flush` | a device: its traffic, and what a failed flush cost |
//! | `mirror` | sectors in which a backing device and its successor may differ (A11) |
//! | `move_log` | regions in which the two may differ after a crash (A13) |
//! | `write_turns` | turns of those who write or copy overlapping ranges (T5, A11) |
//! | `health` | the life of a set, and its failure |
//! | `superblock` | reading and writing superblocks |
//! | `time_slices` | loops over all buckets, so that no poll grows with the cache |
//! | [`events`] | what an operator wants to read about, in a queue |
//! | `settings`, `stats`, `errors`, `tuning` | attributes, counters, error types, limits |
//! | [`marks`] | named points that the simulator counts |
//! | `rules` | the rules of docs/internals/coherence.md that the code says it keeps |
//! | `mutants` | rules that the simulator switches off to see whether it notices; not in the product |
//!
//! Rules are cited by number (T1, W3, B4 …) from `docs/internals/coherence.md`, the format by
//! section from `docs/reference/format.md`.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

mod alloc;
mod bucket_set;
mod bypass;
mod coherence;
mod context;
mod counted_device;
mod errors;
pub mod events;
mod flash;
mod gc;
mod health;
mod index;
pub mod inspect;
mod journal;
mod lost_by_failed_flush;
pub mod marks;
mod memory_held;
mod mirror;
mod move_log;
#[cfg(feature = "mutants")]
mod mutants;
mod replacement;
mod request;
pub mod rules;
mod scrub;
mod set;
pub mod settings;
pub mod stats;
mod superblock;
mod time_slices;
mod tuning;
mod volume;
mod volume_table;
mod write_turns;
mod writeback;

pub use coherence::{OwedErrors, OwedStream};
pub use errors::{EngineError, MoveEnd, ShrinkEnd};
pub use flash::FlashVolume;
pub use flash::exported::Exported;
pub use journal::kept::{KEPT_BYTES, KeptOutcome, KeptState};
pub use memory_held::{Held, HeldKind};
#[cfg(feature = "mutants")]
pub use mutants::{Mutant, UnknownMutant};
pub use rules::{MUTANTS_COMPILED, Rules};
pub use set::absent_disks::Absent;
pub use set::attach::{AttachOptions, CacheUse};
pub use set::flash::{FLASH_SECTORS_MAX, FlashSlot};
pub use set::former_owner::{FormerRun, TakenOver};
pub use set::move_backing::NotMoved;
pub use set::move_copy::{BackingMove, MoveNames, MoveProgress};
pub use set::resize::Resized;
pub use set::run_numbers::Choice;
pub use set::smaller_cache::{CacheShrink, ShrinkProgress};
pub use set::{CacheSet, Replayed, SetOptions};
pub use settings::AttributeError;
pub use stats::scrub::{ScrubState, ScrubStatus};
pub use stats::{
    DeviceCounters, DeviceLatencies, FlashStatus, SetStatus, StopStep, VolumeCounters, VolumeState,
    VolumeStatus, WritebackActivity,
};
pub use tuning::{EXTENT_MEMORY_BYTES, Generations, ReadAheadTuning, Tuning};
pub use volume::CachedVolume;
pub use volume::remembered::Remembered;
pub use volume::replaceable::{Exchange, ServedVolume};
