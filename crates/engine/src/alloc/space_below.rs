//! Space below the device: a sparse file on a full file system has none for what was never written
//! (docs/internals/coherence.md, rules N1 to N4).
//!
//! ```text
//!  free: not known ──allocate──▶ free: has space ──▶ metadata first, data only beyond the reserve
//!       │                             ▲
//!       │ a write was refused         │ tried again, now and then
//!       └────────────▶ put aside ─────┘
//! ```

use std::collections::{BTreeSet, VecDeque};

use ubcache_env::Nanos;
use ubcache_format::BucketNr;

use crate::bucket_set::BucketSet;

/// So many are tried the first time; twice as many each time when all of them had space.
pub(super) const TRIED_MIN: usize = 64;

/// Knowledge of the space that buckets have.
#[derive(Debug)]
pub(crate) struct Space {
    /// The device has allocated the bucket in full.
    pub(super) has: BucketSet,
    /// A write was refused: put aside when it would be free.
    pub(super) lacks: BTreeSet<BucketNr>,
    /// Of these, the last one that was tried again.
    pub(super) tried_to: BucketNr,
    pub(super) aside: VecDeque<BucketNr>,
    pub(super) try_at: Nanos,
    pub(super) tried: usize,
}

impl Space {
    pub fn new(buckets: u32) -> Space {
        Space {
            has: BucketSet::new(buckets),
            lacks: BTreeSet::new(),
            tried_to: BucketNr(0),
            aside: VecDeque::new(),
            try_at: Nanos(0),
            tried: TRIED_MIN,
        }
    }
}
