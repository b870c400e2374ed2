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
//! | [`config`] | what `serve` is told to do |
//! | [`precheck`] | what is checked before anything is changed |
//! | [`mod@serve`] | the daemon: open, serve, stop |
//! | [`world`] | the engine's world: the host's, with files that can be slowed down |
//! | [`listen`] | where NBD clients come in |
//! | [`control`], [`control_server`] | the control protocol: client and daemon |
//! | [`report`] | what `status --json` prints |
//! | [`failure`] | failures in words for the user, with their exit codes |
//! | [`target`] | devices and files before they are served: opening, size, locking |
//! | [`superblock`] | reading superblocks, and what is wrong with them in words |
//! | [`probe`] | recognizing file systems and other things of value on a device |
//! | [`size`] | sizes as people write them |
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the daemon lives in the real world, with its clock and its threads"
)]

pub mod config;
pub mod control;
pub mod control_server;
pub mod failure;
pub mod listen;
pub mod precheck;
pub mod probe;
pub mod report;
pub mod serve;
pub mod size;
pub mod superblock;
pub mod target;
pub mod world;

pub use config::{NbdAddress, ServeConfig};
pub use failure::{Code, Failure};
pub use serve::{Ready, serve};
pub use ubcache_engine::MUTANTS_COMPILED;
pub use ubcache_host::PageCache;
