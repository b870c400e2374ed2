//! Comma-separated values.

use std::io;

use super::{SECTOR_BYTES, TraceError, TraceRecord, writes};

/// Indices of the columns.
struct Columns {
    operation: usize,
    size: usize,
    place: usize,
    /// Bytes in a unit of `place`.
    unit: u64,
}

impl Columns {
    const PLAIN: Columns = Columns { operation: 1, size: 3, place: 2, unit: 1 };

    fn of_header(header: &str) -> Result<Columns, TraceError> {
        let names: Vec<String> =
            header.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        let find = |wanted: &[&str]| names.iter().position(|name| wanted.contains(&name.as_str()));
        let missing = |expected: &str| TraceError::BadLine {
            line: 1,
            found: header.to_owned(),
            expected: format!("a column for {expected}"),
        };
        let offset = find(&["offset", "byte", "byte_offset"]).map(|place| (place, 1));
        let sector = find(&["lbn", "lba", "sector", "block"]).map(|place| (place, SECTOR_BYTES));
        let (place, unit) = offset.or(sector).ok_or_else(|| missing("an offset or a sector"))?;
        Ok(Columns {
            operation: find(&["op", "opcode", "operation", "type", "rw"])
                .ok_or_else(|| missing("an operation"))?,
            size: find(&["size", "length", "len", "bytes"]).ok_or_else(|| missing("a size"))?,
            place,
            unit,
        })
    }
}

pub(super) fn parse(
    lines: impl Iterator<Item = io::Result<String>>,
) -> Result<Vec<TraceRecord>, TraceError> {
    let mut columns = Columns::PLAIN;
    let mut requests = Vec::new();
    for (index, line) in lines.enumerate() {
        let line = line?;
        let begins_with_a_number = line.trim_start().starts_with(|c: char| c.is_ascii_digit());
        if index == 0 && !begins_with_a_number {
            columns = Columns::of_header(&line)?;
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let bad = |found: &str, expected: &str| TraceError::BadLine {
            line: index + 1,
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        let field =
            |column: usize| fields.get(column).copied().ok_or_else(|| bad(&line, "more columns"));
        let number = |column: usize| {
            let text = field(column)?;
            text.parse::<u64>().map_err(|_| bad(text, "a whole number"))
        };
        let Some(write) = writes(field(columns.operation)?) else { continue };
        let (place, bytes) = (number(columns.place)?, number(columns.size)?);
        let offset =
            place.checked_mul(columns.unit).ok_or_else(|| bad(&line, "a place on a device"))?;
        if bytes > 0 {
            requests.push(TraceRecord { write, offset, bytes });
        }
    }
    Ok(requests)
}
