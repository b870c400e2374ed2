//! State of the buckets beyond the end of a cache that becomes smaller (A12).

use std::collections::BTreeSet;

use ubcache_format::BucketNr;

/// The way in which dirty data beyond the end is moved.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) enum Pace {
    /// Waits for room.
    #[default]
    Waits,
    /// There was no room for a piece in this round: the others do not wait for any.
    Tries,
    /// The cache is to keep its size: nothing is moved any more.
    Ended,
}

/// State of buckets beyond the end.
#[derive(Default, Debug)]
pub(crate) struct Evacuation {
    pub pace: Pace,
    /// Buckets that the chain on the device promises to the next start.
    pub promised: BTreeSet<BucketNr>,
}
