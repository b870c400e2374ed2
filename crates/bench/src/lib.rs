//! Measurements: the hit ratio of a cache of a given size for a recorded load, and the cost of
//! ubcache.
//!
//! ```text
//!  file ── trace: requests ── blocks of 4 KiB ──┬─ reuse distances (of the engine) ── curve: hits by cache size
//!                                               └─ buckets: a cache that evicts whole buckets, as bcache's
//!                                                                    report: table, JSON, SVG
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`trace`] | reading recorded loads, in the formats of several tools |
//! | [`curve`] | the miss-ratio curve of an LRU cache, for all sizes in one pass |
//! | [`buckets`] | a cache of buckets, filled in order and evicted as a whole |
//! | [`through_engine`] | a trace through the engine itself |
//! | [`generate`] | loads with Zipf's law and scans, for tests |
//! | [`report`] | the printed results of a replay |
//! | [`kept`] | memory for what a killed process must not lose, in that world |
//! | [`null`] | a world in which only the engine costs anything |
//! | [`polls`] | the longest poll, in a cache of any size |
//! | [`engine`] | loads for the engine in that world, and their cost |
//! | [`guest`] | reads of a virtual machine, without the engine |
//! | [`served`] | reads by NBD, the server and the engine without sockets |
//! | [`instructions`] | the same counted in instructions |
//! | [`amplification`] | bytes written to the cache device, counted |
//! | [`suite`] | everything in docs/generated/performance.md |
//! | [`nbd`] | a load generator and the smallest server for NBD |
//! | [`allocations`], [`cpu_time`] | counters |
//! | [`random`] | random numbers of loads |
#![deny(unsafe_code)]

pub mod allocations;
pub mod amplification;
pub mod buckets;
pub mod cpu_time;
pub mod curve;
pub mod engine;
pub mod generate;
pub mod guest;
pub mod instructions;
pub mod kept;
pub mod nbd;
pub mod null;
pub mod polls;
pub mod random;
pub mod report;
pub mod served;
pub mod suite;
pub mod through_engine;
pub mod trace;

/// Bytes in a block, the unit in which hits are counted.
pub const BLOCK_BYTES: u64 = 4096;
