//! The log of a move, on the disk that a volume moves to: regions in which that disk and the one
//! that the volume is on may differ (docs/reference/format.md §17).
//!
//! It has seven sectors, each with a checksum and a part of the bits. Of a sector that was not
//! written as a whole, or is of another attempt, every region may differ.

use crate::bytes::{put, u64_at};
use crate::checksum::crc64_we;

const NAME: [u8; 16] = *b"ubcache moved?\0\x01";
const SECTOR: usize = 512;
const SECTORS: usize = 7;
const HEAD: usize = 56;
/// Bytes of bits in a sector.
const PART: usize = SECTOR - HEAD;
/// Regions that a log has at most.
const REGIONS_MAX: u64 = (SECTORS * PART * 8) as u64;

/// Regions of a disk, and of each whether it may differ on another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveRegions {
    end: u64,
    region_sectors: u64,
    bits: Vec<u8>,
}

impl MoveRegions {
    /// Regions up to this sector, which are multiples of so many sectors. None may differ.
    pub fn none(end: u64, part_sectors: u64) -> MoveRegions {
        let mut region_sectors = part_sectors.max(1);
        while end.div_ceil(region_sectors) > REGIONS_MAX {
            region_sectors *= 2;
        }
        MoveRegions { end, region_sectors, bits: vec![0; SECTORS * PART] }
    }

    /// The same; all may differ.
    pub fn all(end: u64, part_sectors: u64) -> MoveRegions {
        let mut regions = MoveRegions::none(end, part_sectors);
        regions.bits.fill(0xff);
        regions
    }

    /// The log behind a record of this attempt. `None`: it is of other regions than `like`.
    pub fn parse(bytes: &[u8], attempt: u64, like: &MoveRegions) -> Option<MoveRegions> {
        let mut regions = MoveRegions { bits: Vec::with_capacity(SECTORS * PART), ..like.clone() };
        let mut any = false;
        for index in 0..SECTORS {
            let sector = bytes.get((index + 1) * SECTOR..(index + 2) * SECTOR)?;
            let is_whole = sector[..16] == NAME
                && u64_at(sector, 16) == crc64_we(&sector[24..])
                && u64_at(sector, 24) == attempt
                && u64_at(sector, 48) == index as u64;
            if is_whole
                && [u64_at(sector, 32), u64_at(sector, 40)] != [like.end, like.region_sectors]
            {
                return None;
            }
            any |= is_whole;
            match is_whole {
                true => regions.bits.extend_from_slice(&sector[HEAD..]),
                false => regions.bits.resize(regions.bits.len() + PART, 0xff),
            }
        }
        any.then_some(regions)
    }

    /// The sectors behind the record.
    pub(crate) fn encode(&self, attempt: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTORS * SECTOR];
        let sectors = bytes.chunks_exact_mut(SECTOR).zip(self.bits.chunks_exact(PART));
        for (index, (sector, bits)) in (0_u64..).zip(sectors) {
            put(sector, 0, &NAME);
            put(sector, 24, &attempt.to_le_bytes());
            put(sector, 32, &self.end.to_le_bytes());
            put(sector, 40, &self.region_sectors.to_le_bytes());
            put(sector, 48, &index.to_le_bytes());
            put(sector, HEAD, bits);
            let csum = crc64_we(&sector[24..]);
            put(sector, 16, &csum.to_le_bytes());
        }
        bytes
    }

    /// Returns true if these are regions of the same sectors.
    pub fn are_like(&self, other: &MoveRegions) -> bool {
        (self.end, self.region_sectors) == (other.end, other.region_sectors)
    }

    /// The sector behind the last region.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Numbers of the regions that sectors are in: the first, and the one after the last.
    pub fn of(&self, start: u64, end: u64) -> core::ops::Range<u64> {
        let count = self.end.div_ceil(self.region_sectors);
        let end = end.div_ceil(self.region_sectors).min(count);
        (start / self.region_sectors).min(end)..end
    }

    /// First sector of a region, and the one after its last.
    pub fn sectors(&self, region: u64) -> (u64, u64) {
        let start = region * self.region_sectors;
        (start, (start + self.region_sectors).min(self.end))
    }

    /// Returns true if a region may differ.
    pub fn has(&self, region: u64) -> bool {
        self.bits.get((region / 8) as usize).is_some_and(|byte| byte >> (region % 8) & 1 == 1)
    }

    /// A region may differ from now on.
    pub fn insert(&mut self, region: u64) {
        if let Some(byte) = self.bits.get_mut((region / 8) as usize) {
            *byte |= 1 << (region % 8);
        }
    }

    /// A region is the same from now on.
    pub fn remove(&mut self, region: u64) {
        if let Some(byte) = self.bits.get_mut((region / 8) as usize) {
            *byte &= !(1 << (region % 8));
        }
    }

    /// Returns true if none may differ.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// All regions that may differ.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.of(0, self.end).filter(|region| self.has(*region))
    }

    /// Adds the regions that may differ by `other`.
    pub fn merge(&mut self, other: &MoveRegions) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(byte, other)| *byte |= other);
    }

    /// Keeps those that may differ by `other` as well.
    pub fn intersect(&mut self, other: &MoveRegions) {
        self.bits.iter_mut().zip(&other.bits).for_each(|(byte, other)| *byte &= other);
    }

    /// Returns true if all that may differ may do so by `other` as well.
    pub fn are_in(&self, other: &MoveRegions) -> bool {
        self.bits.iter().zip(&other.bits).all(|(byte, other)| byte & !other == 0)
    }

    /// No region differs.
    pub fn clear(&mut self) {
        self.bits.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MoveRecord, MoveRole, Uuid};

    fn head(regions: &MoveRegions) -> Vec<u8> {
        let (uuid, other) = (Uuid([7; 16]), "old".to_owned());
        MoveRecord { role: MoveRole::Target, uuid, time: 1, attempt: 9, other }.encode_with(regions)
    }

    #[test]
    fn a_large_disk_has_larger_regions_and_all_of_them_fit() {
        let small = MoveRegions::all(1000, 8);
        assert_eq!((small.of(0, 9), small.sectors(124)), (0..2, (992, 1000)));
        assert_eq!(small.iter().count(), 125);
        let large = MoveRegions::all(1 << 35, 2048);
        assert!((10_000..=REGIONS_MAX).contains(&(large.iter().count() as u64)));
    }

    #[test]
    fn of_a_sector_that_is_not_whole_all_may_differ() {
        let none = MoveRegions::none(100_000, 8);
        let mut regions = none.clone();
        [0, 17, 4000].into_iter().for_each(|region| regions.insert(region));
        let bytes = head(&regions);
        assert_eq!(MoveRegions::parse(&bytes, 9, &none), Some(regions.clone()));
        assert_eq!(MoveRegions::parse(&bytes, 8, &none), None, "another attempt");
        assert_eq!(MoveRegions::parse(&bytes, 9, &MoveRegions::none(100_001, 8)), None);
        for at in [512, 600, 1023] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            let read = MoveRegions::parse(&torn, 9, &none).expect("the others are whole");
            assert!((0..PART as u64 * 8).all(|region| read.has(region)), "byte {at}");
            assert!(read.has(4000) && !read.has(4001));
            assert!(regions.are_in(&read) && !read.are_in(&regions));
        }
    }
}
