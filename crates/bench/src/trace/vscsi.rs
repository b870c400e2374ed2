//! VMware's SCSI traces: little-endian records of 32 (version 1) or 40 bytes (version 2), no
//! header.
//!
//! ```text
//! 1: serial u32 · bytes u32 · segments u32 · command u16 · version u16 · sector u64 · time u64
//! 2: command u16 · version u16 · serial u32 · bytes u32 · segments u32 · sector u64 · time u64 · response u64
//! ```
//! The version is in the upper byte of its field.

use std::io::Read;

use super::{SECTOR_BYTES, TraceError, TraceRecord, writes};

/// Bytes that hold several records, enough to detect the version.
pub(super) const PROBE_BYTES: u64 = 160;
/// Number of records that have to agree.
const RECORDS_MIN: usize = 2;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Version {
    One,
    Two,
}

impl Version {
    fn record_bytes(self) -> usize {
        match self {
            Version::One => 32,
            Version::Two => 40,
        }
    }

    /// Byte offsets of command, size; the version is behind the command.
    fn places(self) -> (usize, usize) {
        match self {
            Version::One => (12, 4),
            Version::Two => (0, 8),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The version, if the first records agree on one.
pub(super) fn version(first: &[u8]) -> Option<Version> {
    [Version::Two, Version::One].into_iter().find(|version| {
        let wanted = if *version == Version::One { 1 } else { 2 };
        let mut records = first.chunks_exact(version.record_bytes());
        records.len() >= RECORDS_MIN
            && records.all(|record| u16_at(record, version.places().0 + 2) >> 8 == wanted)
    })
}

pub(super) fn parse(version: Version, mut from: impl Read) -> Result<Vec<TraceRecord>, TraceError> {
    let mut record = vec![0; version.record_bytes()];
    let mut requests = Vec::new();
    loop {
        let mut have = 0;
        while have < record.len() {
            match from.read(&mut record[have..])? {
                // A record that was cut off at the end is left out.
                0 => return Ok(requests),
                count => have += count,
            }
        }
        let (command, size) = version.places();
        let Some(write) = writes(&format!("{:x}", u16_at(&record, command))) else { continue };
        let bytes = u32::from_le_bytes(record[size..size + 4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(record[16..24].try_into().expect("eight bytes"));
        if let (Some(offset), true) = (sector.checked_mul(SECTOR_BYTES), bytes > 0) {
            requests.push(TraceRecord { write, offset, bytes: u64::from(bytes) });
        }
    }
}
