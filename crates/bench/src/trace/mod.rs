//! Recorded loads.
//!
//! | format | lines or records |
//! |---|---|
//! | CSV with a header | columns by name: a time, an operation, a size, an offset in bytes or a sector (`lbn`, `sector`, `lba`) |
//! | CSV without one | `time,op,offset,size`, offset and size in bytes |
//! | `.vscsi` | VMware's SCSI traces, versions 1 and 2 |
//! | blkparse text | the lines of action `Q` (queued) |
//! | ARC's `.lis` | lines of four numbers: first block of 512 bytes, blocks, ignored, request |
//! | MQSim | lines of five numbers: time in ns, device, first sector, sectors, 0 for a write |
//! | oracleGeneral | libCacheSim's records of 24 bytes |
//!
//! Any of them may be packed with xz or zstd. Operations are words that begin with r or w in either
//! case, or SCSI opcodes in hexadecimal.

use std::io::{BufRead, Cursor, Read};
use std::path::Path;

mod blkparse;
mod columns;
mod csv;
mod oracle_general;
#[cfg(test)]
mod tests;
mod unpack;
mod vscsi;

use columns::Columns;

/// Bytes in a sector of a trace.
const SECTOR_BYTES: u64 = 512;

/// A request of a recorded load.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TraceRecord {
    /// True if it writes.
    pub write: bool,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes; never 0.
    pub bytes: u64,
}

/// A trace that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("can't read it: {0}")]
    Io(#[from] std::io::Error),
    /// The text has none of the formats.
    #[error(
        "not a trace: found {found}; expected CSV (time,op,offset,size, or columns named in a \
         header), .vscsi, the text of blkparse, ARC's .lis, MQSim, or oracleGeneral"
    )]
    UnknownFormat {
        /// Beginning of the file.
        found: String,
    },
    /// A line makes no sense.
    #[error("line {line}: found \"{found}\", expected {expected}")]
    BadLine {
        /// Its number, from 1.
        line: usize,
        /// Text that was found.
        found: String,
        /// Text that was expected.
        expected: String,
    },
    /// There is nothing to replay in it.
    #[error("no reads or writes in it")]
    Empty,
}

/// Readings of a trace that its bytes leave open.
#[derive(Copy, Clone, Debug)]
pub struct Options {
    /// Bytes of a block in the format `.lis`: 512, or the pages of a database.
    pub lis_block_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { lis_block_bytes: SECTOR_BYTES }
    }
}

/// Reads a whole trace. `-` is standard input.
pub fn read(path: &Path, options: Options) -> Result<Vec<TraceRecord>, TraceError> {
    let file: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(path)?),
    };
    parse(unpack::unpack(file)?, options)
}

/// Reads a trace in any of the formats, not packed.
pub fn parse(mut from: impl BufRead, options: Options) -> Result<Vec<TraceRecord>, TraceError> {
    let mut first = Vec::new();
    (&mut from).take(vscsi::PROBE_BYTES).read_to_end(&mut first)?;
    let is_text =
        !first.is_empty() && first.iter().all(|&byte| byte >= b' ' || byte.is_ascii_whitespace());
    let requests =
        if is_text { parse_text(&first, from, options)? } else { parse_binary(&first, from)? };
    if requests.is_empty() { Err(TraceError::Empty) } else { Ok(requests) }
}

fn parse_text(
    first: &[u8],
    rest: impl BufRead,
    options: Options,
) -> Result<Vec<TraceRecord>, TraceError> {
    let line = String::from_utf8_lossy(first).lines().next().unwrap_or_default().to_owned();
    let lines = Cursor::new(first).chain(rest).lines();
    if blkparse::is_event(&line) {
        blkparse::parse(lines)
    } else if line.contains(',') {
        csv::parse(lines)
    } else if let Some(columns) = Columns::of(&line) {
        columns::parse(columns, lines, options.lis_block_bytes)
    } else {
        Err(TraceError::UnknownFormat { found: format!("\"{line}\"") })
    }
}

fn parse_binary(first: &[u8], rest: impl Read) -> Result<Vec<TraceRecord>, TraceError> {
    let whole = Cursor::new(first).chain(rest);
    if let Some(version) = vscsi::version(first) {
        vscsi::parse(version, whole)
    } else if oracle_general::is_trace(first) {
        oracle_general::parse(whole)
    } else {
        Err(TraceError::UnknownFormat { found: "bytes of no known format".to_owned() })
    }
}

/// Returns true if an operation writes; `None` for one that neither reads nor writes.
fn writes(operation: &str) -> Option<bool> {
    let word = operation.trim().trim_start_matches("0x").to_ascii_lowercase();
    match word.as_str() {
        // READ and WRITE of SCSI, with addresses of 6, 10, 12 and 16 bytes.
        "8" | "08" | "28" | "a8" | "88" => Some(false),
        "a" | "0a" | "2a" | "aa" | "8a" => Some(true),
        _ if word.starts_with('r') => Some(false),
        _ if word.starts_with('w') => Some(true),
        _ => None,
    }
}
