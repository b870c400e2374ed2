//! Read-ahead: a stream that goes on where it was has the next bytes fetched beside its own
//! requests.
//!
//! ```text
//!            next                       until
//!   … read ──┤ pieces: here, or coming ├──         a stream, in the volume
//!            └──────── window ────────────┘        grows with each request, to a limit
//! ```
//!
//! A name has one content, so pieces need no invalidation: those of names that are not current are
//! never asked for, and age.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use ubcache_env::local::Event;

use crate::names::Version;

/// Streams that are told apart.
const STREAMS_MAX: usize = 16;
/// First read-ahead.
const WINDOW_FIRST: u64 = 256 << 10;
/// Largest piece: a reader waits for the whole of it.
pub const PIECE_MAX: u64 = 1 << 20;

struct Piece {
    number: u64,
    index: u64,
    version: Version,
    range: Range<u64>,
    content: Content,
}

enum Content {
    Coming(Rc<Event>),
    Here(Bytes),
}

/// The piece that has a byte of an object.
pub enum Found {
    /// There is none before this end of the range that was asked for.
    Nothing(u64),
    /// It is being fetched.
    Coming(Rc<Event>),
    /// Its bytes, from that one to the end of the range at most.
    Here(Bytes),
}

struct Stream {
    next: u64,
    window: u64,
    until: u64,
}

/// Recent pieces of objects and the streams that read them.
pub struct ReadAhead {
    pieces: VecDeque<Piece>,
    memory_bytes: u64,
    memory_max: u64,
    streams: VecDeque<Stream>,
    next_number: u64,
}

impl ReadAhead {
    /// Keeps up to `memory_max` bytes.
    pub fn new(memory_max: u64) -> ReadAhead {
        let (pieces, streams) = (VecDeque::new(), VecDeque::new());
        ReadAhead { pieces, memory_bytes: 0, memory_max, streams, next_number: 0 }
    }

    /// The piece that has the first byte of the range of the object.
    pub fn look(&self, index: u64, version: Version, range: &Range<u64>) -> Found {
        let mut free = range.end;
        for piece in self.pieces.iter().rev() {
            if piece.index != index || piece.version != version {
                continue;
            }
            if !piece.range.contains(&range.start) {
                if piece.range.start > range.start {
                    free = free.min(piece.range.start);
                }
                continue;
            }
            return match &piece.content {
                Content::Coming(event) => Found::Coming(event.clone()),
                Content::Here(bytes) => {
                    let from = (range.start - piece.range.start) as usize;
                    let end = (piece.range.end.min(range.end) - piece.range.start) as usize;
                    Found::Here(bytes.slice(from..end))
                }
            };
        }
        Found::Nothing(free)
    }

    /// Notes a read of these bytes of the volume. Returns those to fetch now for the reads to come.
    pub fn note(&mut self, bytes: &Range<u64>) -> Range<u64> {
        let known = self.streams.iter().position(|stream| stream.next == bytes.start);
        let mut stream = match known.and_then(|known| self.streams.remove(known)) {
            Some(stream) => {
                let window = (stream.window * 2).max(WINDOW_FIRST).min(self.memory_max / 4);
                Stream { next: bytes.end, window, until: stream.until.max(bytes.end) }
            }
            None => Stream { next: bytes.end, window: 0, until: bytes.end },
        };
        let (from, to) = (stream.until, stream.next + stream.window);
        // In large steps: not a request for each that the stream makes.
        let is_due = from - stream.next <= stream.window / 2 && from < to && self.has_room();
        if is_due {
            stream.until = to;
        }
        self.streams.push_back(stream);
        if self.streams.len() > STREAMS_MAX {
            self.streams.pop_front();
        }
        if is_due { from..to } else { from..from }
    }

    fn has_room(&self) -> bool {
        self.memory_bytes <= self.memory_max
    }

    /// A piece is about to be fetched. Returns its number.
    pub fn begin(&mut self, index: u64, version: Version, range: Range<u64>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.memory_bytes += range.end - range.start;
        let content = Content::Coming(Rc::default());
        self.pieces.push_back(Piece { number, index, version, range, content });
        while !self.has_room() {
            // One that is still coming may be late for as long as the store is away.
            let here = |piece: &Piece| matches!(piece.content, Content::Here(_));
            let oldest = self.pieces.iter().position(here);
            let Some(piece) = oldest.and_then(|at| self.pieces.remove(at)) else { break };
            self.memory_bytes -= piece.range.end - piece.range.start;
        }
        number
    }

    /// A piece has come, or will not come.
    pub fn end(&mut self, number: u64, bytes: Option<Bytes>) {
        let found = self.pieces.iter().position(|piece| piece.number == number);
        let Some(at) = found else { return };
        let content = match bytes {
            Some(bytes) => {
                Some(std::mem::replace(&mut self.pieces[at].content, Content::Here(bytes)))
            }
            None => self.pieces.remove(at).map(|piece| {
                self.memory_bytes -= piece.range.end - piece.range.start;
                piece.content
            }),
        };
        if let Some(Content::Coming(event)) = content {
            event.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_reads_ahead_in_steps_of_half_a_window() {
        let mut ahead = ReadAhead::new(4 << 20);
        let kib = |range: Range<u64>| range.start << 10..range.end << 10;
        assert!(ahead.note(&kib(0..4)).is_empty());
        assert!(ahead.note(&kib(1024..1028)).is_empty());
        assert_eq!(ahead.note(&kib(4..8)), kib(8..264));
        assert_eq!(ahead.note(&kib(8..12)), kib(264..524), "the window has doubled");
        assert_eq!(ahead.note(&kib(12..16)), kib(524..1040), "and again, to a quarter");
        assert!(ahead.note(&kib(16..20)).is_empty(), "more than half of it is on its way");
        assert!(ahead.note(&(5..6)).is_empty());
    }

    #[test]
    fn a_piece_that_does_not_come_keeps_no_others_in_memory() {
        let mut ahead = ReadAhead::new(1 << 20);
        let version = Version(1, 1);
        ahead.begin(0, version, 0..1024);
        for index in 1..10_000 {
            let number = ahead.begin(index, version, 0..64 << 10);
            ahead.end(number, Some(Bytes::from(vec![0; 64 << 10])));
            assert!(ahead.memory_bytes <= 1 << 20, "piece {index}: {}", ahead.memory_bytes);
        }
        let late: Vec<u64> =
            (0..40).map(|index| ahead.begin(index, version, 0..64 << 10)).collect();
        assert!(ahead.note(&(0..4096)).is_empty());
        assert!(ahead.note(&(4096..8192)).is_empty(), "nothing more is asked for");
        late.into_iter().for_each(|number| ahead.end(number, None));
        assert!(!ahead.note(&(8192..12_288)).is_empty());
    }

    #[test]
    fn pieces_are_of_one_name_and_age() {
        let mut ahead = ReadAhead::new(100);
        let (old, new) = (Version(1, 1), Version(1, 2));
        let get =
            |ahead: &ReadAhead, version, range: Range<u64>| match ahead.look(7, version, &range) {
                Found::Here(bytes) => Some(bytes),
                _ => None,
            };
        let first = ahead.begin(7, old, 10..70);
        assert!(matches!(ahead.look(7, old, &(20..30)), Found::Coming(_)));
        ahead.end(first, Some(Bytes::from(vec![3; 60])));
        assert_eq!(get(&ahead, old, 20..30), Some(Bytes::from(vec![3; 10])));
        assert_eq!(get(&ahead, new, 20..30), None);
        assert_eq!(get(&ahead, old, 60..71), Some(Bytes::from(vec![3; 10])), "as far as it goes");
        assert!(matches!(ahead.look(7, old, &(0..30)), Found::Nothing(10)));
        let second = ahead.begin(7, new, 10..70);
        ahead.end(second, Some(Bytes::from(vec![4; 60])));
        assert_eq!(get(&ahead, old, 20..30), None, "it had to make room");
        let third = ahead.begin(7, new, 70..80);
        ahead.end(third, None);
        assert!(matches!(ahead.look(7, new, &(70..75)), Found::Nothing(75)));
    }
}
