//! The protocol that keeps a clean cached sector equal to its backing sector
//! (docs/internals/coherence.md).
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | who is in flight over which sectors (rules T1–T4) |
//! | [`unflushed`] | what the backing device may still lose (W5, C1, F1), and what it may have lost (F5) |
//! | [`flushes`] | flushes of the backing device: which one covers what (F1), and how many failed |
//! | [`flush_errors`] | errors of failed flushes that clients have to get (F4) |
//! | [`unpublished`] | clean copies that are not in the index yet (C1, C2) |
//! | [`zeroes`] | what discards put below dirty data (R5) |
//!
//! Ghosts, what a crash may bring back, are kept with the index: `index/change.rs`.

use std::cell::RefCell;

use flush_errors::FlushErrors;
use flushes::Flushes;
use table::InFlight;
use unflushed::Unflushed;
use unpublished::Unpublished;
use zeroes::Zeroes;

use crate::rules::Rules;

pub(crate) mod flush_errors;
pub(crate) mod flushes;
pub(crate) mod table;
pub(crate) mod unflushed;
pub(crate) mod unpublished;
pub(crate) mod zeroes;

/// Memory of a volume for the protocol.
pub(crate) struct Coherence {
    pub inflight: InFlight,
    pub unflushed: RefCell<Unflushed>,
    pub unpublished: RefCell<Unpublished>,
    pub zeroes: Zeroes,
    pub flushes: Flushes,
    pub flush_errors: RefCell<FlushErrors>,
}

impl Coherence {
    /// Nothing is in flight, un-flushed or unpublished.
    pub fn new(volatile_cache: bool, rules: Rules) -> Coherence {
        Coherence {
            inflight: InFlight::new(rules),
            unflushed: RefCell::new(Unflushed::new(volatile_cache, rules)),
            unpublished: RefCell::default(),
            zeroes: Zeroes::default(),
            flushes: Flushes::default(),
            flush_errors: RefCell::default(),
        }
    }
}
