//! Keys and pointers: what the btree and the journal are made of (docs/reference/format.md §4).
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
use crate::geometry::{DataArea, Geometry};
use crate::units::{BucketNr, Generation, Inode, Sector, SectorRange};

/// The longest extent, in sectors.
pub const MAX_EXTENT_SECTORS: u64 = 65535;

/// The largest number of pointers in a key; a set of today has 0 or 1.
pub const MAX_POINTERS: usize = 6;

/// The device number by which the driver marks a placeholder (docs/reference/format.md §11).
pub const PLACEHOLDER_DEVICE: u16 = 4095;

const OFFSET_MASK: u64 = (1 << 43) - 1;
const DEVICE_MASK: u16 = 0xFFF;
const DIRTY_BIT: u64 = 1 << 36;
const ALWAYS_BIT: u64 = 1 << 63;

/// A place on a cache device, with the generation that its bucket had when the place was written.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pointer {
    /// The number of the cache device in its set: 0, or 4095 in a placeholder. 12 bits wide on
    /// disk.
    pub device: u16,
    /// The first sector, from the start of the cache device. 43 bits wide on disk.
    pub offset: Sector,
    /// The generation of the bucket at the time the pointer was made.
    pub generation: Generation,
}

impl Pointer {
    /// The pointer as it is on disk. Bits that a field has no room for are left out.
    pub const fn word(self) -> u64 {
        self.generation.0 as u64
            | (self.offset.0 & OFFSET_MASK) << 8
            | ((self.device & DEVICE_MASK) as u64) << 51
    }

    /// The pointer that a word on disk stands for. Bit 63, which means nothing, is not kept.
    pub const fn from_word(word: u64) -> Self {
        Self {
            device: (word >> 51) as u16 & DEVICE_MASK,
            offset: Sector(word >> 8 & OFFSET_MASK),
            generation: Generation(word as u8),
        }
    }

    /// Returns true if the pointer is to the cache device. A pointer to no device is neither
    /// followed nor checked.
    pub const fn is_available(self) -> bool {
        self.device == 0
    }

    /// Returns true if the pointer is to another cache device of the set, as in sets of several
    /// cache devices before Linux 5.10; that device is not available here.
    pub const fn is_elsewhere(self) -> bool {
        matches!(self.device, 1..=7)
    }

    /// The bucket that it points into; `u32::MAX`, which no device has, for an offset too far out.
    pub const fn bucket(self, bucket_sectors: u32) -> BucketNr {
        let sectors = if bucket_sectors == 0 { 1 } else { bucket_sectors as u64 };
        let bucket = self.offset.0 / sectors;
        BucketNr(if bucket > u32::MAX as u64 { u32::MAX } else { bucket as u32 })
    }

    /// The pointer to what lies `sectors` sectors further on.
    #[must_use]
    pub fn advance(self, sectors: u64) -> Self {
        Self { offset: self.offset + sectors, ..self }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} gen {}", self.device, self.offset, self.generation)
    }
}

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

    /// Checks what is fatal to a set in the key of an extent (docs/reference/format.md §4.5). A key
    /// of size 0 passes: it is to be ignored in every respect.
    pub fn check_extent(&self, geometry: &Geometry) -> Result<(), FormatError> {
        if self.sectors == 0 {
            return Ok(());
        }
        self.check_end()?;
        if u64::from(self.sectors) > self.end.0 {
            let most = format_args!("at most the end of the extent, {}", self.end);
            return Err(FormatError::value(
                Structure::Key,
                0,
                "size of the extent",
                self.sectors,
                most,
            ));
        }
        self.check_pointers(geometry)
    }

    /// Checks what is fatal to a set in a key of the journal: as in a leaf, and its size must not
    /// be 0.
    pub fn check_journaled(&self, geometry: &Geometry) -> Result<(), FormatError> {
        if self.sectors == 0 {
            return Err(FormatError::value(
                Structure::Key,
                0,
                "size of a journaled extent",
                0,
                "at least 1",
            ));
        }
        self.check_extent(geometry)
    }

    /// Checks what is fatal to a set in the key of a btree node or the volume table, freeing keys
    /// included (docs/reference/format.md §4.5).
    pub fn check_node(&self, geometry: &Geometry) -> Result<(), FormatError> {
        let wrong = |field, found: &str, expected| {
            Err(FormatError::value(Structure::Key, 0, field, found, expected))
        };
        if self.pointers.is_empty() {
            return wrong("number of pointers of a node", "0", "at least 1");
        }
        if self.pointer().is_none() {
            return wrong("cache device of a node", "none", "the one of the set");
        }
        if self.sectors == 0 {
            return wrong("size of a node", "0", "at least 1");
        }
        if self.dirty {
            return wrong("dirty bit of a node", "1", "0");
        }
        self.check_end()?;
        self.check_pointers(geometry)
    }

    fn check_end(&self) -> Result<(), FormatError> {
        if self.end.0 > Key::MAX_END {
            let most = format_args!("at most {}", Key::MAX_END);
            return Err(FormatError::value(Structure::Key, 8, "end of the key", self.end, most));
        }
        Ok(())
    }

    fn check_pointers(&self, geometry: &Geometry) -> Result<(), FormatError> {
        for (index, pointer) in self.pointers.iter().enumerate() {
            let at = 16 + 8 * index as u64;
            if pointer.is_elsewhere() {
                let field = "cache device of the pointer";
                let only = "0: sets of several cache devices are not supported";
                return Err(FormatError::value(Structure::Key, at, field, pointer.device, only));
            }
            if !pointer.is_available() {
                continue;
            }
            let bucket = pointer.bucket(geometry.bucket_sectors);
            if !geometry.is_usable(bucket) {
                let usable = format_args!(
                    "{} to {}",
                    geometry.first_bucket,
                    geometry.buckets.saturating_sub(1)
                );
                return Err(FormatError::value(
                    Structure::Key,
                    at,
                    "bucket of the pointer",
                    bucket,
                    usable,
                ));
            }
            let end = pointer.offset - geometry.bucket_start(bucket) + u64::from(self.sectors);
            if end > u64::from(geometry.bucket_sectors) {
                let most =
                    format_args!("at most {}, the sectors in a bucket", geometry.bucket_sectors);
                return Err(FormatError::value(
                    Structure::Key,
                    at,
                    "end inside the bucket",
                    end,
                    most,
                ));
            }
        }
        Ok(())
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

/// Returns true if [`decode_keys`] would find keys that fill `bytes` exactly.
pub(crate) fn are_keys(bytes: &[u8]) -> bool {
    if pointer_keys(bytes).is_some() {
        return true;
    }
    let mut rest = bytes;
    while let Some((high, _)) = rest.split_first_chunk::<8>() {
        let count = (u64::from_le_bytes(*high) >> 60 & 7) as usize;
        match rest.get(16 + 8 * count..) {
            Some(behind) if count <= MAX_POINTERS => rest = behind,
            _ => return false,
        }
    }
    rest.is_empty()
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

/// The key of an extent with one pointer at most, as all are that a set of today writes. Needs no
/// allocation: hot where millions of keys are read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PlainKey {
    /// See [`Key`].
    pub inode: Inode,
    /// See [`Key`].
    pub end: Sector,
    /// See [`Key`].
    pub sectors: u16,
    /// See [`Key`].
    pub dirty: bool,
    /// See [`Key`].
    pub csum: u8,
    /// The pointer, unless the key is a hole. It may be invalid.
    pub pointer: Option<Pointer>,
}

impl PlainKey {
    #[inline]
    fn of(high: u64, end: u64, pointer: Option<Pointer>) -> PlainKey {
        PlainKey {
            inode: Inode((high & u64::from(Key::MAX_INODE)) as u32),
            end: Sector(end),
            sectors: (high >> 20) as u16,
            dirty: high & DIRTY_BIT != 0,
            csum: (high >> 56 & 3) as u8,
            pointer,
        }
    }

    /// Returns true if [`Key::check_extent`] finds no error.
    #[inline]
    pub fn is_sound(&self, geometry: &Geometry) -> bool {
        geometry.data_area().is_some_and(|area| self.is_sound_in(&area))
    }

    /// [`PlainKey::is_sound`] without a division. Hot: called for each of millions of keys.
    #[inline]
    pub fn is_sound_in(&self, area: &DataArea) -> bool {
        let sectors = u64::from(self.sectors);
        let fits = |pointer: Pointer| match pointer.is_available() {
            true => area.has_room(pointer.offset, sectors),
            false => !pointer.is_elsewhere(),
        };
        self.sectors == 0
            || self.end.0 <= Key::MAX_END && sectors <= self.end.0 && self.pointer.is_none_or(fits)
    }
}

/// Keys that fill `bytes` exactly, if each of them has one pointer, as most bsets have it.
pub fn pointer_keys(bytes: &[u8]) -> Option<impl ExactSizeIterator<Item = PlainKey>> {
    let (keys, rest) = bytes.as_chunks::<24>();
    // Visit all keys, without an early end: then the loop needs no branches.
    let others = keys.iter().fold(0, |others, key| others | (key[7] ^ 0x10) & 0x70);
    (rest.is_empty() && others == 0).then(|| {
        keys.iter().map(|key| {
            let pointer = Pointer::from_word(u64_at(key, 16));
            PlainKey::of(u64_at(key, 0), u64_at(key, 8), Some(pointer))
        })
    })
}

/// Keys that fill `bytes` exactly, given to `take` one by one. It ends with `false` at the first
/// that is not plain or can not be decoded.
#[inline]
pub fn plain_keys(bytes: &[u8], mut take: impl FnMut(PlainKey)) -> bool {
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<16>() {
        let (high, end) = (u64_at(head, 0), u64_at(head, 8));
        let pointer = match (high >> 60 & 7, behind.split_first_chunk::<8>()) {
            (0, _) => {
                rest = behind;
                None
            }
            (1, Some((word, behind))) => {
                rest = behind;
                Some(Pointer::from_word(u64::from_le_bytes(*word)))
            }
            _ => return false,
        };
        take(PlainKey::of(high, end, pointer));
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = Key> {
        let pointer = (prop_oneof![Just(0_u16), Just(4095), 0_u16..9], 0_u64..140_000, any::<u8>())
            .prop_map(|(device, offset, generation)| Pointer {
                device,
                offset: Sector(offset),
                generation: Generation(generation),
            });
        let end = prop_oneof![0_u64..300, Just(Key::MAX_END), Just(Key::MAX_END + 1)];
        let sectors = prop_oneof![0_u16..130, any::<u16>()];
        let count = prop_oneof![8 => 0_usize..2, 1 => 2_usize..7];
        let pointers =
            count.prop_flat_map(move |count| proptest::collection::vec(pointer.clone(), count));
        (0..=Key::MAX_INODE, end, sectors, any::<bool>(), 0_u8..4, pointers).prop_map(
            |(inode, end, sectors, dirty, csum, pointers)| Key {
                inode: Inode(inode),
                end: Sector(end),
                sectors,
                dirty,
                csum,
                pointers: pointers.into(),
            },
        )
    }

    proptest! {
        /// Plain keys are what the other decoder gives, as long as there are only such, and are
        /// judged alike.
        #[test]
        fn plain_keys_decode(keys in proptest::collection::vec(any_key(), 0..8),
            cut in 0_usize..40) {
            let geometry = example(128);
            let mut bytes = Vec::new();
            encode_keys(&keys, &mut bytes);
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
            let mut plain = Vec::new();
            let whole = plain_keys(&bytes, |key| plain.push(key));
            let decoded = decode_keys(&bytes);
            let expected = decoded.is_ok_and(|keys| keys.iter().all(|key| key.pointers.len() <= 1));
            prop_assert_eq!(whole, expected);
            prop_assert_eq!(are_keys(&bytes), decode_keys(&bytes).is_ok());
            let with_pointers = pointer_keys(&bytes).map(Iterator::collect::<Vec<_>>);
            let all = whole && plain.iter().all(|key| key.pointer.is_some());
            prop_assert_eq!(with_pointers, all.then(|| plain.clone()));
            for (plain, key) in plain.iter().zip(&keys) {
                let again = Key {
                    inode: plain.inode,
                    end: plain.end,
                    sectors: plain.sectors,
                    dirty: plain.dirty,
                    csum: plain.csum,
                    pointers: plain.pointer.into_iter().collect(),
                };
                prop_assert_eq!(&again, key);
                let area = geometry.data_area().expect("a power of two");
                prop_assert_eq!(plain.is_sound_in(&area), key.check_extent(&geometry).is_ok());
                prop_assert_eq!(plain.is_sound(&geometry), key.check_extent(&geometry).is_ok());
            }
        }
    }

    fn pointer(offset: u64, generation: u8) -> Pointer {
        Pointer { device: 0, offset: Sector(offset), generation: Generation(generation) }
    }

    fn words(key: &Key) -> Vec<u64> {
        let mut bytes = Vec::new();
        key.encode(&mut bytes);
        assert_eq!(Key::decode(&bytes), Ok((key.clone(), bytes.len())));
        bytes.chunks(8).map(|word| u64_at(word, 0)).collect()
    }

    /// The examples of docs/reference/format.md §4.1.
    #[test]
    fn example_keys_round_trip() {
        let range = SectorRange::new(Sector(1024), 8);
        let key = Key::extent(Inode(5), range, true, pointer(0x12000, 7));
        assert_eq!(words(&key), [0x9000_0010_0080_0005, 0x408, 0x0120_0007]);
        assert_eq!(key.range(), range);
        let root = Key::max_node(512, pointer(1280, 1));
        assert_eq!(words(&root), [0x9000_0000_200F_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0x0005_0001]);
        assert_eq!(words(&root.freeing()), [0x9000_0000_2000_0000, 0, 0x0005_0002]);
        assert_eq!(words(&Key::hole(Inode(1), range)), [0x8000_0000_0080_0001, 0x408]);
    }

    #[test]
    fn placeholders_are_recognised_whatever_their_other_bits_are() {
        let mut bytes = Vec::new();
        Key::extent(Inode(0), SectorRange::new(Sector(16), 8), false, pointer(1, 1))
            .encode(&mut bytes);
        bytes[16..].copy_from_slice(&u64::MAX.to_le_bytes());
        let (key, _) = Key::decode(&bytes).expect("a key");
        assert!(key.is_placeholder() && key.pointer().is_none() && !key.is_hole());
        assert_eq!(key.check_extent(&example(128)), Ok(()));
    }

    #[test]
    fn pointer_outside_one_usable_bucket_is_refused() {
        let geometry = example(128);
        let extent = |sectors, offset| {
            Key::extent(Inode(0), SectorRange::new(Sector(16), sectors), true, pointer(offset, 0))
        };
        assert_eq!(extent(128, 128).check_extent(&geometry), Ok(()));
        assert!(extent(128, 129).check_extent(&geometry).is_err());
        assert!(extent(8, 0).check_extent(&geometry).is_err());
        assert_eq!(extent(8, 1023 * 128).check_extent(&geometry), Ok(()));
        let error =
            extent(8, 1024 * 128).check_extent(&geometry).expect_err("past the last bucket");
        assert_eq!(
            error.to_string(),
            "key, byte 16: bucket of the pointer is 1024, expected 1 to 1023"
        );
        let early = Key { end: Sector(7), ..extent(8, 128) };
        assert!(early.check_extent(&geometry).is_err());
        assert_eq!(extent(0, 0).check_extent(&geometry), Ok(()));
        assert!(extent(0, 128).check_journaled(&geometry).is_err());
        let node = Key::max_node(128, pointer(128, 0));
        assert_eq!(node.check_node(&geometry), Ok(()));
        assert!(Key { dirty: true, ..node.clone() }.check_node(&geometry).is_err());
        assert!(Key { sectors: 0, ..node.clone() }.check_node(&geometry).is_err());
        assert!(Key { pointers: SmallVec::new(), ..node.clone() }.check_node(&geometry).is_err());
        let nowhere = Pointer::from_word(u64::MAX);
        let error = Key { pointers: smallvec![nowhere], ..node }
            .check_node(&geometry)
            .expect_err("leads nowhere");
        assert_eq!(
            error.to_string(),
            "key, byte 0: cache device of a node is none, expected the one of the set"
        );
    }

    #[test]
    fn keys_merge_if_their_data_is_adjacent_in_one_bucket() {
        let geometry = example(128);
        let extent = |start, offset, generation| {
            Key::extent(
                Inode(3),
                SectorRange::new(Sector(start), 8),
                true,
                pointer(offset, generation),
            )
        };
        let both = Key::extent(Inode(3), SectorRange::new(Sector(16), 16), true, pointer(256, 4));
        let left = extent(16, 256, 4);
        assert_eq!(left.merged_with(&extent(24, 264, 4), &geometry), Some(both.clone()));
        assert_eq!(both.cut_to(left.range()), left);
        assert_eq!(both.cut_to(SectorRange::new(Sector(24), 8)), extent(24, 264, 4));
        assert_eq!(left.merged_with(&extent(24, 264, 5), &geometry), None);
        assert_eq!(left.merged_with(&extent(24, 272, 4), &geometry), None);
        assert_eq!(left.merged_with(&extent(25, 264, 4), &geometry), None);
        assert_eq!(extent(16, 376, 4).merged_with(&extent(24, 384, 4), &geometry), None);
    }
}
