//! The cache: a bcache set driven in user space, with a coherence protocol that keeps a clean
//! cached sector equal to its backing sector under every interleaving, error and power cut.
//!
//! The crate is pure: it reaches devices, clock, tasks and randomness through [`ubcache_env`]
//! only, runs on one thread, and what stands between two awaits is atomic. The simulator runs
//! exactly this code.
//!
//! | module | holds |
//! |---|---|
//! | `set` | opening, attaching, stopping, failing |
//! | `volume` | a volume: what frontends call |
//! | `request` | reads, writes, flushes, discards |
//! | `context` | what every part uses: clock, cache device, geometry, settings, health |
//! | `coherence` | the in-flight table, what is un-flushed, what is unpublished |
//! | `bypass` | which requests go past the cache |
//! | `index` | the btree: leaves, look-ups, changes, node writes, splits |
//! | `journal` | records, group commit, replay, reclaim |
//! | `alloc` | buckets, generations, prio chain, room for data |
//! | `writeback` | dirty data to the backing device |
//! | `gc` | passes over the index, moving data together |
//! | `slices` | loops over all buckets, so that no poll grows with the cache |
//! | `inspect` | what is in memory, for assertions from outside |
//! | `settings`, `stats`, `errors` | attributes, counters, error types |
//! | [`marks`] | named points that the simulator counts |
//! | `rules` | the rules of docs/internals/coherence.md that the code says it keeps |
//! | `mutants` | rules that the simulator switches off to see whether it notices; not in the product |
//!
//! Rules are cited by number (T1, W3, B4 …) from `docs/internals/coherence.md`, the format by
//! section from `docs/reference/format.md`.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

mod alloc;
mod bypass;
mod coherence;
mod context;
mod errors;
mod gc;
mod health;
mod index;
pub mod inspect;
mod journal;
pub mod marks;
mod meter;
#[cfg(feature = "mutants")]
mod mutants;
mod request;
pub mod rules;
mod set;
pub mod settings;
mod slices;
pub mod stats;
mod tuning;
mod volume;
mod writeback;

pub use errors::EngineError;
#[cfg(feature = "mutants")]
pub use mutants::{Mutant, UnknownMutant};
pub use rules::{MUTANTS_COMPILED, Rules};
pub use set::absent::Absent;
pub use set::attach::AttachOptions;
pub use set::runs::Choice;
pub use set::take_over::{FormerRun, TakenOver};
pub use set::{CacheSet, SetOptions};
pub use settings::AttributeError;
pub use stats::{DeviceCounters, SetStatus, VolumeCounters, VolumeState, VolumeStatus};
pub use tuning::{EXTENT_MEMORY_BYTES, Generations, Tuning};
pub use volume::CachedVolume;
