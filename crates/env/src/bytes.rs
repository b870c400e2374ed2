//! Requests for any bytes of a volume, made of requests for whole blocks.
//!
//! A request that is no multiple of the volume's block costs more: a read brings whole blocks, a
//! write has the volume keep the rest of its first and last block ([`Volume::write_bytes`]).

use std::ops::Range;

use ubcache_format::{SECTOR_BYTES, Sector, SectorRange};

use crate::buf::IoVec;
use crate::volume::{StreamId, Volume, VolumeError};

/// A range of bytes of a volume, not empty, and the size of the volume's blocks.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ByteRange {
    start: u64,
    end: u64,
    block: u64,
}

impl ByteRange {
    /// `length` bytes from byte `start`, on a volume with blocks of so many bytes, a power of two.
    pub fn new(start: u64, length: u64, block: u64) -> ByteRange {
        debug_assert!(block.is_power_of_two(), "a block of {block} bytes");
        ByteRange { start, end: start + length, block }
    }

    /// The bytes of sectors.
    pub fn of_sectors(range: SectorRange, block: u64) -> ByteRange {
        ByteRange::new(range.start.bytes(), range.bytes(), block)
    }

    /// The first byte, and the one behind the last.
    pub fn bytes(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Returns true if it consists of whole blocks. Hot: no division.
    pub fn is_whole(&self) -> bool {
        (self.start | self.end) & (self.block - 1) == 0
    }

    /// The blocks that it touches.
    pub fn around(&self) -> SectorRange {
        sectors(self.start / self.block * self.block, self.end.next_multiple_of(self.block))
    }

    /// The blocks that are in it as a whole; there may be none.
    pub fn within(&self) -> SectorRange {
        let start = self.start.next_multiple_of(self.block);
        sectors(start, (self.end / self.block * self.block).max(start))
    }

    /// The blocks of which it has a part: none, one or two.
    pub fn edges(&self) -> impl Iterator<Item = SectorRange> {
        let block =
            |at: u64| sectors(at / self.block * self.block, (at / self.block + 1) * self.block);
        let first = (!self.start.is_multiple_of(self.block)).then(|| block(self.start));
        let last = (!self.end.is_multiple_of(self.block)).then(|| block(self.end));
        first.into_iter().chain(last.filter(|last| Some(*last) != first))
    }
}

fn sectors(start: u64, end: u64) -> SectorRange {
    SectorRange::from_bounds(Sector(start / SECTOR_BYTES), Sector(end / SECTOR_BYTES))
}

/// Reads the bytes.
pub async fn read<V: Volume>(
    volume: &V,
    stream: StreamId,
    range: ByteRange,
) -> Result<IoVec, VolumeError> {
    let around = range.around();
    let content = volume.read(stream, around).await?;
    assert_eq!(content.len() as u64, around.bytes(), "a volume reads all of a range");
    let from = (range.start - around.start.bytes()) as usize;
    Ok(content.cut(from, from + (range.end - range.start) as usize))
}

/// Writes the bytes.
pub async fn write<V: Volume>(
    volume: &V,
    stream: StreamId,
    range: ByteRange,
    data: IoVec,
    fua: bool,
) -> Result<(), VolumeError> {
    if range.is_whole() {
        volume.write(stream, range.around(), data, fua).await
    } else {
        volume.write_bytes(stream, range.start, data, fua).await
    }
}

/// Discards the blocks that are in the range as a whole.
pub async fn discard<V: Volume>(
    volume: &V,
    stream: StreamId,
    range: ByteRange,
    fua: bool,
) -> Result<(), VolumeError> {
    match range.within() {
        whole if whole.is_empty() => Ok(()),
        whole => volume.discard(stream, whole, fua).await,
    }
}

/// Makes the bytes read as zeroes.
pub async fn write_zeroes<V: Volume>(
    volume: &V,
    stream: StreamId,
    range: ByteRange,
    fua: bool,
    may_unmap: bool,
) -> Result<(), VolumeError> {
    let whole = range.within();
    let parts = if whole.is_empty() {
        [range.bytes(), 0..0]
    } else {
        [range.start..whole.start.bytes(), whole.end.bytes()..range.end]
    };
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let zeroes = IoVec::zeroes((part.end - part.start) as usize);
        volume.write_bytes(stream, part.start, zeroes, fua).await?;
    }
    match whole.is_empty() {
        true => Ok(()),
        false => volume.write_zeroes(stream, whole, fua, may_unmap).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(from: u64, to: u64) -> SectorRange {
        sectors(from * 4096, to * 4096)
    }

    #[test]
    fn blocks_around_within_and_at_the_edges() {
        for (start, length, around, within, edges) in [
            (0, 4096, blocks(0, 1), blocks(0, 1), vec![]),
            (1, 1, blocks(0, 1), blocks(1, 1), vec![blocks(0, 1)]),
            (4095, 2, blocks(0, 2), blocks(1, 1), vec![blocks(0, 1), blocks(1, 2)]),
            (512, 8192, blocks(0, 3), blocks(1, 2), vec![blocks(0, 1), blocks(2, 3)]),
            (8192, 4097, blocks(2, 4), blocks(2, 3), vec![blocks(3, 4)]),
            (5000, 3192, blocks(1, 2), blocks(2, 2), vec![blocks(1, 2)]),
        ] {
            let range = ByteRange::new(start, length, 4096);
            assert_eq!(range.around(), around, "{start}+{length}");
            assert_eq!(range.within(), within, "{start}+{length}");
            assert_eq!(range.edges().collect::<Vec<_>>(), edges, "{start}+{length}");
            assert_eq!(range.is_whole(), edges.is_empty(), "{start}+{length}");
        }
    }
}
