//! The structures of a pack as bytes; [`super`] has the picture.

use ubcache_format::{SECTOR_BYTES, crc64_we};

/// Bytes of the header and of the trailer, and what a pack is padded to.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The most bytes of metadata in a chunk.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
/// The same in sectors.
pub(super) const CHUNK_SECTORS: u64 = CHUNK_BYTES as u64 / SECTOR_BYTES;
/// The version that is written, and the only one there is.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 16] = *b"ubcache-pack\r\n\x1a\n";
const END_MAGIC: [u8; 16] = *b"ubcache-pack-end";
const CRC: usize = BLOCK_BYTES - 8;
const CHUNK_ROW: usize = 28;
const PIECE_ROW: usize = 16;

/// Returns true if the bytes begin like a pack.
pub fn is_pack(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Facts about the device in a pack.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub version: u32,
    pub block_bytes: u32,
    pub device_bytes: u64,
}

/// Place of the index.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    pub file_bytes: u64,
    pub index_offset: u64,
    pub index_packed: u64,
    pub index_raw: u64,
    pub index_crc: u64,
    pub chunks: u64,
}

/// A chunk, and how many pieces it has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    pub offset: u64,
    pub packed: u32,
    pub raw: u32,
    pub crc: u64,
    pub pieces: u32,
}

/// A part of the device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct PackedRange {
    pub start: u64,
    pub sectors: u32,
    pub unreadable: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A block with a magic number, fields, and a checksum at its end.
fn seal(magic: [u8; 16], fields: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(fields);
    bytes.resize(CRC, 0);
    let crc = crc64_we(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn is_sealed(magic: [u8; 16], bytes: &[u8]) -> bool {
    bytes.len() == BLOCK_BYTES
        && bytes.starts_with(&magic)
        && u64_at(bytes, CRC) == bytes.get(..CRC).map(crc64_we)
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = self.version.to_le_bytes().to_vec();
        fields.extend(self.block_bytes.to_le_bytes());
        fields.extend(self.device_bytes.to_le_bytes());
        fields.extend(concat!("ubcache ", env!("CARGO_PKG_VERSION")).as_bytes().iter().take(32));
        seal(MAGIC, &fields)
    }

    pub fn decode(bytes: &[u8]) -> Option<Header> {
        if !is_sealed(MAGIC, bytes) {
            return None;
        }
        Some(Header {
            version: u32_at(bytes, 16)?,
            block_bytes: u32_at(bytes, 20)?,
            device_bytes: u64_at(bytes, 24)?,
        })
    }
}

impl Trailer {
    pub fn encode(&self) -> Vec<u8> {
        let fields = [
            self.file_bytes,
            self.index_offset,
            self.index_packed,
            self.index_raw,
            self.index_crc,
            self.chunks,
        ];
        seal(END_MAGIC, &fields.map(u64::to_le_bytes).concat())
    }

    pub fn decode(bytes: &[u8]) -> Option<Trailer> {
        if !is_sealed(END_MAGIC, bytes) {
            return None;
        }
        Some(Trailer {
            file_bytes: u64_at(bytes, 16)?,
            index_offset: u64_at(bytes, 24)?,
            index_packed: u64_at(bytes, 32)?,
            index_raw: u64_at(bytes, 40)?,
            index_crc: u64_at(bytes, 48)?,
            chunks: u64_at(bytes, 56)?,
        })
    }
}

/// Appends a chunk and its pieces to an index.
pub(super) fn add_to_index(index: &mut Vec<u8>, chunk: &Chunk, pieces: &[PackedRange]) {
    index.extend(chunk.offset.to_le_bytes());
    index.extend(chunk.packed.to_le_bytes());
    index.extend(chunk.raw.to_le_bytes());
    index.extend(chunk.crc.to_le_bytes());
    index.extend(chunk.pieces.to_le_bytes());
    for piece in pieces {
        index.extend(piece.start.to_le_bytes());
        index.extend(piece.sectors.to_le_bytes());
        index.extend(u32::from(piece.unreadable).to_le_bytes());
    }
}

/// Parses an index, and hands on its chunks one by one.
pub(super) fn read_index(
    index: &[u8],
    chunks: u64,
    mut take: impl FnMut(Chunk, &[PackedRange]) -> Option<()>,
) -> Option<()> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for _ in 0..chunks {
        let chunk = Chunk {
            offset: u64_at(index, at)?,
            packed: u32_at(index, at + 8)?,
            raw: u32_at(index, at + 12)?,
            crc: u64_at(index, at + 16)?,
            pieces: u32_at(index, at + 24)?,
        };
        at += CHUNK_ROW;
        pieces.clear();
        for _ in 0..chunk.pieces {
            pieces.push(PackedRange {
                start: u64_at(index, at)?,
                sectors: u32_at(index, at + 8)?,
                unreadable: u32_at(index, at + 12)? != 0,
            });
            at += PIECE_ROW;
        }
        take(chunk, &pieces)?;
    }
    (at == index.len()).then_some(())
}
