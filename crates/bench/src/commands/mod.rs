//! Subcommands that measure ubcache itself.

pub mod engine;
pub mod guest;
pub mod nbd;
pub mod polls;
pub mod replay;
pub mod served;
pub mod size;
pub mod suite;
