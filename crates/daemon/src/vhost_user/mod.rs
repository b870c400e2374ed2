//! Disks of virtual machines: a socket of vhost-user-blk for each volume that gets one.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | volumes that get a socket, and where |
//! | [`socket`] | a socket and the guest that is connected to it |
//! | `start` | sockets of all volumes: beginning, end, change of size |
//!
//! A socket has one guest at a time: the next one is served when no request of the former one is
//! under way. A guest outlives its daemon: its monitor connects again, and requests that have no
//! answer are carried out again.

pub mod options;
pub mod socket;
mod start;

pub use options::VhostUserExport;
