//! Written data of one object that is not in the store yet.

use bytes::Bytes;
use ubcache_env::{IntervalSet, IoVec, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

/// Memory that a layer counts for, besides its data.
pub const LAYER_BYTES: u64 = 4096;

enum Data {
    /// All of it is zero.
    Zeroes,
    Open(Vec<u8>),
    /// Shared with a request.
    Shared(Bytes),
}

/// The written parts of an object. Ranges are in sectors from its start.
pub struct Layer {
    data: Data,
    written: IntervalSet,
    object_bytes: u64,
}

fn bytes_of(range: SectorRange) -> std::ops::Range<usize> {
    (range.start.0 * SECTOR_BYTES) as usize..(range.end.0 * SECTOR_BYTES) as usize
}

impl Layer {
    /// A layer with nothing written.
    pub fn new(object_bytes: u64) -> Layer {
        Layer { data: Data::Zeroes, written: IntervalSet::default(), object_bytes }
    }

    /// The whole object.
    pub fn whole(&self) -> SectorRange {
        SectorRange::new(Sector(0), self.object_bytes / SECTOR_BYTES)
    }

    /// Memory that it counts for.
    pub fn memory_bytes(&self) -> u64 {
        match self.data {
            Data::Zeroes => LAYER_BYTES,
            _ => LAYER_BYTES + self.object_bytes,
        }
    }

    /// Returns true if it has memory for data.
    pub fn has_memory(&self) -> bool {
        !matches!(self.data, Data::Zeroes)
    }

    /// Returns true if all of the object is written.
    pub fn is_whole(&self) -> bool {
        self.written.covers(self.whole())
    }

    /// The parts of the range that are not written.
    pub fn gaps(&self, range: SectorRange) -> Vec<SectorRange> {
        self.written.gaps(range)
    }

    fn open(&mut self) -> &mut [u8] {
        let data = match std::mem::replace(&mut self.data, Data::Zeroes) {
            Data::Zeroes => vec![0; self.object_bytes as usize],
            Data::Open(data) => data,
            Data::Shared(bytes) => Vec::from(bytes),
        };
        self.data = Data::Open(data);
        match &mut self.data {
            Data::Open(data) => data,
            _ => unreachable!("has just been opened"),
        }
    }

    fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Zeroes => None,
            Data::Open(data) => Some(data),
            Data::Shared(bytes) => Some(bytes),
        }
    }

    /// Writes `data` from the sector `at` on.
    pub fn write(&mut self, at: Sector, data: &IoVec) {
        let range = SectorRange::new(at, data.sectors());
        data.copy_to(&mut self.open()[bytes_of(range)]);
        self.written.insert(range);
    }

    /// Makes the range zero.
    pub fn zero(&mut self, range: SectorRange) {
        if range == self.whole() {
            self.data = Data::Zeroes;
        } else if self.has_memory() {
            self.open()[bytes_of(range)].fill(0);
        }
        self.written.insert(range);
    }

    /// Fills what is not written from `base`, bytes of the object from the sector `from` on.
    /// Beyond them, it is zero.
    pub fn fill(&mut self, from: Sector, base: &[u8]) {
        let end = from.0 + base.len() as u64 / SECTOR_BYTES;
        for gap in self.written.gaps(SectorRange::from_bounds(from, Sector(end))) {
            let (gap_bytes, first) = (bytes_of(gap), bytes_of(gap).start);
            let skip = first - (from.0 * SECTOR_BYTES) as usize;
            let source = &base[skip..skip + gap_bytes.len()];
            self.open()[gap_bytes].copy_from_slice(source);
        }
        self.written.insert(self.whole());
    }

    /// Copies the written parts of the range to `into`, whose first byte is the range's.
    pub fn copy_to(&self, range: SectorRange, into: &mut [u8]) {
        for part in self.written.overlapping(range) {
            let part = part.intersect(&range);
            let at = bytes_of(SectorRange::from_bounds(
                Sector(part.start.0 - range.start.0),
                Sector(part.end.0 - range.start.0),
            ));
            match self.bytes() {
                Some(bytes) => into[at].copy_from_slice(&bytes[bytes_of(part)]),
                None => into[at].fill(0),
            }
        }
    }

    /// Writes the written parts of a newer layer over this one.
    pub fn merge(&mut self, newer: &Layer) {
        for part in newer.written.iter() {
            match newer.bytes() {
                Some(bytes) => {
                    self.open()[bytes_of(part)].copy_from_slice(&bytes[bytes_of(part)]);
                    self.written.insert(part);
                }
                None => self.zero(part),
            }
        }
    }

    /// Returns true if every byte is zero.
    pub fn is_zero(&self) -> bool {
        let zero = |bytes: &[u8]| {
            let (head, words, tail) = (bytes.chunks_exact(16), bytes.len() / 16 * 16, bytes);
            head.map(|word| u128::from_ne_bytes(word.try_into().expect("16 bytes")))
                .all(|word| word == 0)
                && tail[words..].iter().all(|byte| *byte == 0)
        };
        self.bytes().is_none_or(zero)
    }

    /// The bytes of the whole object, shared.
    pub fn share(&mut self) -> Bytes {
        let bytes = match std::mem::replace(&mut self.data, Data::Zeroes) {
            Data::Zeroes => vec![0; self.object_bytes as usize].into(),
            Data::Open(data) => Bytes::from(data),
            Data::Shared(bytes) => bytes,
        };
        self.data = Data::Shared(bytes.clone());
        bytes
    }
}
