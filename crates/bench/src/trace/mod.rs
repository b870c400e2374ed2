//! Recorded loads.
//!
//! | format | lines or records |
//! |---|---|
//! | CSV with a header | columns by name: a time, an operation, a size, an offset in bytes or a sector (`lbn`, `sector`, `lba`) |
//! | CSV without one | `time,op,offset,size`, offset and size in bytes |
//! | `.vscsi` | VMware's SCSI traces, versions 1 and 2 |
//! | blkparse text | the lines of action `Q` (queued) |
//!
//! Any of them may be packed with xz. Operations are words that begin with r or w in either case,
//! or SCSI opcodes in hexadecimal.

use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

mod blkparse;
mod csv;
mod vscsi;

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
         header), \
         .vscsi, or the text of blkparse"
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

/// Reads a whole trace. `-` is standard input.
pub fn read(path: &Path) -> Result<Vec<TraceRecord>, TraceError> {
    let mut file: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(path)?),
    };
    let mut head = [0; 6];
    let mut have = 0;
    while have < head.len() {
        match file.read(&mut head[have..])? {
            0 => break,
            count => have += count,
        }
    }
    let whole = Cursor::new(head[..have].to_vec()).chain(file);
    if head == *b"\xfd7zXZ\0" {
        parse(BufReader::new(lzma_rust2::XzReader::new(whole, true)))
    } else {
        parse(BufReader::with_capacity(1 << 20, whole))
    }
}

/// Reads a trace in any of the formats, not packed.
pub fn parse(mut from: impl BufRead) -> Result<Vec<TraceRecord>, TraceError> {
    let mut first = Vec::new();
    (&mut from).take(vscsi::PROBE_BYTES).read_to_end(&mut first)?;
    let requests = if let Some(version) = vscsi::version(&first) {
        vscsi::parse(version, Cursor::new(first).chain(from))?
    } else {
        let is_text = !first.is_empty()
            && first.iter().all(|&byte| byte >= b' ' || byte.is_ascii_whitespace());
        let line: String =
            String::from_utf8_lossy(&first).lines().next().unwrap_or_default().to_owned();
        let lines = Cursor::new(first).chain(from).lines();
        if is_text && blkparse::is_event(&line) {
            blkparse::parse(lines)?
        } else if is_text && line.contains(',') {
            csv::parse(lines)?
        } else {
            let found =
                if is_text { format!("\"{line}\"") } else { "bytes of no known format".to_owned() };
            return Err(TraceError::UnknownFormat { found });
        }
    };
    if requests.is_empty() { Err(TraceError::Empty) } else { Ok(requests) }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str) -> Vec<(bool, u64, u64)> {
        let all = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        all.into_iter().map(|request| (request.write, request.offset, request.bytes)).collect()
    }

    #[test]
    fn trace_format_is_recognised_by_content() {
        let expected = vec![(false, 4096, 8192), (true, 512, 512)];
        assert_eq!(requests("0.5,R,4096,8192\n0.7,write,512,512\n"), expected);
        assert_eq!(
            requests("version,time,op,size,lbn\n1,5,28,8192,8\n1,6,2a,512,1\n1,6,0,512,1\n"),
            expected
        );
        assert_eq!(
            requests("Offset,Size,Type,Timestamp\n4096,8192,Read,1\n512,512,Write,2\n"),
            expected
        );
        assert_eq!(
            requests(
                "  8,0    3        1     0.000000000   697  Q   R 8 + 16 [fio]\n\
                 8,0    3        2     0.000000100   697  G   R 8 + 16 [fio]\n\
                 8,0    3        3     0.000000200   697  Q  WS 1 + 1 [fio]\n\
                 8,0    3        4     0.000000300   697  Q FWS [fio]\n\
                 CPU0 (8,0):\n Reads Queued:           1,        8KiB\n"
            ),
            expected
        );
        for version in [1u16, 2] {
            let mut bytes = Vec::new();
            for (cmd, len, lbn) in [(0x28u16, 8192u32, 8u64), (0x2a, 512, 1)] {
                let numbers = [7u32.to_le_bytes(), len.to_le_bytes(), 1u32.to_le_bytes()].concat();
                let kind = [cmd.to_le_bytes(), (version << 8).to_le_bytes()].concat();
                bytes.extend(if version == 1 {
                    [numbers, kind].concat()
                } else {
                    [kind, numbers].concat()
                });
                bytes.extend(lbn.to_le_bytes());
                bytes.extend(99u64.to_le_bytes());
                bytes.extend(if version == 1 { vec![] } else { vec![0; 8] });
            }
            let all = parse(bytes.as_slice()).expect("a trace");
            assert_eq!(
                all.iter().map(|it| (it.write, it.offset, it.bytes)).collect::<Vec<_>>(),
                expected
            );
        }
    }

    #[test]
    fn malformed_trace_is_refused_with_its_line() {
        let refused = |bytes: &[u8]| parse(bytes).expect_err("it is no trace").to_string();
        assert!(refused(b"").contains("not a trace"));
        assert!(refused(b"hello\n").contains("found \"hello\""));
        assert!(refused(&[0; 400]).contains("no known format"));
        assert!(refused(b"1,R,4096,8192\n2,R,x,8192\n").starts_with("line 2: found \"x\""));
        assert!(refused(b"time,op,size\n1,R,8192\n").contains("an offset or a sector"));
        assert!(refused(b"1,flush,0,0\n").contains("no reads or writes"));
    }
}
