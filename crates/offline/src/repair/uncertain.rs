//! A part of a volume of which the newest data is not certain.

use ubcache_format::{Inode, Key, Pointer, Sector, SectorRange};

/// A part of a volume of which the newest data is not certain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uncertain {
    /// The volume.
    pub inode: Inode,
    /// The part, in key sectors (docs/reference/format.md §4.3).
    pub range: SectorRange,
    /// Places on the cache device that may have newer data than the backing device: one for each
    /// version that was found. An empty list: no version was found, but there may have been one.
    pub places: Vec<Pointer>,
}

/// The key sectors that are uncertain.
pub(crate) fn is_beyond(range: &SectorRange) -> bool {
    range.end >= Sector(Key::MAX_END)
}
