//! The running set, its clients, its report.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | lines of the log about clients |
//! | [`daemon`] | the running set and its volumes, with their operations |
//! | [`events`] | words for what happens to the set |
//! | [`health`] | health of a set, and warnings in words |
//! | [`listen`] | sockets for NBD clients |
//! | [`pace`] | speed of writeback |
//! | [`report`] | the object of `status --json` |
//! | [`systemd`] | messages to systemd |
//! | [`watch`] | regular looks at the set |
//! | [`world`] | the engine's world: opening of devices and sockets |

pub mod client;
pub mod daemon;
pub mod events;
pub mod health;
pub mod listen;
pub mod pace;
pub mod report;
pub mod systemd;
pub mod watch;
pub mod world;
