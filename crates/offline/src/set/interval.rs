//! Positions in the tree, and intervals of keys.

use ubcache_format::{Inode, Key, Sector, SectorRange};

/// The end of a key: its volume and its end in key sectors.
pub(crate) type Position = (Inode, Sector);

/// The first position there is.
pub(crate) const START: Position = (Inode(0), Sector(0));

/// A position behind all keys.
pub(crate) const END: Position = (Inode(Key::MAX_INODE), Sector(u64::MAX));

/// An interval of keys, of which what the tree says is not known.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The interval begins behind this key, …
    pub after: (Inode, Sector),
    /// … and ends with this one.
    pub upto: (Inode, Sector),
}

impl Lost {
    /// The part of the interval in a volume.
    pub fn in_volume(&self, inode: Inode) -> Option<SectorRange> {
        if inode < self.after.0 || inode > self.upto.0 {
            return None;
        }
        let start = if inode == self.after.0 { self.after.1 } else { Sector(0) };
        let end = if inode == self.upto.0 { self.upto.1 } else { Sector(Key::MAX_END) };
        Some(SectorRange::from_bounds(start, end)).filter(|range| !range.is_empty())
    }
}
