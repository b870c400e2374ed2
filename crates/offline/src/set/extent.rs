//! An extent: a range of a volume, and where its data is.

use ubcache_format::{
    Generation, Inode, Key, Layer, PLACEHOLDER_DEVICE, PlainKey, Pointer, Sector, SectorRange,
};

const DIRTY: u8 = 1;
const REPLAYED: u8 = 2;
const NO_POINTER: u8 = 4;
const CSUM_SHIFT: u8 = 3;

/// An extent of the combined view of tree and journal, in 24 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    end: u64,
    offset: u64,
    inode: u32,
    sectors: u16,
    generation: u8,
    flags: u8,
}

impl Extent {
    pub(crate) fn new(key: &Key, replayed: bool) -> Extent {
        let pointer = key.pointer();
        let mut flags = 0;
        flags |= if key.dirty { DIRTY } else { 0 };
        flags |= if replayed { REPLAYED } else { 0 };
        flags |= if pointer.is_none() { NO_POINTER } else { 0 };
        flags |= (key.csum & 3) << CSUM_SHIFT;
        let pointer = pointer.unwrap_or(Pointer {
            device: PLACEHOLDER_DEVICE,
            offset: Sector(0),
            generation: Generation(0),
        });
        Extent {
            end: key.end.0,
            offset: pointer.offset.0,
            inode: key.inode.0,
            sectors: key.sectors,
            generation: pointer.generation.0,
            flags,
        }
    }

    /// Converts a key of a leaf.
    #[inline]
    pub(crate) fn of(key: &PlainKey) -> Extent {
        let pointer = key.pointer.filter(|pointer| pointer.is_available());
        let mut flags = (key.csum & 3) << CSUM_SHIFT;
        flags |= if key.dirty { DIRTY } else { 0 };
        flags |= if pointer.is_none() { NO_POINTER } else { 0 };
        Extent {
            end: key.end.0,
            offset: pointer.map_or(0, |pointer| pointer.offset.0),
            inode: key.inode.0,
            sectors: key.sectors,
            generation: pointer.map_or(0, |pointer| pointer.generation.0),
            flags,
        }
    }

    /// The volume.
    pub const fn inode(&self) -> Inode {
        Inode(self.inode)
    }

    /// The part of the volume, in key sectors (docs/reference/format.md §4.3).
    pub const fn range(&self) -> SectorRange {
        SectorRange::from_bounds(
            Sector(self.end.saturating_sub(self.sectors as u64)),
            Sector(self.end),
        )
    }

    /// Place of the data; `None` for holes and placeholders.
    pub const fn pointer(&self) -> Option<Pointer> {
        if self.flags & NO_POINTER != 0 {
            return None;
        }
        Some(Pointer {
            device: 0,
            offset: Sector(self.offset),
            generation: Generation(self.generation),
        })
    }

    /// Returns true if the cache has the only copy.
    pub const fn is_dirty(&self) -> bool {
        self.flags & DIRTY != 0
    }

    /// The kind of data checksum, which means nothing (docs/reference/format.md §4.6).
    pub const fn csum(&self) -> u8 {
        self.flags >> CSUM_SHIFT
    }

    /// Returns true if it comes from the journal.
    pub const fn is_replayed(&self) -> bool {
        self.flags & REPLAYED != 0
    }
}

impl Layer for Extent {
    fn inode(&self) -> Inode {
        Inode(self.inode)
    }
    fn range(&self) -> SectorRange {
        Extent::range(self)
    }
    fn part(&self, range: SectorRange) -> Extent {
        let part = self.range().intersect(&range);
        let skipped = part.start - self.range().start;
        let offset =
            if self.flags & NO_POINTER == 0 { self.offset.saturating_add(skipped) } else { 0 };
        let sectors = u16::try_from(part.sectors()).unwrap_or(u16::MAX);
        Extent { end: part.end.0, offset, sectors, ..*self }
    }
}
