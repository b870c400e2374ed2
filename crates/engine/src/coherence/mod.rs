//! The protocol that keeps a clean cached sector equal to its backing sector
//! (docs/internals/coherence.md).
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | who is in flight over which sectors (rules T1–T4) |
//! | [`unflushed`] | what the backing device may still lose (W5, C1, F1), and what it may have lost (F5) |
//! | [`flush_errors`] | errors of failed flushes that clients have to get (F4) |
//! | [`unpublished`] | clean copies that are not in the index yet (C1, C2) |
//! | [`zeroes`] | what discards put below dirty data (R5) |
//!
//! Ghosts, what a crash may bring back, are kept with the index: `index/change.rs`.

pub(crate) mod flush_errors;
pub(crate) mod table;
pub(crate) mod unflushed;
pub(crate) mod unpublished;
pub(crate) mod zeroes;
