//! Memory that grows with load or size, as counts of entries (S2, docs/internals/coherence.md §8).
//!
//! Buffers for I/O are counted where they come from, by [`ubcache_env::BufPool`]. This is the rest:
//! every structure that holds more the more requests are under way, the more was written, or the
//! larger the cache is. A count costs the same whatever it says, so that the simulator can ask
//! after every poll.

use std::mem::size_of;

use crate::coherence::in_flight_table::ENTRY_BYTES;
use crate::coherence::unpublished::COPY_BYTES;
use crate::tuning::{EXTENT_MEMORY_BYTES, TREE_SLACK};

/// An interval of sectors with a number.
const INTERVAL_BYTES: u64 = TREE_SLACK * size_of::<[u64; 3]>() as u64;
/// A client that is kept book of, with its place in a tree.
const STREAM_BYTES: u64 = TREE_SLACK * size_of::<[u64; 3]>() as u64;
/// Record of a bucket: generations, ages, counts, its place in the order of eviction.
const BUCKET_BYTES: u64 = 64;

/// Entries that a set and its volumes hold at a moment.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Buckets of the cache device.
    pub buckets: u64,
    /// Extents of the index that are in memory.
    pub extents: u64,
    /// Ranges whose old key a crash may bring back.
    pub ghosts: u64,
    /// Entries of the in-flight tables: requests, fills, writebacks.
    pub in_flight: u64,
    /// Clean copies that have no key yet.
    pub copies: u64,
    /// Ranges that a backing device may lose, or may have lost.
    pub unflushed: u64,
    /// Clients that are told of failed flushes.
    pub streams: u64,
}

/// Entries of one kind.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct HeldKind {
    /// Name of the kind, in the plural.
    pub name: &'static str,
    /// Number of entries.
    pub count: u64,
    /// Memory that one takes at most.
    pub bytes_each: u64,
}

impl Held {
    /// All kinds.
    pub fn kinds(&self) -> [HeldKind; 7] {
        let kind = |name, count, bytes_each| HeldKind { name, count, bytes_each };
        [
            kind("buckets", self.buckets, BUCKET_BYTES),
            kind("extents", self.extents, EXTENT_MEMORY_BYTES),
            kind("ghosts", self.ghosts, INTERVAL_BYTES),
            kind("entries of in-flight tables", self.in_flight, ENTRY_BYTES),
            kind("unpublished copies", self.copies, COPY_BYTES),
            kind("un-flushed and suspect ranges", self.unflushed, INTERVAL_BYTES),
            kind("streams", self.streams, STREAM_BYTES),
        ]
    }

    /// Memory that all of it takes at most.
    pub fn bytes(&self) -> u64 {
        self.kinds().iter().map(|kind| kind.count.saturating_mul(kind.bytes_each)).sum()
    }
}
