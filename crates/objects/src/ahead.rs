//! Read-ahead: a stream that goes on where it was gets more of the object than it asked for.
//!
//! A name has one content, so pieces need no invalidation: those of names that are not current are
//! never asked for, and age.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::names::Version;

/// Streams that are told apart.
const STREAMS_MAX: usize = 16;
/// First read-ahead.
const WINDOW_FIRST: u64 = 256 << 10;

struct Piece {
    index: u64,
    version: Version,
    start: u64,
    bytes: Bytes,
}

struct Stream {
    next: u64,
    window: u64,
}

/// Recent pieces of objects and the streams that read them.
pub struct ReadAhead {
    pieces: VecDeque<Piece>,
    memory_bytes: u64,
    memory_max: u64,
    streams: VecDeque<Stream>,
}

impl ReadAhead {
    /// Keeps up to `memory_max` bytes.
    pub fn new(memory_max: u64) -> ReadAhead {
        let (pieces, streams) = (VecDeque::new(), VecDeque::new());
        ReadAhead { pieces, memory_bytes: 0, memory_max, streams }
    }

    /// The bytes of the object in the range, if a piece has them all.
    pub fn get(&self, index: u64, version: Version, range: &Range<u64>) -> Option<Bytes> {
        let piece = self.pieces.iter().rev().find(|piece| {
            piece.index == index
                && piece.version == version
                && piece.start <= range.start
                && range.end <= piece.start + piece.bytes.len() as u64
        })?;
        let from = (range.start - piece.start) as usize;
        Some(piece.bytes.slice(from..from + (range.end - range.start) as usize))
    }

    /// Notes a read of these bytes of the volume. Returns bytes to read beyond it.
    pub fn note(&mut self, bytes: &Range<u64>) -> u64 {
        let len = bytes.end - bytes.start;
        let known = self.streams.iter().position(|stream| stream.next == bytes.start);
        let stream = match known.and_then(|known| self.streams.remove(known)) {
            Some(stream) => {
                let window = (stream.window * 2).max(WINDOW_FIRST).min(self.memory_max / 4);
                Stream { next: bytes.end, window }
            }
            None => Stream { next: bytes.end, window: 0 },
        };
        let window = stream.window;
        self.streams.push_back(stream);
        if self.streams.len() > STREAMS_MAX {
            self.streams.pop_front();
        }
        window.saturating_sub(len)
    }

    /// Keeps a piece of an object.
    pub fn keep(&mut self, index: u64, version: Version, start: u64, bytes: Bytes) {
        self.memory_bytes += bytes.len() as u64;
        self.pieces.push_back(Piece { index, version, start, bytes });
        while self.memory_bytes > self.memory_max {
            let Some(oldest) = self.pieces.pop_front() else { break };
            self.memory_bytes -= oldest.bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_reads_ahead() {
        let mut ahead = ReadAhead::new(4 << 20);
        assert_eq!(ahead.note(&(0..4096)), 0);
        assert_eq!(ahead.note(&(1 << 20..(1 << 20) + 4096)), 0);
        assert_eq!(ahead.note(&(4096..8192)), (256 << 10) - 4096);
        assert_eq!(ahead.note(&(8192..12_288)), (512 << 10) - 4096);
        assert_eq!(ahead.note(&(5..6)), 0);
    }

    #[test]
    fn pieces_are_of_one_name_and_age() {
        let mut ahead = ReadAhead::new(100);
        let (old, new) = (Version(1, 1), Version(1, 2));
        ahead.keep(7, old, 10, Bytes::from(vec![3; 60]));
        assert_eq!(ahead.get(7, old, &(20..30)), Some(Bytes::from(vec![3; 10])));
        assert_eq!(ahead.get(7, new, &(20..30)), None);
        assert_eq!(ahead.get(7, old, &(60..71)), None);
        ahead.keep(7, new, 10, Bytes::from(vec![4; 60]));
        assert_eq!(ahead.get(7, old, &(20..30)), None, "it had to make room");
    }
}
