//! A small world for tests: an executor, a connection in memory, a volume in memory, a client.
#![allow(dead_code, reason = "every test file uses another part")]

pub mod client;
pub mod server;
pub mod slow;
pub mod volume;
pub mod world;
