//! Block devices of the kernel that are served from user space: `/dev/ublkb0`.
//!
//! The driver of ublk (Linux 6.5) makes a block device for each volume, and keeps the commands that
//! a server gives it until it has requests. Nothing here does I/O of its own: commands go through
//! [`CommandDevice`](ubcache_env::CommandDevice) and [`ControlDevice`], which the host has, and the
//! simulator.
//!
//! | module | holds |
//! |---|---|
//! | [`abi`] | numbers and structures of the driver |
//! | [`features`] | abilities of a driver, and those that are used |
//! | [`parameters`] | properties of a volume in the form of the driver |
//! | [`control`] | making, starting, recovering and removing of devices |
//! | [`server`] | requests of a queue, carried out on a volume |
//!
//! ```text
//!  /dev/ublk-control ◄── control: ADD_DEV, SET_PARAMS, START_DEV, recovery …   (may wait: a thread)
//!  /dev/ublkc0 ◄── server: FETCH ─► request ─► Volume ─► COMMIT_AND_FETCH      (the set's own thread)
//!  /dev/ublkb0 ── file systems and programs
//! ```

#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod abi;
pub mod control;
pub mod features;
pub mod parameters;
pub mod server;

pub use control::{Control, ControlDevice, ControlError, DeviceInfo, DeviceState};
pub use features::Features;
pub use parameters::Parameters;
pub use server::{Pace, QueueEnd, QueueOptions, Requests, serve_queue};
