//! Requests of clients.
//!
//! | module | holds |
//! |---|---|
//! | [`client_calls`] | the calls of frontends: bypass or not, writeback or not |
//! | [`cache_io`] | data to its places on the cache device |
//! | [`read`] | reads: hits, misses, fills (R1–R5) |
//! | [`write`] | writes of every mode, zeroes (W1–W6, K1–K3) |
//! | [`partial_blocks`] | writes of parts of blocks (T5) |
//! | [`range_map`] | what the cache has of each part of a volume |
//! | [`block_status`] | what the cache and the backing device have of a range |
//! | [`discard`] | discards (D1) |
//! | [`flush`] | flushing the backing device and the journal (F1–F5) |
//! | [`publish`] | putting clean copies into the index (C1, C2) |
//! | [`passthrough`] | requests of a volume without a cache: it has failed (A4), or was detached |

mod block_status;
pub(crate) mod cache_io;
mod client_calls;
pub(crate) mod discard;
pub(crate) mod flush;
pub(crate) mod partial_blocks;
pub(crate) mod passthrough;
pub(crate) mod publish;
mod range_map;
pub(crate) mod read;
pub(crate) mod write;
