//! The running set, its clients, its report.
//!
//! | module | holds |
//! |---|---|
//! | [`daemon`] | the running set and its volumes, with their operations |
//! | [`listen`] | sockets for NBD clients |
//! | [`report`] | the object of `status --json` |
//! | [`world`] | the engine's world: opening of devices and sockets |

pub mod daemon;
pub mod listen;
pub mod report;
pub mod world;
