//! Keys: what the btree and the journal are made of (docs/reference/format.md §4).
//!
//! ```text
//! high  63│62 60│59 58│57 56│55      37│ 36  │35      20│19          0│
//!        1│PTRS │  0  │CSUM │    0     │DIRTY│   SIZE   │    INODE    │
//! low   63                                                            0│
//!       │             OFFSET: the END of the extent, in sectors         │
//! ptr   63│62            51│50                              8│7       0│
//!        0│     DEV        │      OFFSET on the cache        │   GEN   │
//! ```

use core::fmt;

use smallvec::{SmallVec, smallvec};

use crate::bytes::u64_at;
use crate::error::{FormatError, Structure};
use crate::geometry::Geometry;
use crate::plain_key::{PlainKey, plain_keys};
use crate::pointer::{PLACEHOLDER_DEVICE, Pointer};
use crate::units::{Inode, Sector, SectorRange};

/// The longest extent, in sectors.
pub const MAX_EXTENT_SECTORS: u64 = 65535;

/// The largest number of pointers in a key; a set of today has 0 or 1.
pub const MAX_POINTERS: usize = 6;

pub(crate) const DIRTY_BIT: u64 = 1 << 36;
const ALWAYS_BIT: u64 = 1 << 63;

/// An extent of a volume, or a pointer to a btree node (docs/reference/format.md §4.2 lists the
/// kinds).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// The volume, or in a node pointer the volume of the highest key that the node may hold. 20
    /// bits wide.
    pub inode: Inode,
    /// The first sector AFTER the extent.
    pub end: Sector,
    /// The length of the extent or of the node, in sectors.
    pub sectors: u16,
    /// True if the cache has the only copy of the data.
    pub dirty: bool,
    /// The kind of data checksum, 0 to 3; always 0 when written, meaningless when read. 2 bits
    /// wide.
    pub csum: u8,
    /// No pointer (a hole), or one; up to 6 can be stored.
    pub pointers: SmallVec<[Pointer; 1]>,
}

impl Key {
    /// The highest volume number.
    pub const MAX_INODE: u32 = 0xF_FFFF;
    /// The highest end of an extent.
    pub const MAX_END: u64 = (1 << 63) - 1;
    /// The most words that a key can have.
    pub const MAX_WORDS: usize = 2 + MAX_POINTERS;

    /// The key of cached data. A range of more than 65535 sectors is cut short at its end.
    pub fn extent(inode: Inode, range: SectorRange, dirty: bool, pointer: Pointer) -> Key {
        let mut key = Key::hole(inode, range);
        key.dirty = dirty;
        key.pointers.push(pointer);
        key
    }

    /// The key that says a range is not in the cache, whatever older keys say. A range of more than
    /// 65535 sectors is cut short at its end.
    pub fn hole(inode: Inode, range: SectorRange) -> Key {
        debug_assert!(range.sectors() <= MAX_EXTENT_SECTORS, "{range} is too long for one key");
        let sectors = u16::try_from(range.sectors()).unwrap_or(u16::MAX);
        let end = range.start + u64::from(sectors);
        Key { inode, end, sectors, dirty: false, csum: 0, pointers: SmallVec::new() }
    }

    /// The key of a btree node whose highest possible key is (`inode`, `end`).
    pub fn node(inode: Inode, end: Sector, node_sectors: u16, pointer: Pointer) -> Key {
        Key {
            inode,
            end,
            sectors: node_sectors,
            dirty: false,
            csum: 0,
            pointers: smallvec![pointer],
        }
    }

    /// The node key of the root, and of the rightmost node on each level: nothing sorts after it.
    pub fn max_node(node_sectors: u16, pointer: Pointer) -> Key {
        Key::node(Inode(Key::MAX_INODE), Sector(Key::MAX_END), node_sectors, pointer)
    }

    /// The key that frees this node: the zero key with the node's size, and its pointer with the
    /// generation that the bucket has from then on (docs/reference/format.md §5.8).
    #[must_use]
    pub fn freeing(&self) -> Key {
        self.freeing_by(1)
    }

    /// The freeing key where generations rise by `step`.
    #[must_use]
    pub fn freeing_by(&self, step: u8) -> Key {
        let pointers =
            self.pointers.iter().map(|p| Pointer { generation: p.generation.raised(step), ..*p });
        Key {
            inode: Inode(0),
            end: Sector(0),
            sectors: self.sectors,
            dirty: false,
            csum: 0,
            pointers: pointers.collect(),
        }
    }

    /// The first sector of the extent; 0 in an impossible key whose size exceeds its end.
    pub fn start(&self) -> Sector {
        self.end - u64::from(self.sectors)
    }

    /// The sectors of the extent.
    pub fn range(&self) -> SectorRange {
        SectorRange::from_bounds(self.start(), self.end)
    }

    /// The first pointer that leads to a cache device: none in holes and placeholders.
    pub fn pointer(&self) -> Option<Pointer> {
        self.pointers.iter().copied().find(|pointer| pointer.is_available())
    }

    /// Returns true if the key has no pointers and thus declares its range to be not in the cache.
    pub fn is_hole(&self) -> bool {
        self.pointers.is_empty()
    }

    /// Returns true if the key stands for a read in flight (docs/reference/format.md §11): not
    /// cached, but hiding older keys.
    pub fn is_placeholder(&self) -> bool {
        self.pointers.first().is_some_and(|pointer| pointer.device == PLACEHOLDER_DEVICE)
    }

    /// Returns true if this is the point (0, 0), which in an interior node marks a freeing key.
    pub fn is_zero(&self) -> bool {
        self.inode.0 == 0 && self.end.0 == 0
    }

    /// Sort key: the volume, then the END of the extent; nothing else takes part.
    pub fn position(&self) -> (Inode, Sector) {
        (self.inode, self.end)
    }

    /// The length on disk in 8-byte words.
    pub fn words(&self) -> usize {
        2 + self.pointers.len().min(MAX_POINTERS)
    }

    /// The part of this extent that covers `range`, which has to lie inside it
    /// (docs/reference/format.md §4.8).
    #[must_use]
    pub fn cut_to(&self, range: SectorRange) -> Key {
        let range = self.range().intersect(&range);
        let skipped = range.start - self.start();
        Key {
            end: range.end,
            sectors: u16::try_from(range.sectors()).unwrap_or(u16::MAX),
            pointers: self.pointers.iter().map(|pointer| pointer.advance(skipped)).collect(),
            ..*self
        }
    }

    /// Joins this extent and the one right after it, if the format allows that
    /// (docs/reference/format.md §4.8).
    pub fn merged_with(&self, right: &Key, geometry: &Geometry) -> Option<Key> {
        let alike = self.inode == right.inode
            && self.end == right.start()
            && self.dirty == right.dirty
            && self.csum == right.csum
            && self.pointers.len() == right.pointers.len();
        let continues = |(left, right): (&Pointer, &Pointer)| {
            left.is_available()
                && left.advance(u64::from(self.sectors)) == *right
                && left.bucket(geometry.bucket_sectors) == right.bucket(geometry.bucket_sectors)
        };
        if !alike || !self.pointers.iter().zip(&right.pointers).all(continues) {
            return None;
        }
        let sectors = self.sectors.checked_add(right.sectors)?;
        Some(Key { end: right.end, sectors, ..self.clone() })
    }

    /// Appends the key as it is on disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.inode.0 <= Key::MAX_INODE && self.pointers.len() <= MAX_POINTERS);
        let pointers = self.pointers.as_slice();
        let pointers = pointers.get(..MAX_POINTERS).unwrap_or(pointers);
        let high = key_high(pointers.len() as u64, self.csum, self.dirty, self.sectors, self.inode);
        let words = |pointer: u64| [high, self.end.0, pointer].map(u64::to_le_bytes);
        match pointers {
            [] => out.extend_from_slice(words(0)[..2].as_flattened()),
            // The common case: nearly all keys have one pointer.
            [first, rest @ ..] => {
                out.extend_from_slice(words(first.word()).as_flattened());
                rest.iter()
                    .for_each(|pointer| out.extend_from_slice(&pointer.word().to_le_bytes()));
            }
        }
    }

    /// The key at the start of `bytes`, and how many bytes it takes.
    pub fn decode(bytes: &[u8]) -> Result<(Key, usize), FormatError> {
        if bytes.len() < 16 {
            return Err(FormatError::too_short(Structure::Key, bytes.len(), 16));
        }
        let high = u64_at(bytes, 0);
        let count = (high >> 60 & 7) as usize;
        if count > MAX_POINTERS {
            return Err(FormatError::value(
                Structure::Key,
                0,
                "number of pointers",
                count,
                "at most 6",
            ));
        }
        let used = 16 + 8 * count;
        let words = bytes.get(16..used);
        let words = words
            .ok_or_else(|| FormatError::too_short(Structure::Key, bytes.len(), used as u64))?;
        let key = Key {
            inode: Inode((high & u64::from(Key::MAX_INODE)) as u32),
            end: Sector(u64_at(bytes, 8)),
            sectors: (high >> 20) as u16,
            dirty: high & DIRTY_BIT != 0,
            csum: (high >> 56 & 3) as u8,
            pointers: words
                .chunks_exact(8)
                .map(|word| Pointer::from_word(u64_at(word, 0)))
                .collect(),
        };
        Ok((key, used))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.range())?;
        if self.pointers.is_empty() {
            f.write_str(" hole")?;
        }
        for pointer in &self.pointers {
            write!(f, " -> {pointer}")?;
        }
        f.write_str(if self.dirty { " dirty" } else { "" })
    }
}

/// The first word of a key.
#[inline]
pub(crate) fn key_high(pointers: u64, csum: u8, dirty: bool, sectors: u16, inode: Inode) -> u64 {
    ALWAYS_BIT
        | pointers << 60
        | u64::from(csum & 3) << 56
        | if dirty { DIRTY_BIT } else { 0 }
        | u64::from(sectors) << 20
        | u64::from(inode.0 & Key::MAX_INODE)
}

/// Appends keys as they are on disk.
pub(crate) fn encode_keys(keys: &[Key], out: &mut Vec<u8>) {
    out.reserve(keys.len() * 24);
    keys.iter().for_each(|key| key.encode(out));
}

/// Keys that fill `bytes` exactly.
pub(crate) fn decode_keys(bytes: &[u8]) -> Result<Vec<Key>, FormatError> {
    let mut keys = Vec::with_capacity(bytes.len() / 24);
    let all_plain = plain_keys(bytes, |key| {
        let PlainKey { inode, end, sectors, dirty, csum, pointer } = key;
        let pointers = pointer.map_or_else(SmallVec::new, |pointer| smallvec![pointer]);
        keys.push(Key { inode, end, sectors, dirty, csum, pointers });
    });
    if all_plain {
        return Ok(keys);
    }
    keys.clear();
    let mut at = 0;
    while at < bytes.len() {
        let (key, used) = Key::decode(bytes.get(at..).unwrap_or_default())
            .map_err(|error| error.within(Structure::Key, at as u64))?;
        keys.push(key);
        at += used;
    }
    Ok(keys)
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
