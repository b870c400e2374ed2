//! A volume in memory.

#![allow(unused_imports, reason = "each test uses a part")]

pub use ubcache_env::testing::{Asked, MemoryVolume};
