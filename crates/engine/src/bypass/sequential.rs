//! Sequential detection: how long is the run that a request continues?
//!
//! A request that goes on where a recent one ended belongs to the same *run*. Long runs are better
//! served by the backing device, which is good at them, and would push everything else out of the
//! cache; the request that brings a run over the cutoff and all that follow are bypassed
//! ([`super::may_cache`]). This is bcache behaviour, with two tables:
//!
//! * the **history** of a volume: 128 places where a run may go on, the least recently used one
//!   given up for a new run, each worth nothing 5 s after its last request;
//! * the **streams**: per client connection the length of its latest run and the average of its
//!   finished runs (weight 1/8 for the newest). A client whose runs are long on average is
//!   sequential even where it jumps.
//!
//! bcache knows processes where a block protocol only knows connections, so a [`StreamId`] stands
//! for the task. Memory is bounded: 128 runs, 1024 streams.

use std::collections::BTreeMap;

use ubcache_env::{Nanos, Sector, SectorRange, StreamId};
use ubcache_format::SECTOR_BYTES;

/// Number of runs that are followed at the same time.
pub const RUNS_MAX: usize = 128;
/// Pause after which a run has ended.
pub const RUN_EXPIRY: Nanos = Nanos::from_secs(5);
/// Number of streams that are remembered.
pub const STREAMS_MAX: usize = 1024;
/// The newest finished run counts for one part in this many of the average.
const AVERAGE_WEIGHT: u64 = 8;

/// No run: the end of a list.
const NONE: u8 = u8::MAX;
/// Lists of runs by the hash of their end.
const LISTS: usize = 256;

/// A run that may go on.
#[derive(Copy, Clone, Debug)]
struct Run {
    end: Sector,
    bytes: u64,
    expires: Nanos,
    /// The neighbours in the order of use.
    older: u8,
    newer: u8,
    /// The next less recent run of the same list.
    next: u8,
}

/// The history: runs by their end, and in the order of use.
#[derive(Debug)]
struct Runs {
    /// At most [`RUNS_MAX`]; what is not in use is in the list `unused`, by `next`.
    runs: Vec<Run>,
    lists: [u8; LISTS],
    oldest: u8,
    newest: u8,
    unused: u8,
}

impl Default for Runs {
    fn default() -> Runs {
        Runs { runs: Vec::new(), lists: [NONE; LISTS], oldest: NONE, newest: NONE, unused: NONE }
    }
}

impl Runs {
    fn list(end: Sector) -> usize {
        (end.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
    }

    fn run(&mut self, at: u8) -> &mut Run {
        &mut self.runs[usize::from(at)]
    }

    /// Takes the most recent run that ended at `start` out of the history, if it has not expired;
    /// gives its bytes.
    fn take(&mut self, now: Nanos, start: Sector) -> Option<u64> {
        // Each list has the most recent run first, and the most recent of the runs that ended here
        // expires last.
        let mut at = self.lists[Self::list(start)];
        while at != NONE && self.run(at).end != start {
            at = self.run(at).next;
        }
        if at == NONE || now >= self.run(at).expires {
            return None;
        }
        let bytes = self.run(at).bytes;
        self.remove(at);
        Some(bytes)
    }

    fn remove(&mut self, at: u8) {
        let Run { end, older, newer, next, .. } = *self.run(at);
        let list = Self::list(end);
        if self.lists[list] == at {
            self.lists[list] = next;
        } else {
            let mut before = self.lists[list];
            while self.run(before).next != at {
                before = self.run(before).next;
            }
            self.run(before).next = next;
        }
        match newer {
            NONE => self.newest = older,
            newer => self.run(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.run(older).newer = newer,
        }
        self.run(at).next = self.unused;
        self.unused = at;
    }

    /// Puts a run into the history, in the place of the least recent one if there is no room.
    fn insert(&mut self, end: Sector, bytes: u64, expires: Nanos) {
        if self.unused == NONE && self.runs.len() == RUNS_MAX {
            self.remove(self.oldest);
        }
        let list = Self::list(end);
        let run =
            Run { end, bytes, expires, older: self.newest, newer: NONE, next: self.lists[list] };
        let at = match self.unused {
            NONE => {
                self.runs.push(run);
                (self.runs.len() - 1) as u8
            }
            at => {
                self.unused = self.run(at).next;
                *self.run(at) = run;
                at
            }
        };
        match self.newest {
            NONE => self.oldest = at,
            newest => self.run(newest).newer = at,
        }
        self.newest = at;
        self.lists[list] = at;
    }
}

/// History of one client connection.
#[derive(Copy, Clone, Debug, Default)]
struct Stream {
    run_bytes: u64,
    average_bytes: u64,
    used: u64,
}

/// The I/O history of one volume and of the streams that use it.
#[derive(Debug, Default)]
pub struct SequentialDetector {
    runs: Runs,
    /// The values `used` come from one counter and never repeat, so smaller means longer ago.
    streams: BTreeMap<StreamId, Stream>,
    clock: u64,
}

impl SequentialDetector {
    /// A detector that has seen nothing.
    pub fn new() -> Self {
        SequentialDetector::default()
    }

    /// Takes note of a request and says how sequential it is: the sectors of the run that it
    /// continues or starts, itself included, or the average run of its stream if that is longer.
    pub fn observe(&mut self, now: Nanos, stream: StreamId, range: SectorRange) -> u64 {
        self.clock += 1;
        let continued = self.runs.take(now, range.start);
        let run_bytes = continued.unwrap_or(0).saturating_add(range.bytes());
        self.runs.insert(range.end, run_bytes, now.after(RUN_EXPIRY));

        let state = self.stream(stream);
        if continued.is_none() {
            let weighted = state.average_bytes.saturating_mul(AVERAGE_WEIGHT - 1);
            state.average_bytes = weighted.saturating_add(state.run_bytes) / AVERAGE_WEIGHT;
        }
        state.run_bytes = run_bytes;
        run_bytes.max(state.average_bytes) / SECTOR_BYTES
    }

    /// The state of a stream, marked as used now; the least recent one is forgotten for a new one.
    fn stream(&mut self, id: StreamId) -> &mut Stream {
        if self.streams.len() == STREAMS_MAX
            && !self.streams.contains_key(&id)
            && let Some((&oldest, _)) = self.streams.iter().min_by_key(|(_, stream)| stream.used)
        {
            self.streams.remove(&oldest);
        }
        let state = self.streams.entry(id).or_default();
        state.used = self.clock;
        state
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: StreamId = StreamId(1);
    const B: StreamId = StreamId(2);

    fn range(start: u64, sectors: u64) -> SectorRange {
        SectorRange::new(Sector(start), sectors)
    }

    #[test]
    fn a_run_grows_with_each_request_that_continues_it() {
        let mut detector = SequentialDetector::new();
        assert_eq!(detector.observe(Nanos(0), A, range(100, 8)), 8);
        assert_eq!(detector.observe(Nanos(0), A, range(108, 8)), 16);
        assert_eq!(detector.observe(Nanos(0), A, range(116, 1000)), 1016);
    }

    #[test]
    fn interleaved_runs_are_distinguished() {
        let mut detector = SequentialDetector::new();
        for step in 0..50 {
            for lane in 0..100_u64 {
                let sectors = detector.observe(
                    Nanos(0),
                    StreamId(lane),
                    range(lane * 1_000_000 + step * 8, 8),
                );
                assert_eq!(sectors, (step + 1) * 8);
            }
        }
    }

    #[test]
    fn a_run_is_over_after_a_pause_of_five_seconds() {
        for (pause, sectors) in [(Nanos(RUN_EXPIRY.0 - 1), 16), (RUN_EXPIRY, 8)] {
            let mut detector = SequentialDetector::new();
            detector.observe(Nanos::from_secs(9), A, range(0, 8));
            assert_eq!(detector.observe(Nanos::from_secs(9).after(pause), A, range(8, 8)), sectors);
        }
    }

    #[test]
    fn least_recent_of_129_runs_is_forgotten() {
        let mut detector = SequentialDetector::new();
        for lane in 0..=RUNS_MAX as u64 {
            detector.observe(Nanos(0), StreamId(lane), range(lane * 1000, 8));
        }
        assert_eq!(detector.observe(Nanos(0), StreamId(1), range(1008, 8)), 16);
        assert_eq!(detector.observe(Nanos(0), StreamId(0), range(8, 8)), 8);
    }

    /// Two streams that work on one run share it: the run is found by place, not by who asks.
    #[test]
    fn run_continues_in_another_stream() {
        let mut detector = SequentialDetector::new();
        detector.observe(Nanos(0), A, range(0, 64));
        assert_eq!(detector.observe(Nanos(0), B, range(64, 64)), 128);
    }

    /// Seven eighths of the old average, one eighth of the finished run, per jump.
    #[test]
    fn a_stream_with_long_runs_is_sequential_where_it_jumps() {
        let mut detector = SequentialDetector::new();
        detector.observe(Nanos(0), A, range(0, 8192));
        assert_eq!(detector.observe(Nanos(0), A, range(1 << 20, 1)), 1024);
        assert_eq!(
            detector.observe(Nanos(0), A, range(1 << 21, 1)),
            896,
            "the run of one sector counts too"
        );
        assert_eq!(
            detector.observe(Nanos(0), B, range(1 << 22, 1)),
            1,
            "the average is the stream's own"
        );
    }

    #[test]
    fn the_least_recent_stream_is_forgotten() {
        let mut detector = SequentialDetector::new();
        detector.observe(Nanos(0), StreamId(0), range(0, 8192));
        detector.observe(Nanos(0), StreamId(1), range(1 << 30, 8192));
        for id in 2..=STREAMS_MAX as u64 {
            detector.observe(Nanos(0), StreamId(id), range(id << 31, 1));
        }
        assert_eq!(detector.observe(Nanos(0), StreamId(1), range(1 << 20, 1)), 1024);
        assert_eq!(detector.observe(Nanos(0), StreamId(0), range(1 << 21, 1)), 1);
    }

    /// The rules once more, with plain lists in place of maps.
    #[derive(Default)]
    struct Model {
        /// Least recent first.
        runs: Vec<(u64, u64, u64)>,
        streams: Vec<(u64, u64, u64)>,
    }

    impl Model {
        fn observe(&mut self, now: u64, stream: u64, start: u64, sectors: u64) -> u64 {
            let found =
                self.runs.iter().rposition(|&(end, _, expires)| end == start && now < expires);
            let run = found.map(|at| self.runs.remove(at).1);
            if self.runs.len() == RUNS_MAX {
                self.runs.remove(0);
            }
            let bytes = run.unwrap_or(0) + sectors * 512;
            self.runs.push((start + sectors, bytes, now + 5_000_000_000));
            let known = self.streams.iter().position(|&(id, _, _)| id == stream);
            let (_, latest, mut average) = match known {
                Some(at) => self.streams.remove(at),
                None => (stream, 0, 0),
            };
            if run.is_none() {
                average = (average * 7 + latest) / 8;
            }
            self.streams.push((stream, bytes, average));
            bytes.max(average) / 512
        }
    }

    proptest! {
        #[test]
        fn detector_agrees_with_its_model(
            requests in prop::collection::vec((0..40_u64, 0..300_u64, 1..4_u64,
                0..200_000_000_u64), 1..600),
        ) {
            let (mut detector, mut model) = (SequentialDetector::new(), Model::default());
            let mut now = 0;
            for (stream, start, sectors, pause) in requests {
                now += pause;
                prop_assert_eq!(
                    detector.observe(Nanos(now), StreamId(stream), range(start, sectors)),
                    model.observe(now, stream, start, sectors)
                );
                prop_assert!(detector.runs.runs.len() <= RUNS_MAX);
                prop_assert!(detector.streams.len() <= STREAMS_MAX);
            }
        }

        #[test]
        fn run_length_includes_the_request(start in any::<u64>(), sectors in 0..1_u64 << 40) {
            let range = SectorRange::new(Sector(start), sectors);
            prop_assert_eq!(SequentialDetector::new().observe(Nanos(0), A, range), range.sectors());
        }
    }
}
