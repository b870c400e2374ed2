//! Requests of clients.
//!
//! | module | holds |
//! |---|---|
//! | [`client_calls`] | the calls of frontends: bypass or not, writeback or not |
//! | [`cache_io`] | data to its places on the cache device |
//! | [`read`] | reads: hits, misses, fills (R1–R4) |
//! | [`write`] | writes of every mode, zeroes (W1–W6, K1–K3) |
//! | [`partial_blocks`] | writes of parts of blocks (T5) |
//! | [`block_status`] | what the cache and the backing device have of a range |
//! | [`discard`] | discards (D1) |
//! | [`flush`] | flushing the backing device and the journal (F1–F3) |
//! | [`publish`] | putting clean copies into the index (C1, C2) |
//! | [`passthrough`] | requests when the cache has failed (A4) |

mod block_status;
pub(crate) mod cache_io;
mod client_calls;
pub(crate) mod discard;
pub(crate) mod flush;
pub(crate) mod partial_blocks;
pub(crate) mod passthrough;
pub(crate) mod publish;
pub(crate) mod read;
pub(crate) mod write;
