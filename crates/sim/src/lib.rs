//! The simulated world: everything that decides how a run goes is drawn from a seed.
//!
//! The cache engine, the frontends and the offline tools reach the world through the traits of
//! `ubcache-env` only. This crate implements them with virtual time on one thread, so that a run
//! of hours takes milliseconds and the same seed always gives the same run.
//!
//! ```text
//!            plan (text, drawn from the seed)
//!              │
//!  runner ─── clients ── oracle (what may each sector hold?)
//!              │
//!           Front: the volume, or an NBD server before it
//!              │
//!           System: the engine, or a fake system
//!              │
//!  SimEnv · SimDisk · SimStream ── world: tasks, clock, events, trace hash
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`rng`] | the random numbers |
//! | [`executor`] | [`SimWorld`], [`SimEnv`]: tasks, clock, schedules, trace hash, deadlocks |
//! | [`disk`] | [`SimDisk`]: volatile caches, tears, power failures, errors, latencies |
//! | [`crash`] | ends of an instance without a stop, and the memory that outlives its process |
//! | [`stream`] | [`SimStream`]: byte streams cut anywhere, delays, disconnects |
//! | [`front`] | what clients talk to: volumes, or servers of NBD, ublk or vhost-user before them |
//! | `places` | memory of requesters, to which disks read past the program |
//! | [`oracle`] | what a read may return: a register monitor for every sector |
//! | [`plan`] | what happens in a run, as data: drawn, printed, parsed |
//! | [`system`] | [`System`]: what the runner drives |
//! | [`runner`] | [`run_plan`]: one run from start to verdict |
//! | [`backings`] | backing devices, one of which may move to another disk |
//! | [`bypass_race`] | the race of a bypass write with a read, in three chapters |
//! | [`shrink`] | cuts a failing plan down |
//! | [`fake_systems`] | small systems, right and wrong, that show that the oracle bites |
//! | [`cache_system`] | the real engine as a [`System`] |
//! | `lanes` | volumes whose clients are served by lanes |
//! | [`marks`] | extremes of load and shape that seeds have to reach |
//! | [`remote`] | a backing device behind an NBD server that cuts, hangs and dies |
//! | [`stored`] | a backing device on an object store that is late, and has old writers |
//! | [`far`] | either of them |
//! | [`memory_invariants`] | invariants of what a running volume has in memory |
//! | [`driver`] | a run of the Linux driver between two of the engine |
//! | [`inspect`] | the offline check over the disks of a run |
//! | `find_mutants` | looks for the seed that finds a mutant of the engine (feature `mutants`) |
//!
//! Replaying and reading a failure: `docs/internals/simulation.md`.
#![forbid(unsafe_code)]

pub mod backings;
pub mod bypass_race;
pub mod cache_system;
pub mod crash;
pub mod disk;
pub mod driver;
pub mod executor;
pub mod fake_systems;
pub mod far;
#[cfg(feature = "mutants")]
pub mod find_mutants;
pub mod front;
pub mod inspect;
mod lanes;
pub mod marks;
pub mod memory_invariants;
pub mod oracle;
mod places;
pub mod plan;
pub mod remote;
pub mod rng;
pub mod runner;
pub mod shrink;
pub mod stored;
pub mod stream;
pub mod system;

pub use crash::Crash;
pub use disk::{DiskConfig, Profile, SimDisk};
pub use executor::{Policy, SimEnv, SimWorld, Stuck, WorldConfig};
pub use places::ForeignPage;
pub use plan::Plan;
pub use rng::Rng;
pub use runner::{Outcome, RunOptions, run_plan};
pub use stream::SimStream;
pub use system::System;
