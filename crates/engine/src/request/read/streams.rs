//! Streams of reads that miss the cache: which of them to read ahead of, and how far.
//!
//! A stream is read ahead of when it has gone on for a while. Its *window* is the distance from
//! where the client is to where the read-ahead is. It doubles when the client has caught up with
//! the read-ahead, up to twice what the device delivers in the time of one request: more would only
//! wait in the device's queue, before the requests of others. What nobody comes for makes the
//! volume *reluctant*: the next streams have to be longer. So read-ahead ends where it does not
//! pay.

use ubcache_env::{Nanos, Sector, SectorRange};

use crate::tuning::ReadAheadTuning;

/// Streams that are told apart.
const STREAMS_MAX: usize = 16;
/// Each step of reluctance doubles the length that a stream has to have.
const RELUCTANCE_MAX: u32 = 8;
/// Pieces that have to be used before reluctance falls by a step.
const PIECES_FOR_TRUST: u32 = 8;
/// Misses of other streams after which one seems to have come to its end.
const MISSES_UNTIL_STALE: u64 = 16;
/// The window has at least so many pieces.
const PIECES_IN_WINDOW: u64 = 4;

/// A stream.
#[derive(Copy, Clone, Debug)]
struct Stream {
    number: u64,
    /// End of what the client has asked for.
    next: Sector,
    /// End of what has been read ahead.
    ahead: Sector,
    /// Sectors that the client has asked for.
    run: u64,
    /// Sectors to read ahead; 0: it is not read ahead of.
    window: u64,
    /// A client that waits for what lies behind this place has caught up again.
    grown_at: Sector,
    used: u64,
}

/// A range to read ahead for a request.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Ahead {
    pub stream: u64,
    pub range: SectorRange,
    /// In pieces that end at multiples of this.
    pub piece_sectors: u64,
}

/// The streams of a volume, and what is known of its device.
#[derive(Debug)]
pub(super) struct Streams {
    tuning: ReadAheadTuning,
    streams: Vec<Stream>,
    clock: u64,
    reluctance: u32,
    pieces_used: u32,
    /// Shortest time of a request, which rises slowly while all take longer.
    latency: Nanos,
    /// Highest rate of delivery in sectors a second, which falls slowly.
    rate: u64,
    delivered: u64,
}

impl Streams {
    pub fn new(tuning: ReadAheadTuning) -> Streams {
        Streams {
            tuning,
            streams: Vec::new(),
            clock: 0,
            reluctance: 0,
            pieces_used: 0,
            latency: Nanos(0),
            rate: 0,
            delivered: 0,
        }
    }

    /// A read of the device took so long.
    pub fn request_ended(&mut self, took: Nanos) {
        let risen = Nanos(self.latency.0 + self.latency.0 / 1024 + 1);
        self.latency = if self.latency.0 == 0 { took } else { took.min(risen) };
    }

    /// Sectors delivered so far, to be given to [`Streams::piece_ended`].
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// A piece was read in this time; `delivered` is from when it began.
    pub fn piece_ended(&mut self, sectors: u64, delivered: u64, took: Nanos) {
        self.request_ended(took);
        self.delivered += sectors;
        let meanwhile = u128::from(self.delivered - delivered) * 1_000_000_000;
        let rate = meanwhile / u128::from(took.0.max(1));
        self.rate = u64::try_from(rate).unwrap_or(u64::MAX).max(self.rate - self.rate / 16);
    }

    /// A read missed this range of a volume that ends at `end`. Returns what to read ahead.
    pub fn note(&mut self, range: SectorRange, end: Sector) -> Option<Ahead> {
        self.clock += 1;
        let Some(at) = self.stream_of(range) else {
            self.begin(range);
            return None;
        };
        let window_max = self.window_max();
        let tuning = self.tuning;
        let stream = &mut self.streams[at];
        stream.used = self.clock;
        stream.run += range.end.0.saturating_sub(stream.next.0);
        stream.next = stream.next.max(range.end);
        if stream.window == 0 {
            let far_away = self.latency >= tuning.latency_min;
            if !far_away || stream.run < tuning.start_sectors << self.reluctance {
                return None;
            }
            stream.window = PIECES_IN_WINDOW * tuning.piece_sectors_min;
            (stream.ahead, stream.grown_at) = (stream.next, stream.next);
        } else if stream.next > stream.ahead {
            // The client is beyond the read-ahead.
            stream.grow(window_max);
            stream.ahead = stream.next;
        }
        let piece = (stream.window / PIECES_IN_WINDOW)
            .clamp(tuning.piece_sectors_min, tuning.piece_sectors_max)
            .next_power_of_two();
        // Whole pieces, which begin and end where the device has its objects.
        let until = Sector((stream.next.0 + stream.window).next_multiple_of(piece)).min(end);
        let far = stream.ahead.0 >= stream.next.0 + stream.window - stream.window / 4;
        if until <= stream.ahead || far {
            return None;
        }
        let range = SectorRange::from_bounds(stream.ahead, until);
        stream.ahead = until;
        Some(Ahead { stream: stream.number, range, piece_sectors: piece })
    }

    /// A client waits for a piece that begins here.
    pub fn client_waits(&mut self, number: u64, start: Sector) {
        let window_max = self.window_max();
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.number == number)
            && start >= stream.grown_at
        {
            stream.grow(window_max);
        }
    }

    /// All of a piece was used.
    pub fn piece_used(&mut self) {
        self.pieces_used += 1;
        if self.pieces_used >= PIECES_FOR_TRUST {
            self.pieces_used = 0;
            self.reluctance = self.reluctance.saturating_sub(1);
        }
    }

    /// Nobody came for a piece of the stream. Returns true if that is news: others may follow.
    pub fn piece_unused(&mut self, number: u64) -> bool {
        let Some(at) = self.streams.iter().position(|stream| stream.number == number) else {
            return false;
        };
        self.streams.swap_remove(at);
        self.reluctance = (self.reluctance + 1).min(RELUCTANCE_MAX);
        self.pieces_used = 0;
        true
    }

    /// The one of these streams that was not heard of for the longest time, if that is long enough.
    pub fn stalest(&self, numbers: impl Iterator<Item = u64>) -> Option<u64> {
        let used = |number: u64| {
            let known = self.streams.iter().find(|stream| stream.number == number);
            known.map_or(0, |stream| stream.used)
        };
        let stalest = numbers.min_by_key(|number| used(*number))?;
        (self.clock - used(stalest) >= MISSES_UNTIL_STALE).then_some(stalest)
    }

    /// Twice what the device delivers in the time of a request.
    fn window_max(&self) -> u64 {
        let ReadAheadTuning { piece_sectors_min, window_sectors_max, .. } = self.tuning;
        let under_way = u128::from(self.rate) * u128::from(self.latency.0) / 1_000_000_000;
        let most = u64::try_from(2 * under_way).unwrap_or(u64::MAX);
        most.clamp(2 * PIECES_IN_WINDOW * piece_sectors_min, window_sectors_max)
    }

    fn stream_of(&self, range: SectorRange) -> Option<usize> {
        // Several requests of a client that are under way at a time come in any order.
        self.streams.iter().position(|stream| {
            let behind = stream.next.0.saturating_sub(stream.window);
            let near = behind <= range.start.0 && range.start <= stream.ahead.max(stream.next);
            range.start == stream.next || (stream.window > 0 && near)
        })
    }

    fn begin(&mut self, range: SectorRange) {
        if self.streams.len() == STREAMS_MAX {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.used);
            let oldest = oldest.expect("there are some").0;
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream {
            number: self.clock,
            next: range.end,
            ahead: range.end,
            run: range.sectors(),
            window: 0,
            grown_at: range.end,
            used: self.clock,
        });
    }
}

impl Stream {
    fn grow(&mut self, most: u64) {
        self.window = (2 * self.window).min(most).max(self.window.min(most));
        self.grown_at = self.ahead;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNING: ReadAheadTuning = ReadAheadTuning {
        start_sectors: 512,
        piece_sectors_min: 256,
        piece_sectors_max: 2048,
        window_sectors_max: 65_536,
        latency_min: Nanos::from_micros(500),
        unused_after: Nanos::from_secs(5),
    };
    const END: Sector = Sector(1 << 30);

    fn range(start: u64, sectors: u64) -> SectorRange {
        SectorRange::new(Sector(start), sectors)
    }

    fn far_away() -> Streams {
        let mut streams = Streams::new(TUNING);
        streams.request_ended(Nanos::from_millis(20));
        streams
    }

    #[test]
    fn only_a_stream_over_a_far_device_is_read_ahead_of() {
        let mut near = Streams::new(TUNING);
        near.request_ended(Nanos::from_micros(100));
        let mut far = far_away();
        for at in 0..8 {
            assert_eq!(near.note(range(at * 256, 256), END), None);
            assert_eq!(far.note(range(at * 10_000, 256), END), None, "not one after the other");
        }
        let mut far = far_away();
        assert_eq!(far.note(range(0, 256), END), None, "too short yet");
        let ahead = far.note(range(256, 256), END).expect("it has gone on for a while");
        assert_eq!(ahead.range, range(512, 1024));
        assert_eq!(ahead.piece_sectors, 256);
        assert_eq!(far.note(range(512, 256), END), None, "most of the window is ahead");
        assert_eq!(far.note(range(768, 256), END).map(|ahead| ahead.range), Some(range(1536, 512)));
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let mut far = far_away();
        far.note(range(0, 256), Sector(1000));
        let ahead = far.note(range(256, 256), Sector(1000)).expect("there is some");
        assert_eq!(ahead.range, range(512, 488));
        assert_eq!(far.note(range(512, 488), Sector(1000)), None);
    }

    #[test]
    fn window_follows_what_the_device_delivers() {
        let mut far = far_away();
        // 400,000 sectors a second in 20 ms: 8,000 are under way.
        far.rate = 400_000;
        let mut at = 0;
        for _ in 0..200 {
            if let Some(ahead) = far.note(range(at, 256), END) {
                far.client_waits(ahead.stream, ahead.range.start);
            }
            at += 256;
        }
        let window = far.streams[0].window;
        assert!((8_000..=16_000).contains(&window), "{window}");
    }

    #[test]
    fn unused_pieces_make_it_reluctant_and_used_ones_end_that() {
        let mut far = far_away();
        far.note(range(0, 256), END);
        let ahead = far.note(range(256, 256), END).expect("a stream");
        assert!(far.piece_unused(ahead.stream));
        assert!(!far.piece_unused(ahead.stream), "one stream counts once");
        far.note(range(50_000, 256), END);
        assert_eq!(far.note(range(50_256, 256), END), None, "twice the length is needed now");
        assert_eq!(far.note(range(50_512, 256), END), None);
        assert!(far.note(range(50_768, 256), END).is_some());
        (0..PIECES_FOR_TRUST).for_each(|_| far.piece_used());
        far.note(range(90_000, 256), END);
        assert!(far.note(range(90_256, 256), END).is_some());
    }
}
