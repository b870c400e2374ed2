//! Header files: the superblock of a backing device whose disk has none (docs/reference/format.md
//! §16).
//!
//! A header file has the 16 sectors that lie before the data of a backing device. The driver leaves
//! the first eight alone; ubcache has two records there, one of which is always whole.
//!
//! ```text
//!  sector 0          4            8                16
//!         │ record A │ record B   │ superblock     │   then comes the disk, from its sector 0 on
//!
//!  record: 0 name │ 16 csum │ 24 seq │ 32 UUID │ 48 sectors │ 56 written │ 64 flags │ 68 length
//!          of identity │ 128 hashes, 64 × u64 │ 640 identity │ 1152 zero, up to 2048
//! ```

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::superblock::{DEFAULT_DATA_OFFSET, Superblock};
use crate::units::{Sector, SectorRange, Uuid};

/// Sectors of a header: the data of the backing device begins after them.
pub const HEADER_SECTORS: u64 = DEFAULT_DATA_OFFSET.0;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 8192;
/// Bytes of both records together.
pub const RECORDS_BYTES: usize = 4096;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 2048;
/// The most places of a disk that a record has hashes of.
pub const PLACES_MAX: usize = 64;
/// The longest identity, in bytes.
pub const IDENTITY_BYTES: usize = 512;

/// The first sector of a cache device where copies of headers are.
const COPIES_AT: u64 = 32;
/// The most copies on a cache device.
const COPIES_MAX: u64 = 64;

const NAME: [u8; 16] = *b"ubcache header\0\x01";
const HASHES: usize = 128;
const IDENTITY: usize = HASHES + 8 * PLACES_MAX;
const SEALED: u32 = 1;

/// Statements of a header file on its disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeaderRecord {
    /// Counts the records: of two, the one with the larger number is newer.
    pub seq: u64,
    /// UUID of the backing device.
    pub uuid: Uuid,
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// The places that may have been written since their hash was taken, a bit for each.
    pub written: u64,
    /// True if nothing at all was written since the hashes were taken.
    pub sealed: bool,
    /// Words by which the machine knows the disk.
    pub identity: String,
    /// Checksum of each place of [`witness_places`].
    pub hashes: [u64; PLACES_MAX],
}

impl HeaderRecord {
    /// The newest whole record among the first 4096 bytes of a header, and the half of them that it
    /// is not in, which the next one goes to.
    pub fn read(bytes: &[u8]) -> Option<(HeaderRecord, usize)> {
        let halves = bytes.chunks_exact(RECORD_BYTES).take(2).map(HeaderRecord::parse).enumerate();
        let whole = halves.filter_map(|(half, record)| Some((record?, 1 - half)));
        whole.max_by_key(|(record, _)| record.seq)
    }

    fn parse(bytes: &[u8]) -> Option<HeaderRecord> {
        if bytes.get(..16) != Some(&NAME) || u64_at(bytes, 16) != crc64_we(&bytes[24..]) {
            return None;
        }
        let length = usize::from(u16_at(bytes, 68)).min(IDENTITY_BYTES);
        let identity = bytes.get(IDENTITY..IDENTITY + length)?;
        let mut hashes = [0; PLACES_MAX];
        for (index, hash) in hashes.iter_mut().enumerate() {
            *hash = u64_at(bytes, HASHES + 8 * index);
        }
        Some(HeaderRecord {
            seq: u64_at(bytes, 24),
            uuid: Uuid(array(bytes, 32)),
            sectors: u64_at(bytes, 48),
            written: u64_at(bytes, 56),
            sealed: u32_at(bytes, 64) & SEALED != 0,
            identity: String::from_utf8_lossy(identity).into_owned(),
            hashes,
        })
    }

    /// The 2048 bytes of this record.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_BYTES];
        put(&mut bytes, 0, &NAME);
        put(&mut bytes, 24, &self.seq.to_le_bytes());
        put(&mut bytes, 32, &self.uuid.0);
        put(&mut bytes, 48, &self.sectors.to_le_bytes());
        put(&mut bytes, 56, &self.written.to_le_bytes());
        put(&mut bytes, 64, &u32::from(self.sealed).to_le_bytes());
        let length = self.identity.floor_char_boundary(IDENTITY_BYTES);
        put(&mut bytes, 68, &(length as u16).to_le_bytes());
        for (index, hash) in self.hashes.iter().enumerate() {
            put(&mut bytes, HASHES + 8 * index, &hash.to_le_bytes());
        }
        put(&mut bytes, IDENTITY, &self.identity.as_bytes()[..length]);
        let csum = crc64_we(&bytes[24..]);
        put(&mut bytes, 16, &csum.to_le_bytes());
        bytes
    }
}

/// The places of a disk of that size by which it is known again, in their order: all of a small
/// one; the first and the last megabyte of a large one, and 48 places of 64 KiB between them.
pub fn witness_places(sectors: u64) -> Vec<SectorRange> {
    const MEGABYTE: u64 = 2048;
    const EDGE: u64 = MEGABYTE / 8;
    const SAMPLE: u64 = 128;
    const SAMPLES: u64 = 48;
    let cut = |start: u64, length: u64| {
        SectorRange::from_bounds(Sector(start), Sector((start + length).min(sectors)))
    };
    let most = PLACES_MAX as u64;
    if sectors < 2 * MEGABYTE + 2 * SAMPLES * SAMPLE {
        let each = sectors.div_ceil(most).next_multiple_of(8);
        let places = (0..most).map(|index| cut(index * each, each));
        return places.filter(|place| !place.is_empty()).collect();
    }
    let edge = |start| (0..8).map(move |index| cut(start + index * EDGE, EDGE));
    let step = (sectors - 2 * MEGABYTE) / SAMPLES / 8 * 8;
    let samples = (0..SAMPLES).map(|index| cut(MEGABYTE + index * step + step / 16 * 8, SAMPLE));
    edge(0).chain(samples).chain(edge((sectors - MEGABYTE) / 8 * 8)).collect()
}

/// The places of a cache device where copies of headers may be: between its superblock and its
/// first bucket, which nobody else uses. None if the buckets are too small.
pub fn header_copy_places(cache: &Superblock) -> impl Iterator<Item = Sector> + use<> {
    let end = u64::from(cache.first_bucket) * u64::from(cache.bucket_sectors);
    let count = end.saturating_sub(COPIES_AT) / HEADER_SECTORS;
    (0..count.min(COPIES_MAX)).map(|index| Sector(COPIES_AT + index * HEADER_SECTORS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64) -> HeaderRecord {
        HeaderRecord {
            seq,
            uuid: Uuid([7; 16]),
            sectors: 1 << 20,
            written: 5,
            sealed: true,
            identity: "file:/disk".to_owned(),
            hashes: std::array::from_fn(|index| index as u64 * 3),
        }
    }

    #[test]
    fn the_newest_whole_record_counts() {
        let (old, new) = (record(4), record(5));
        let mut bytes = [old.encode(), new.encode()].concat();
        assert_eq!(HeaderRecord::read(&bytes), Some((new, 0)));
        bytes[3000] ^= 1;
        assert_eq!(HeaderRecord::read(&bytes), Some((old, 1)));
        bytes[100] ^= 1;
        assert_eq!(HeaderRecord::read(&bytes), None);
        assert_eq!(HeaderRecord::read(&[]), None);
    }

    #[test]
    fn places_are_in_order_apart_and_within_the_disk() {
        for sectors in [1, 8, 9, 4096, 10_239, 16_384, 16_385, 1 << 20, (1 << 31) + 5] {
            let places = witness_places(sectors);
            assert!(places.len() <= PLACES_MAX, "{sectors}: {}", places.len());
            assert!(places.iter().all(|place| !place.is_empty()), "{sectors}");
            assert!(places.windows(2).all(|two| two[0].end <= two[1].start), "{sectors}");
            assert!(places.last().is_some_and(|last| last.end.0 <= sectors), "{sectors}");
            assert_eq!(places[0].start, Sector(0));
            assert!(places.last().is_some_and(|last| sectors - last.end.0 < 8), "{sectors}");
        }
    }

    #[test]
    fn a_small_disk_is_seen_as_a_whole() {
        for sectors in [1, 9, 4096, 16_383] {
            let seen: u64 = witness_places(sectors).iter().map(SectorRange::sectors).sum();
            assert_eq!(seen, sectors);
        }
    }

    #[test]
    fn copies_are_between_superblock_and_first_bucket() {
        let cache = |bucket| {
            Superblock::new_cache(
                Uuid([1; 16]),
                Uuid([2; 16]),
                8,
                bucket,
                600,
                crate::superblock::Replacement::Lru,
                false,
            )
        };
        assert_eq!(header_copy_places(&cache(8)).count(), 0);
        assert_eq!(header_copy_places(&cache(128)).count(), 6);
        assert_eq!(header_copy_places(&cache(1024)).count(), 62);
        assert_eq!(header_copy_places(&cache(32_768)).count(), 64);
        assert!(header_copy_places(&cache(128)).all(|at| at.0 >= 32 && at.0 + 16 <= 128));
    }
}
