//! What measures ubcache itself, as subcommands.

pub mod engine;
pub mod nbd;
pub mod polls;
pub mod suite;
