//! Records of a move of a volume to another disk (docs/reference/format.md §17).
//!
//! While a disk is being filled, and when it has been left, it has no superblock: the first sector
//! of the superblock's place says what it is instead.
//!
//! ```text
//!  0 name │ 16 csum │ 24 kind u32 │ 28 length of the other's name u16 │ 32 UUID of the backing device
//!  48 time │ 56 number of the attempt │ 64 name of the other disk │ 512
//! ```
//!
//! The seven sectors after it are the log of the attempt ([`MoveRegions`]).

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::move_regions::MoveRegions;
use crate::superblock::SUPERBLOCK_BYTES;
use crate::units::Uuid;

/// Bytes of a record: a sector, which is written as a whole or not at all.
pub const MOVE_RECORD_BYTES: usize = 512;

const NAME: [u8; 16] = *b"ubcache move\0\0\0\x01";
const OTHER: usize = 64;

/// The part of a disk in a move.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MoveRole {
    /// A volume is being copied to it, and is not served from it yet.
    Target,
    /// A volume was moved away from it.
    Left,
}

/// Statement of a disk that has no superblock because a volume moves to it, or was moved away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveRecord {
    /// Its part.
    pub role: MoveRole,
    /// UUID of the backing device.
    pub uuid: Uuid,
    /// Seconds since 1970.
    pub time: u64,
    /// Number of the attempt, by which the other disk knows this one; 0: none.
    pub attempt: u64,
    /// Name of the other disk, cut to 448 bytes.
    pub other: String,
}

impl MoveRecord {
    /// The record in the first sector of the superblock's place, if there is one.
    pub fn parse(bytes: &[u8]) -> Option<MoveRecord> {
        let bytes = bytes.get(..MOVE_RECORD_BYTES)?;
        if bytes[..16] != NAME || u64_at(bytes, 16) != crc64_we(&bytes[24..]) {
            return None;
        }
        let role = match u32_at(bytes, 24) {
            1 => MoveRole::Target,
            2 => MoveRole::Left,
            _ => return None,
        };
        let other = bytes.get(OTHER..OTHER + usize::from(u16_at(bytes, 28)))?;
        Some(MoveRecord {
            role,
            uuid: Uuid(array(bytes, 32)),
            time: u64_at(bytes, 48),
            attempt: u64_at(bytes, 56),
            other: String::from_utf8_lossy(other).into_owned(),
        })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; MOVE_RECORD_BYTES];
        let role: u32 = match self.role {
            MoveRole::Target => 1,
            MoveRole::Left => 2,
        };
        let length = self.other.floor_char_boundary(MOVE_RECORD_BYTES - OTHER);
        put(&mut bytes, 0, &NAME);
        put(&mut bytes, 24, &role.to_le_bytes());
        put(&mut bytes, 28, &(length as u16).to_le_bytes());
        put(&mut bytes, 32, &self.uuid.0);
        put(&mut bytes, 48, &self.time.to_le_bytes());
        put(&mut bytes, 56, &self.attempt.to_le_bytes());
        put(&mut bytes, OTHER, &self.other.as_bytes()[..length]);
        let csum = crc64_we(&bytes[24..]);
        put(&mut bytes, 16, &csum.to_le_bytes());
        bytes
    }

    /// The place of a superblock with this record and its log. Each sector of it counts by itself.
    pub fn encode_with(&self, regions: &MoveRegions) -> Vec<u8> {
        let mut bytes = self.encode();
        bytes.extend_from_slice(&regions.encode(self.attempt));
        debug_assert_eq!(bytes.len(), SUPERBLOCK_BYTES);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_damaged_one_is_none() {
        let record = MoveRecord {
            role: MoveRole::Left,
            uuid: Uuid([7; 16]),
            time: 1_800_000_000,
            attempt: 77,
            other: "ä".repeat(300),
        };
        let bytes = record.encode();
        let read = MoveRecord::parse(&bytes).expect("a record");
        assert_eq!(read, MoveRecord { other: "ä".repeat(224), ..record });
        for at in [0, 20, 24, 28, 40, 500] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(MoveRecord::parse(&damaged), None, "byte {at}");
        }
        assert_eq!(MoveRecord::parse(&bytes[..511]), None);
    }
}
