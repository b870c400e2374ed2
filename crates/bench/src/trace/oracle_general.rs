//! oracleGeneral, the binary format of libCacheSim: little-endian records of 24 bytes, no header,
//! all reads.
//!
//! ```text
//! time u32 · object u64 · bytes u32 · number of the object's next request i64, -1 for none
//! ```
//! Numbers of objects say nothing of places. Objects are put one behind the other as they come, in
//! whole blocks, and keep the size of their first request.

use std::io::Read;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{TraceError, TraceRecord};
use crate::BLOCK_BYTES;

const RECORD_BYTES: usize = 24;
/// Number of records that have to make sense.
const RECORDS_MIN: usize = 2;

struct Record {
    time: u32,
    object: u64,
    bytes: u32,
    next: i64,
}

impl Record {
    fn decode(bytes: &[u8]) -> Record {
        let part = |from: usize, to: usize| {
            let mut number = [0; 8];
            number[..to - from].copy_from_slice(&bytes[from..to]);
            u64::from_le_bytes(number)
        };
        Record {
            time: part(0, 4) as u32,
            object: part(4, 12),
            bytes: part(12, 16) as u32,
            next: part(16, 24) as i64,
        }
    }
}

/// Returns true if these look like the first records: times in order, sizes, and next requests
/// that come later.
pub(super) fn is_trace(first: &[u8]) -> bool {
    let records: Vec<Record> = first.chunks_exact(RECORD_BYTES).map(Record::decode).collect();
    let makes_sense = |(number, record): (usize, &Record)| {
        let has_next = record.next > number as i64;
        record.bytes > 0 && record.bytes < 1 << 31 && (record.next == -1 || has_next)
    };
    records.len() >= RECORDS_MIN
        && records.is_sorted_by_key(|record| record.time)
        && records.iter().enumerate().all(makes_sense)
}

pub(super) fn parse(mut from: impl Read) -> Result<Vec<TraceRecord>, TraceError> {
    let mut places: HashMap<u64, TraceRecord, FixedState> = HashMap::default();
    let (mut next, mut requests) = (0u64, Vec::new());
    let mut bytes = [0; RECORD_BYTES];
    loop {
        let mut have = 0;
        while have < bytes.len() {
            match from.read(&mut bytes[have..])? {
                // A record that was cut off at the end is left out.
                0 => return Ok(requests),
                count => have += count,
            }
        }
        let record = Record::decode(&bytes);
        if record.bytes == 0 {
            continue;
        }
        let place = places.entry(record.object).or_insert_with(|| {
            let (offset, bytes) = (next, u64::from(record.bytes));
            next += bytes.next_multiple_of(BLOCK_BYTES);
            TraceRecord { write: false, offset, bytes }
        });
        requests.push(*place);
    }
}
