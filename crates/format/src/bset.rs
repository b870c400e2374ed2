//! Bsets: the sorted sets of keys that are appended to btree nodes (docs/reference/format.md §5.2).
//!
//! ```text
//!   0      8      16    24       28     32
//!   │ csum │magic │ seq │version │ keys │ keys, 8 · `keys` bytes │ padding to a block │
//!          └───────────── covered by csum ───────────────────────┘
//! ```

use crate::bytes::{put, round_up, u32_at, u64_at};
use crate::checksum::{crc64_we, crc64_we_seeded};
use crate::error::{FormatError, Problem, Structure};
use crate::geometry::Geometry;
use crate::key::{Key, decode_keys, encode_keys};
use crate::pointer::Pointer;

/// Bytes before the first key of a bset.
pub const BSET_HEADER_BYTES: u64 = 32;

/// The version of bsets that are written: the checksum is seeded with the node's pointer.
pub const BSET_VERSION: u32 = 1;

/// The keys that were appended to a node at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bset {
    /// A random number that is not 0 and the same in all bsets of a node.
    pub seq: u64,
    /// The keys; in a leaf ascending and not overlapping, in an interior node ascending
    /// (docs/reference/format.md §5.5).
    pub keys: Vec<Key>,
}

impl Bset {
    /// The bset as it is on disk; see [`encode_bset`].
    pub fn encode(&self, geometry: &Geometry, seed: Pointer) -> Vec<u8> {
        encode_bset(geometry, seed, self.seq, &self.keys)
    }
}

/// The number of bytes that keys take in a bset on disk, header and padding to whole blocks
/// included.
pub fn bset_bytes(geometry: &Geometry, keys: &[Key]) -> u64 {
    bset_bytes_of_words(geometry, keys.iter().map(|key| key.words() as u64).sum())
}

/// Number of bytes for keys that have so many words together, see [`bset_bytes`].
pub fn bset_bytes_of_words(geometry: &Geometry, words: u64) -> u64 {
    round_up(BSET_HEADER_BYTES + 8 * words, geometry.block_bytes())
}

/// A bset as it is on disk, padded with zero bytes to whole blocks. `seed` is the pointer of the
/// node's key, wherever in the node the bset is going to be.
pub fn encode_bset(geometry: &Geometry, seed: Pointer, seq: u64, keys: &[Key]) -> Vec<u8> {
    debug_assert!(seq != 0, "a bset's seq must not be 0");
    let mut bytes = Vec::with_capacity(bset_bytes(geometry, keys) as usize);
    bytes.resize(BSET_HEADER_BYTES as usize, 0);
    encode_keys(keys, &mut bytes);
    seal_bset(geometry, seed, seq, &mut bytes);
    bytes.resize(round_up(bytes.len() as u64, geometry.block_bytes()) as usize, 0);
    bytes
}

/// Writes the header of a bset whose keys fill the rest of `bytes`.
pub(crate) fn seal_bset(geometry: &Geometry, seed: Pointer, seq: u64, bytes: &mut [u8]) {
    let words = (bytes.len() - BSET_HEADER_BYTES as usize) / 8;
    put(bytes, 8, &geometry.bset_magic().to_le_bytes());
    put(bytes, 16, &seq.to_le_bytes());
    put(bytes, 24, &BSET_VERSION.to_le_bytes());
    put(bytes, 28, &u32::try_from(words).unwrap_or(u32::MAX).to_le_bytes());
    let csum = crc64_we_seeded(seed.word(), &bytes[8..]);
    put(bytes, 0, &csum.to_le_bytes());
}

/// The bset at the start of `bytes`, which end where the node ends, and the bytes that it takes
/// without padding.
pub(crate) fn parse_bset(
    geometry: &Geometry,
    seed: Pointer,
    bytes: &[u8],
) -> Result<(Bset, u64), FormatError> {
    let (seq, keys) = sealed_keys(geometry, seed, bytes)?;
    let used = BSET_HEADER_BYTES + keys.len() as u64;
    let keys =
        decode_keys(keys).map_err(|error| error.within(Structure::Node, BSET_HEADER_BYTES))?;
    Ok((Bset { seq, keys }, used))
}

/// The seq of the bset at the start of `bytes`, and the bytes of its keys, of which only the
/// checksum is known to be right.
pub(crate) fn sealed_keys<'a>(
    geometry: &Geometry,
    seed: Pointer,
    bytes: &'a [u8],
) -> Result<(u64, &'a [u8]), FormatError> {
    let room = bytes.len() as u64;
    if room < BSET_HEADER_BYTES {
        return Err(FormatError::too_short(Structure::Node, bytes.len(), BSET_HEADER_BYTES));
    }
    let version = u32_at(bytes, 24);
    if version > BSET_VERSION {
        return Err(FormatError::value(
            Structure::Node,
            24,
            "version of the bset",
            version,
            "0 or 1",
        ));
    }
    let (found, expected) = (u64_at(bytes, 8), geometry.bset_magic());
    if found != expected {
        return Err(FormatError::new(Structure::Node, 8, Problem::Magic { found, expected }));
    }
    let words = u64::from(u32_at(bytes, 28));
    let used = BSET_HEADER_BYTES + 8 * words;
    if used > room {
        let most = format_args!(
            "at most the {} that the node has room for",
            (room - BSET_HEADER_BYTES) / 8
        );
        return Err(FormatError::value(
            Structure::Node,
            28,
            "number of words of the bset",
            words,
            most,
        ));
    }
    let covered = &bytes[8..used as usize];
    let expected =
        if version == 0 { crc64_we(covered) } else { crc64_we_seeded(seed.word(), covered) };
    let found = u64_at(bytes, 0);
    if found != expected {
        let problem = Problem::Checksum { found, expected, bytes: used - 8 };
        return Err(FormatError::new(Structure::Node, 0, problem));
    }
    Ok((u64_at(bytes, 16), &bytes[BSET_HEADER_BYTES as usize..used as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use crate::units::{Generation, Inode, Sector, SectorRange};

    /// The example of docs/reference/format.md §5.7, as version 1 and as version 0.
    #[test]
    fn example_with_one_key_encodes() {
        let geometry = example(128);
        let seed = Pointer { device: 0, offset: Sector(0x8000), generation: Generation(2) };
        let pointer = Pointer { device: 0, offset: Sector(0x12000), generation: Generation(7) };
        let bset = Bset {
            seq: 0x0123_4567_89ab_cdef,
            keys: vec![Key::extent(Inode(5), SectorRange::new(Sector(1024), 8), true, pointer)],
        };
        let mut bytes = bset.encode(&geometry, seed);
        assert_eq!(bytes.len(), 512);
        assert_eq!(bset_bytes(&geometry, &bset.keys), 512);
        assert_eq!(u64_at(&bytes, 0), 0xc06e_a34f_015c_8f5c);
        assert_eq!(
            bytes[8..56],
            [
                0xf5, 0x06, 0x9c, 0xba, 0x7c, 0x59, 0x15, 0x97, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45,
                0x23, 0x01, 0x01, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x05, 0x00, 0x80, 0x00,
                0x10, 0x00, 0x00, 0x90, 0x08, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x07, 0x00,
                0x20, 0x01, 0x00, 0x00, 0x00, 0x00,
            ]
        );
        assert_eq!(crc64_we(&bytes[8..56]), 0xa406_f525_f9d4_09fc);
        assert_eq!(parse_bset(&geometry, seed, &bytes), Ok((bset.clone(), 56)));
        put(&mut bytes, 24, &[0]);
        let plain = crc64_we(&bytes[8..56]);
        put(&mut bytes, 0, &plain.to_le_bytes());
        assert_eq!(parse_bset(&geometry, seed, &bytes), Ok((bset, 56)));
    }

    /// The example of docs/reference/format.md §5.9.
    #[test]
    fn example_of_an_empty_root_encodes() {
        let seed = Pointer::from_word(0x0005_0001);
        let bytes = encode_bset(&example(128), seed, 1, &[]);
        assert_eq!(u64_at(&bytes, 0), 0x168e_4571_5069_71ea);
        assert_eq!(
            bytes[8..32],
            [
                0xf5, 0x06, 0x9c, 0xba, 0x7c, 0x59, 0x15, 0x97, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
                0, 0, 0, 0
            ]
        );
    }
}
