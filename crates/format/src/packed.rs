//! Keys with one pointer, in their form on disk, for callers that write whole nodes of them.

use crate::bset::{BSET_HEADER_BYTES, seal_bset};
use crate::bytes::u64_at;
use crate::geometry::Geometry;
use crate::key::{Key, key_high};
use crate::pointer::Pointer;
use crate::units::{Inode, Sector, SectorRange};

/// Bytes of a key with one pointer.
pub const PACKED_KEY_BYTES: usize = 24;

/// A key with one pointer as it is on disk.
pub type PackedKey = [u8; PACKED_KEY_BYTES];

fn pack(high: u64, end: Sector, pointer: Pointer) -> PackedKey {
    let mut bytes = [0; PACKED_KEY_BYTES];
    for (place, word) in bytes.chunks_exact_mut(8).zip([high, end.0, pointer.word()]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The key of cached data, as [`Key::extent`] makes it.
#[inline]
pub fn packed_extent(inode: Inode, range: SectorRange, dirty: bool, pointer: Pointer) -> PackedKey {
    let sectors = u16::try_from(range.sectors()).unwrap_or(u16::MAX);
    pack(key_high(1, 0, dirty, sectors, inode), range.start + u64::from(sectors), pointer)
}

/// Sort key, see [`Key::position`].
pub fn packed_position(key: &PackedKey) -> (Inode, Sector) {
    (Inode((u64_at(key, 0) & u64::from(Key::MAX_INODE)) as u32), Sector(u64_at(key, 8)))
}

impl Key {
    /// The key as it is on disk; none unless it has one pointer.
    pub fn packed(&self) -> Option<PackedKey> {
        match self.pointers.as_slice() {
            &[pointer] => {
                let high = key_high(1, self.csum, self.dirty, self.sectors, self.inode);
                Some(pack(high, self.end, pointer))
            }
            _ => None,
        }
    }
}

/// Writes a bset as [`encode_bset`](crate::encode_bset) does to the start of `bytes`, the rest of
/// which stays: it has to be zeroes up to the end of a block. Says how many bytes it takes, without
/// padding.
///
/// # Panics
/// If `bytes` is too short.
pub fn encode_packed_bset(
    geometry: &Geometry,
    seed: Pointer,
    seq: u64,
    keys: &[PackedKey],
    bytes: &mut [u8],
) -> usize {
    let header = BSET_HEADER_BYTES as usize;
    let used = header + keys.len() * PACKED_KEY_BYTES;
    bytes[header..used].copy_from_slice(keys.as_flattened());
    seal_bset(geometry, seed, seq, &mut bytes[..used]);
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use crate::units::Generation;
    use crate::{bset_bytes, encode_bset};

    #[test]
    fn packed_keys_make_the_same_bset() {
        let geometry = example(128);
        let pointer = |at: u64| Pointer {
            device: 0,
            offset: Sector(0x12000 + at),
            generation: Generation(at as u8),
        };
        let extent = |at: u64| {
            (Inode(5), SectorRange::new(Sector(64 * at), 1 + at), at.is_multiple_of(3), pointer(at))
        };
        let extents: Vec<_> = (0..40).map(extent).collect();
        let mut keys: Vec<Key> =
            extents.iter().map(|&(a, b, c, d)| Key::extent(a, b, c, d)).collect();
        let mut packed: Vec<PackedKey> =
            extents.iter().map(|&(a, b, c, d)| packed_extent(a, b, c, d)).collect();
        keys.push(Key::max_node(1024, pointer(100)));
        packed.extend(keys.last().and_then(Key::packed));
        for (key, packed) in keys.iter().zip(&packed) {
            assert_eq!(key.packed().as_ref(), Some(packed));
            assert_eq!(key.position(), packed_position(packed));
        }
        let mut bytes = vec![0; bset_bytes(&geometry, &keys) as usize];
        let used = encode_packed_bset(&geometry, pointer(9), 7, &packed, &mut bytes);
        assert_eq!(used, 32 + 24 * 41);
        assert_eq!(bytes, encode_bset(&geometry, pointer(9), 7, &keys));
        assert_eq!(Key::hole(Inode(1), SectorRange::new(Sector(0), 8)).packed(), None);
    }
}
