//! The running set, its clients, its report.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | lines of the log about clients |
//! | [`daemon`] | the running set and its volumes, with their operations |
//! | [`events`] | words for what happens to the set |
//! | [`listen`] | sockets for NBD clients |
//! | [`report`] | the object of `status --json` |
//! | [`world`] | the engine's world: opening of devices and sockets |

pub mod client;
pub mod daemon;
pub mod events;
pub mod listen;
pub mod report;
pub mod world;
