//! The text of blkparse: `8,0 3 1 0.000000000 697 Q R 223490 + 8 [fio]`.

use std::io;

use super::{SECTOR_BYTES, TraceError, TraceRecord};

/// Returns true if a line looks like an event: device, processor, number, time, process, action.
pub(super) fn is_event(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let device = words.next().and_then(|word| word.split_once(','));
    let is_device = device
        .is_some_and(|(major, minor)| major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok());
    is_device && words.count() >= 5
}

pub(super) fn parse(
    lines: impl Iterator<Item = io::Result<String>>,
) -> Result<Vec<TraceRecord>, TraceError> {
    let mut requests = Vec::new();
    for (index, line) in lines.enumerate() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        // Anything else is another event, or the summary at the end.
        let [_, _, _, _, _, "Q", kind, sector, "+", count, ..] = words.as_slice() else { continue };
        let write = match (kind.contains('W'), kind.contains('R'), kind.contains('D')) {
            (true, _, false) => true,
            (_, true, false) => false,
            _ => continue,
        };
        let number = |text: &str| {
            text.parse::<u64>().map_err(|_| TraceError::BadLine {
                line: index + 1,
                found: text.to_owned(),
                expected: "a number of sectors".to_owned(),
            })
        };
        let (sector, count) = (number(sector)?, number(count)?);
        if let (Some(offset), true) = (sector.checked_mul(SECTOR_BYTES), count > 0) {
            requests.push(TraceRecord { write, offset, bytes: count * SECTOR_BYTES });
        }
    }
    Ok(requests)
}
