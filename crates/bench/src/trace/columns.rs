//! Lines of whole numbers without names: the traces of ARC, and those of MQSim.
//!
//! ```text
//! ARC:   first block of 512 bytes · blocks · ignored · number of the request       (all reads)
//! MQSim: time (ns) · device · first sector · sectors · 0 for a write, 1 for a read
//! ```

use std::collections::BTreeMap;
use std::io;

use super::{SECTOR_BYTES, TraceError, TraceRecord};

/// Devices of a trace lie one behind the other, at multiples of this.
const DEVICE_BYTES: u64 = 1 << 20;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Columns {
    Arc,
    MqSim,
}

impl Columns {
    /// Recognises the format by the number of columns.
    pub(super) fn of(line: &str) -> Option<Columns> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.iter().any(|word| word.parse::<u64>().is_err()) {
            return None;
        }
        match words.len() {
            4 => Some(Columns::Arc),
            5 => Some(Columns::MqSim),
            _ => None,
        }
    }

    fn count(self) -> usize {
        match self {
            Columns::Arc => 4,
            Columns::MqSim => 5,
        }
    }
}

pub(super) fn parse(
    columns: Columns,
    lines: impl Iterator<Item = io::Result<String>>,
    arc_block_bytes: u64,
) -> Result<Vec<TraceRecord>, TraceError> {
    let mut requests = Vec::new();
    for (index, line) in lines.enumerate() {
        let line = line?;
        let bad = |found: &str, expected: &str| TraceError::BadLine {
            line: index + 1,
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        let words = line.split_whitespace().map(|word| {
            word.parse::<u64>().map_err(|_| bad(word, "a whole number of at most 64 bits"))
        });
        let numbers = words.collect::<Result<Vec<u64>, TraceError>>()?;
        if numbers.is_empty() {
            continue;
        }
        if numbers.len() != columns.count() {
            return Err(bad(&line, &format!("{} numbers", columns.count())));
        }
        let unit = if columns == Columns::Arc { arc_block_bytes } else { SECTOR_BYTES };
        let (device, first, count, write) = match columns {
            Columns::Arc => (0, numbers[0], numbers[1], false),
            Columns::MqSim if numbers[4] > 1 => {
                return Err(bad(&line, "0 or 1 in the last column"));
            }
            Columns::MqSim => (numbers[1], numbers[2], numbers[3], numbers[4] == 0),
        };
        let offset = first.checked_mul(unit);
        let bytes = count.checked_mul(unit);
        let (Some(offset), Some(bytes)) = (offset, bytes) else {
            return Err(bad(&line, "a place on a device"));
        };
        if bytes > 0 {
            requests.push((device, TraceRecord { write, offset, bytes }));
        }
    }
    Ok(on_one_device(requests))
}

/// Puts the devices of a trace one behind the other, in order of their numbers.
fn on_one_device(requests: Vec<(u64, TraceRecord)>) -> Vec<TraceRecord> {
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for (device, request) in &requests {
        let end = ends.entry(*device).or_default();
        *end = (*end).max(request.offset.saturating_add(request.bytes));
    }
    let mut next = 0u64;
    let mut starts: BTreeMap<u64, u64> = BTreeMap::new();
    for (device, end) in ends {
        starts.insert(device, next);
        next = next.saturating_add(end).next_multiple_of(DEVICE_BYTES);
    }
    let moved = |(device, request): (u64, TraceRecord)| TraceRecord {
        offset: request.offset.saturating_add(starts[&device]),
        ..request
    };
    requests.into_iter().map(moved).collect()
}
