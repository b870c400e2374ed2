//! Keys with one pointer at most, read without allocation: hot where millions of keys are read.

use crate::bytes::u64_at;
use crate::geometry::{DataArea, Geometry};
use crate::key::{DIRTY_BIT, Key, MAX_POINTERS};
use crate::pointer::Pointer;
use crate::units::{Inode, Sector};

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
