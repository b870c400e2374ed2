//! The running set, its clients, its report.
//!
//! | module | holds |
//! |---|---|
//! | [`daemon`] | the running set and its volumes, with their operations |
//! | [`listen`] | sockets for NBD clients |
//! | [`report`] | the object of `status --json` |
//! | [`world`] | the engine's world: the host's, with files that can be slowed down |

pub mod daemon;
pub mod listen;
pub mod report;
pub mod world;
