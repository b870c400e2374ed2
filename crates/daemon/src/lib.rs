//! Serving cache sets: everything between the command line and the engine.
//!
//! ```text
//!   ubcache serve ──▶ serve ──▶ engine (CacheSet, CachedVolume) ◀── nbd ◀── clients
//!                       │  └──▶ host (reactor, files, sockets)
//!                       └─────▶ control socket ◀── ubcache status, set, get, gc, stop
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`failure`] | failures in words for the user, with their exit codes |
//! | [`target`] | devices and files before they are served: opening, size, locking |
//! | [`superblock`] | reading superblocks, and what is wrong with them in words |
//! | [`probe`] | recognizing file systems and other things of value on a device |
//! | [`size`] | sizes as people write them |
//! | [`control`] | the control protocol, and its client |
//! | [`report`] | what `status --json` prints |
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the daemon lives in the real world, with its clock and its threads"
)]

pub mod control;
pub mod failure;
pub mod probe;
pub mod report;
pub mod size;
pub mod superblock;
pub mod target;

pub use failure::{Code, Failure};
