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
//! | [`config`] | configuration of a set |
//! | [`config_file`] | configuration files |
//! | [`supervisor`] | several sets in one process, a thread for each |
//! | [`mod@serve`] | from start to stop: open, listen, wait, close |
//! | [`open`] | opening of devices: superblocks, checks before any change |
//! | [`backing`] | backing devices behind a network |
//! | [`served`] | the running set, its clients, its report |
//! | [`clients`] | limits on clients |
//! | [`control`] | the control protocol, client and daemon |
//! | [`list`] | devices of this machine that belong to sets |
//! | [`page`] | the status page for browsers |
//! | [`ublk`] | block devices of the kernel for volumes that are served |
//! | [`vhost_user`] | disks of virtual machines |
//! | [`tls`] | encryption of connections over TCP |
//! | [`upgrade`] | another program that goes on in this process |
//! | [`log`] | the log, which never stops the set |
//! | [`failure`] | failures as text for the user, with their exit codes |
//! | [`shell`] | words of a command line |
//! | [`size`] | sizes as people write them |
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the daemon lives in the real world, with its clock and its threads"
)]

pub mod backing;
pub mod clients;
pub mod config;
pub mod config_file;
pub mod control;
pub mod failure;
pub mod list;
pub mod log;
pub mod open;
pub mod page;
pub mod serve;
pub mod served;
pub mod shell;
pub mod size;
pub mod supervisor;
pub mod tls;
pub mod ublk;
pub mod upgrade;
pub mod vhost_user;

pub use clients::ClientLimits;
pub use config::{NbdAddress, Network, ReadOnly, ServeConfig};
pub use failure::{Code, Failure};
pub use serve::{Ready, serve};
pub use tls::TlsOptions;
pub use ubcache_engine::MUTANTS_COMPILED;
pub use ubcache_engine::settings::{default_of, table as attributes};
pub use ubcache_host::{PageCache, SocketAccess, group_id};
pub use ubcache_nbd::Rates;
pub use ubcache_ublk::Features as UblkFeatures;
pub use ublk::{UblkExport, UblkOptions};
pub use vhost_user::VhostUserExport;
