//! A miss on its way into the cache (R3).

use smallvec::SmallVec;
use ubcache_env::local::Permit;
use ubcache_env::{SectorRange, Slice};

use crate::coherence::table::Ticket;

/// A registered fill, and its share of the memory for fills.
pub(super) struct FillTicket {
    pub entry: Ticket,
    pub _memory: Permit,
}

/// The fills of one read.
pub(crate) type Fills = SmallVec<[Fill; 1]>;

/// A miss that was answered and is to be cached.
pub(crate) struct Fill {
    pub(super) range: SectorRange,
    pub(super) data: Slice,
    pub(super) ticket: FillTicket,
}
