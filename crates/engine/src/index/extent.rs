//! Extents and their order: what every part of the index speaks of.

use ubcache_env::{Sector, SectorRange};
use ubcache_format::{Inode, Key, MAX_EXTENT_SECTORS, PackedKey, Pointer, packed_extent};

/// A place in the order of keys.
pub(crate) type Position = (Inode, Sector);

/// The lowest place; no key lies there.
pub(crate) const FIRST: Position = (Inode(0), Sector(0));
/// The key position of the rightmost node of every level.
pub(crate) const LAST: Position = (Inode(Key::MAX_INODE), Sector(Key::MAX_END));

/// A cached range: which sectors of which volume, and where on the cache device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub inode: Inode,
    /// In sectors of the backing device, data offset included (docs/reference/format.md).
    pub range: SectorRange,
    pub dirty: bool,
    /// Place of the first sector of the range.
    pub pointer: Pointer,
}

impl Extent {
    /// The part within `range`, which must overlap.
    pub fn cut(&self, range: SectorRange) -> Extent {
        let part = self.range.intersect(&range);
        assert!(!part.is_empty(), "{part} of {} is not empty", self.range);
        let pointer = self.pointer.advance(part.start - self.range.start);
        Extent { range: part, pointer, ..*self }
    }

    /// Returns true if the format allows this extent and the one behind it to be one.
    pub fn joins(&self, right: &Extent, bucket_sectors: u32) -> bool {
        self.inode == right.inode
            && self.range.end == right.range.start
            && self.dirty == right.dirty
            && self.pointer.advance(self.range.sectors()) == right.pointer
            && self.pointer.bucket(bucket_sectors) == right.pointer.bucket(bucket_sectors)
            && self.range.sectors() + right.range.sectors() <= MAX_EXTENT_SECTORS
    }

    pub fn key(&self) -> Key {
        Key::extent(self.inode, self.range, self.dirty, self.pointer)
    }

    /// The same as it is on disk.
    pub fn packed_key(&self) -> PackedKey {
        packed_extent(self.inode, self.range, self.dirty, self.pointer)
    }
}

/// The largest hole, as the driver writes them.
pub(crate) const HOLE_SECTORS_MAX: u64 = 32768;

/// Holes in pieces that are not too large.
pub(crate) fn push_holes(keys: &mut Vec<Key>, inode: Inode, range: SectorRange) {
    let mut at = range.start;
    while at < range.end {
        let end = Sector(range.end.0.min(at.0 + HOLE_SECTORS_MAX));
        keys.push(Key::hole(inode, SectorRange::from_bounds(at, end)));
        at = end;
    }
}

/// Number of records that it takes to remove every key of a range.
pub(crate) fn removal_records(range: SectorRange) -> usize {
    range.sectors().div_ceil(HOLE_SECTORS_MAX) as usize
}
