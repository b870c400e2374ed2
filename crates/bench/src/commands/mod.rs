//! Subcommands that measure ubcache itself.

pub mod engine;
pub mod nbd;
pub mod polls;
pub mod suite;
