//! Failed flushes of the backing device that each client has got an error for (F4).
//!
//! A flush that fails may cost what any client wrote, and is mostly not the client's own: the
//! publisher, writeback and superblocks flush as well. So each stream that wrote gets one error,
//! with its next FLUSH. A stream that comes later is a client of its own, or one that lost its
//! connection: it gets one as well, unless every stream that wrote has got it. An error that was
//! given over a connection that broke later counts as not given: the client may not have it.

use std::collections::BTreeMap;

use ubcache_env::{StreamEnd, StreamId};

/// More streams than this that left something behind are not kept apart: the newest get the errors
/// of the others.
const LEFT_MAX: usize = 1024;

#[derive(Copy, Clone, Debug)]
struct Stream {
    /// It knows of the failures up to this one.
    knows: u64,
    /// It knew of these when it came: no error was given to it before.
    knew: u64,
    /// It stands for one that left without knowing.
    stands_in: bool,
}

/// A stream that left with writes that were not flushed, or without the error that it should get.
#[derive(Debug)]
struct Left {
    knows: u64,
    /// Number of FLUSHes that had begun then.
    flushes: u64,
}

/// The books of failed flushes (F4), for another process that goes on with the streams.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwedErrors {
    /// Failed flushes.
    pub failures: u64,
    /// Somebody knows of the failures up to this one.
    pub known: u64,
    /// The streams that have written or flushed.
    pub streams: Vec<OwedStream>,
    /// For each stream that left something behind, the failures that it knew of.
    pub left: Vec<u64>,
}

/// A stream in those books.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwedStream {
    /// Its number.
    pub id: StreamId,
    /// It knows of the failures up to this one.
    pub knows: u64,
    /// It knew of these when it came.
    pub knew: u64,
    /// It stands for one that left without knowing.
    pub stands_in: bool,
}

/// A FLUSH that is under way.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Begun {
    number: u64,
    /// Failures until then.
    failures: u64,
}

/// See the module.
#[derive(Default, Debug)]
pub(crate) struct FlushErrors {
    failures: u64,
    /// Somebody knows of the failures up to this one.
    known: u64,
    streams: BTreeMap<StreamId, Stream>,
    /// The stream that wrote last is mostly the next one, too.
    wrote_last: Option<StreamId>,
    left: Vec<Left>,
    flushes: u64,
}

impl FlushErrors {
    /// A stream begins a write.
    #[inline]
    pub fn writes(&mut self, stream: StreamId) {
        if self.wrote_last != Some(stream) {
            self.stream(stream);
            self.wrote_last = Some(stream);
        }
    }

    /// A flush failed that may have cost what was written so far.
    pub fn flush_failed(&mut self) {
        self.failures += 1;
    }

    /// A FLUSH begins.
    pub fn flush_begins(&mut self, stream: StreamId) -> Begun {
        self.stream(stream);
        self.flushes += 1;
        Begun { number: self.flushes, failures: self.failures }
    }

    /// That FLUSH is about to be answered. Returns true if it has to fail: because of a failure
    /// that its stream has got no error for, or of one since it began. The latter may have cost
    /// what it stands for, and the flush that it waited for may have succeeded over the loss,
    /// whoever of its stream has got an error meanwhile.
    pub fn flush_ends(&mut self, flush: Begun, stream: StreamId, ok: bool) -> bool {
        let failures = self.failures;
        let it = self.stream(stream);
        let news = it.knows < failures;
        it.knows = failures;
        let stands_in = news && std::mem::take(&mut it.stands_in);
        if news {
            self.known = failures;
            if stands_in && let Some(at) = self.longest_ago() {
                self.left.remove(at);
            }
        } else if ok {
            self.left.retain(|left| left.knows < failures || left.flushes >= flush.number);
        }
        news || failures > flush.failures
    }

    /// A stream has ended. `flushed`: nothing that it wrote waits for a flush. Returns true if an
    /// error that it was given counts as not given.
    pub fn leaves(&mut self, stream: StreamId, end: StreamEnd, flushed: bool) -> bool {
        self.wrote_last = None;
        let Some(it) = self.streams.remove(&stream) else { return false };
        let knows = match end {
            StreamEnd::Orderly => it.knows,
            StreamEnd::Cut => it.knew,
        };
        if (!flushed || knows < self.failures) && self.left.len() < LEFT_MAX {
            self.left.push(Left { knows, flushes: self.flushes });
        }
        knows < it.knows
    }

    /// Everything that streams have to get, or got, for another process. No FLUSH is under way.
    pub fn owed(&self) -> OwedErrors {
        let stream = |(id, it): (&StreamId, &Stream)| OwedStream {
            id: *id,
            knows: it.knows,
            knew: it.knew,
            stands_in: it.stands_in,
        };
        OwedErrors {
            failures: self.failures,
            known: self.known,
            streams: self.streams.iter().map(stream).collect(),
            left: self.left.iter().map(|left| left.knows).collect(),
        }
    }

    /// Goes on where another process has ended.
    pub fn from_owed(owed: &OwedErrors) -> FlushErrors {
        let stream = |it: &OwedStream| {
            (it.id, Stream { knows: it.knows, knew: it.knew, stands_in: it.stands_in })
        };
        FlushErrors {
            failures: owed.failures,
            known: owed.known,
            streams: owed.streams.iter().map(stream).collect(),
            wrote_last: None,
            // A FLUSH that begins here covers what they left.
            left: owed.left.iter().map(|knows| Left { knows: *knows, flushes: 0 }).collect(),
            flushes: 0,
        }
    }

    /// Returns true if a stream that wrote, here or gone, has got no error for a failure yet.
    pub fn are_owed(&self) -> bool {
        let knows = self.streams.values().map(|stream| stream.knows);
        knows.chain(self.left.iter().map(|left| left.knows)).any(|knows| knows < self.failures)
    }

    /// Streams that are kept book of, here or gone.
    pub fn streams(&self) -> usize {
        self.streams.len() + self.left.len()
    }

    fn longest_ago(&self) -> Option<usize> {
        (0..self.left.len()).min_by_key(|at| self.left[*at].knows)
    }

    fn stream(&mut self, stream: StreamId) -> &mut Stream {
        let left = self.longest_ago().map_or(u64::MAX, |at| self.left[at].knows);
        let knows = self.known.min(left);
        let fresh = Stream { knows, knew: knows, stands_in: left < self.failures };
        self.streams.entry(stream).or_insert(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StreamId = StreamId(1);
    const B: StreamId = StreamId(2);
    const C: StreamId = StreamId(3);

    /// Returns true if a FLUSH that succeeded by itself has to fail.
    fn flush(errors: &mut FlushErrors, stream: StreamId) -> bool {
        let flush = errors.flush_begins(stream);
        errors.flush_ends(flush, stream, true)
    }

    #[test]
    fn each_flush_under_way_at_a_failure_fails() {
        let mut errors = FlushErrors::default();
        errors.writes(A);
        let (first, second) = (errors.flush_begins(A), errors.flush_begins(A));
        errors.flush_failed();
        assert!(errors.flush_ends(first, A, false));
        assert!(errors.flush_ends(second, A, true), "its stream knows, and who sent it does not");
        assert!(!flush(&mut errors, A));
    }

    #[test]
    fn each_stream_that_wrote_gets_one_error() {
        let mut errors = FlushErrors::default();
        errors.writes(A);
        errors.writes(B);
        assert!(!flush(&mut errors, A));
        errors.flush_failed();
        assert!(flush(&mut errors, A) && !flush(&mut errors, A));
        errors.writes(C);
        assert!(!flush(&mut errors, C), "it wrote later, and somebody knows");
        assert!(flush(&mut errors, B) && !flush(&mut errors, B));
    }

    #[test]
    fn a_new_stream_gets_an_error_that_no_stream_has_got() {
        let mut errors = FlushErrors::default();
        errors.writes(A);
        errors.flush_failed();
        assert!(flush(&mut errors, C));
        assert!(flush(&mut errors, A));
    }

    #[test]
    fn a_stream_that_left_without_its_error_gets_it_when_it_comes_back() {
        let mut errors = FlushErrors::default();
        errors.writes(A);
        errors.writes(B);
        errors.flush_failed();
        assert!(flush(&mut errors, B));
        errors.leaves(A, StreamEnd::Orderly, true);
        assert!(errors.are_owed());
        assert!(flush(&mut errors, C) && !flush(&mut errors, C));
        assert!(!errors.are_owed());
        assert!(!flush(&mut errors, StreamId(4)), "one came for the one that left");
    }

    #[test]
    fn an_error_given_over_a_connection_that_broke_is_given_again() {
        for (end, again) in [(StreamEnd::Cut, true), (StreamEnd::Orderly, false)] {
            let mut errors = FlushErrors::default();
            errors.writes(A);
            errors.flush_failed();
            assert!(flush(&mut errors, A));
            errors.leaves(A, end, true);
            assert_eq!(errors.are_owed(), again);
            assert_eq!(flush(&mut errors, B), again);
            assert!(!flush(&mut errors, B) && !errors.are_owed());
        }
    }

    /// Another process goes on at every point; the answers are those of one process.
    #[test]
    fn another_process_owes_the_same_errors() {
        for moved_at in 0..6 {
            let mut errors = FlushErrors::default();
            let mut step = 0;
            let mut at = |errors: &mut FlushErrors| {
                if step == moved_at {
                    *errors = FlushErrors::from_owed(&errors.owed());
                }
                step += 1;
            };
            errors.writes(A);
            errors.writes(B);
            at(&mut errors);
            errors.flush_failed();
            at(&mut errors);
            assert!(flush(&mut errors, B) && !flush(&mut errors, B));
            at(&mut errors);
            errors.leaves(A, StreamEnd::Orderly, false);
            assert!(errors.are_owed());
            at(&mut errors);
            assert!(flush(&mut errors, C) && !flush(&mut errors, C), "in place of the first");
            at(&mut errors);
            errors.leaves(B, StreamEnd::Cut, true);
            at(&mut errors);
            assert!(flush(&mut errors, StreamId(4)), "the second may not have got its error");
        }
    }

    #[test]
    fn a_flush_covers_what_streams_left_behind() {
        for flushed_in_between in [false, true] {
            let mut errors = FlushErrors::default();
            errors.writes(A);
            errors.writes(B);
            errors.leaves(A, StreamEnd::Orderly, false);
            if flushed_in_between {
                assert!(!flush(&mut errors, B));
            }
            errors.flush_failed();
            assert!(flush(&mut errors, B));
            assert_eq!(flush(&mut errors, C), !flushed_in_between);
        }
    }
}
