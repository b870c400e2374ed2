//! Reading ahead: while something is looked at, the device is at work on what comes next.
//!
//! What lies one behind the other is read with one request. Requests are under way all the time, as much as 6 MiB. What
//! has come is looked at by all threads, and taken in order; so a walk takes the time of the device or that of the
//! processors, whichever is longer. Memory is used again and again.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Parcel, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::crew::Crew;
use crate::disk::{Early, Spare, read_around, read_into};
use crate::line::Line;

/// The most sectors of one request, unless a range has more.
const REQUEST_SECTORS: u64 = 2048;
/// Sectors that are under way, unless a range has more.
const AHEAD_SECTORS: u64 = 12288;
/// The same, with those that have come and were not taken yet.
const HELD_SECTORS: u64 = 16384;
/// Less than this is not worth a thread.
const BYTES_A_THREAD: u64 = 1 << 20;

/// Bytes that may be kept to read into.
pub(crate) const SPARE_BYTES: u64 = HELD_SECTORS * SECTOR_BYTES;

/// A range that was read.
pub(crate) struct Piece {
    window: Arc<Window>,
    index: usize,
}

/// The bytes of a range, and which of them could not be read; or the error, in words.
pub(crate) type Read<'a> = Result<(&'a [u8], &'a [Range<u64>]), &'a str>;

impl Piece {
    /// What was read.
    pub fn read(&self) -> Read<'_> {
        match self.window.ranges.get(self.index) {
            Some(Ok((which, range, holes))) => {
                let memory = self.window.memory.get(*which).map_or(&[][..], Parcel::as_slice);
                Ok((memory.get(range.clone()).unwrap_or_default(), holes))
            }
            Some(Err(error)) => Err(error),
            None => Err("it was not read"),
        }
    }
}

/// Which memory a range is in and where, and which of its bytes could not be read.
type InMemory = (usize, Range<usize>, Vec<Range<u64>>);

/// Ranges that were read together.
#[derive(Default)]
struct Window {
    memory: Vec<Parcel>,
    /// For each range; or the error, in words.
    ranges: Vec<Result<InMemory, String>>,
}

impl Window {
    fn push(&mut self, memory: Buf, ranges: &[SectorRange], holes: &[Range<u64>]) {
        let mut at = 0;
        for range in ranges {
            let end = at + range.bytes() as usize;
            self.ranges.push(Ok((self.memory.len(), at..end, holes.to_vec())));
            at = end;
        }
        self.memory.push(memory.into_parcel());
    }
}

/// Who looks at what was read, on any thread: at the range with this number.
pub(crate) type Look<T> = Arc<dyn Fn(usize, &Piece) -> T + Send + Sync>;

/// How to read.
#[derive(Copy, Clone)]
pub(crate) struct Manner<'a> {
    /// Who looks at it.
    pub crew: &'a Crew,
    /// Memory to read into.
    pub spare: &'a Spare,
    /// What was read already.
    pub early: &'a Early,
    /// Read what is readable around what is not.
    pub around: bool,
}

/// Reads ranges in their order, ahead of whoever takes them.
pub(crate) struct Ahead<'a, D: Device, T> {
    device: &'a D,
    ranges: &'a [SectorRange],
    manner: Manner<'a>,
    look: Look<T>,
    under_way: VecDeque<Request<'a>>,
    /// Sectors of these.
    under_way_sectors: u64,
    line: Line<T>,
    /// What is in the line, and the sectors whose memory comes back with it.
    handed: VecDeque<(Piece, u64)>,
    /// Sectors of these.
    handed_sectors: u64,
    /// How many were handed to the line, and how many were taken.
    begun: usize,
    taken: usize,
}

impl<'a, D: Device, T: Send + 'static> Ahead<'a, D, T> {
    /// A reader of these ranges, at which `look` looks.
    pub fn new(device: &'a D, ranges: &'a [SectorRange], manner: Manner<'a>, look: Look<T>) -> Self {
        let bytes: u64 = ranges.iter().map(SectorRange::bytes).sum();
        let threads = manner.crew.worth(bytes as usize, BYTES_A_THREAD as usize);
        Ahead {
            device,
            ranges,
            manner,
            look,
            under_way: VecDeque::new(),
            under_way_sectors: 0,
            line: Line::new(manner.crew, threads),
            handed: VecDeque::new(),
            handed_sectors: 0,
            begun: 0,
            taken: 0,
        }
    }

    /// Who looks at what was not handed out yet.
    pub fn look_by(&mut self, look: Look<T>) {
        self.look = look;
    }

    /// The next range: its number, what was read, and what came out of looking at it; nothing when there are no more.
    pub async fn next(&mut self) -> Option<(usize, Piece, T)> {
        loop {
            self.begin().await;
            while let Some(request) = self.under_way.front_mut()
                && request.is_done().await
            {
                self.hand_out().await;
            }
            if let Some(result) = self.line.take() {
                let (piece, sectors) = self.handed.pop_front()?;
                self.handed_sectors -= sectors;
                self.taken += 1;
                return Some((self.taken - 1, piece, result));
            }
            if self.line.work() {
                // The device goes on with the next, unless it has given all already.
                if !self.under_way.is_empty() {
                    yield_once().await;
                }
            } else if !self.under_way.is_empty() {
                self.hand_out().await;
            } else if self.line.left() > 0 {
                self.line.wait();
            } else {
                return None;
            }
        }
    }

    /// Takes back what was read.
    pub fn done(&self, piece: Piece) {
        if let Some(window) = Arc::into_inner(piece.window) {
            window.memory.into_iter().for_each(|memory| self.manner.spare.give(memory.into_buf()));
        }
    }

    /// Waits for the first request, and has what has come looked at.
    async fn hand_out(&mut self) {
        let Some(mut request) = self.under_way.pop_front() else { return };
        let window = Arc::new(request.finish().await);
        self.under_way_sectors -= request.sectors;
        self.handed_sectors += request.sectors;
        for index in 0..request.ranges.len() {
            let piece = Piece { window: window.clone(), index };
            // The memory comes back with the last.
            let sectors = if index + 1 == request.ranges.len() { request.sectors } else { 0 };
            self.handed.push_back((Piece { window: window.clone(), index }, sectors));
            let (look, number) = (self.look.clone(), self.begun);
            self.line.give(move || look(number, &piece));
            self.begun += 1;
        }
    }

    /// Begins as many requests as there is room for.
    async fn begin(&mut self) {
        while !self.ranges.is_empty() && self.has_room() {
            let (now, later) = self.ranges.split_at(leading(self.ranges));
            self.ranges = later;
            let mut request = Request::new(self.device, now, self.manner);
            self.under_way_sectors += request.sectors;
            if !request.is_done().await {
                // It is on its way once this task has waited, which it would not if what it wants is there already; and the
                // memory for the next one takes its time.
                yield_once().await;
            }
            self.under_way.push_back(request);
        }
    }

    fn has_room(&self) -> bool {
        let held = self.under_way_sectors + self.handed_sectors;
        held == 0 || self.under_way_sectors < AHEAD_SECTORS && held < HELD_SECTORS
    }
}

/// How many of the first ranges lie one behind the other and fit into a request; at least one of any.
fn leading(ranges: &[SectorRange]) -> usize {
    let mut sum = 0;
    let mut last: Option<&SectorRange> = None;
    let count = ranges
        .iter()
        .take_while(|range| {
            sum += range.sectors();
            let taken = sum <= REQUEST_SECTORS && last.is_none_or(|last| last.end == range.start);
            last = Some(range);
            taken
        })
        .count();
    count.max(1).min(ranges.len())
}

/// Reads ranges that follow one another.
async fn read_request<D: Device>(device: &D, ranges: &[SectorRange], manner: Manner<'_>) -> Window {
    let Manner { spare, early, around, .. } = manner;
    let start = ranges.first().map_or(Sector(0), |first| first.start);
    let sectors = ranges.iter().map(SectorRange::sectors).sum();
    let mut window = Window::default();
    let whole = match early.take(SectorRange::new(start, sectors)) {
        Some(result) => result,
        None => read_into(device, start, sectors, spare).await,
    };
    let error = match whole {
        Ok(bytes) => {
            window.push(bytes, ranges, &[]);
            return window;
        }
        Err(error) => error,
    };
    // Some of them can't be read: each on its own.
    let each: Vec<Result<Buf, String>> = match ranges {
        [_] => vec![Err(error)],
        _ => {
            join_all(ranges.iter().map(|range| read_into(device, range.start, range.sectors(), spare))).await
        }
    };
    for (range, bytes) in ranges.iter().zip(each) {
        let bytes = match bytes {
            Ok(bytes) => Ok((bytes, Vec::new())),
            Err(_) if around => read_around(device, range.start, range.sectors()).await,
            Err(error) => Err(error),
        };
        match bytes {
            Ok((bytes, holes)) => window.push(bytes, std::slice::from_ref(range), &holes),
            Err(error) => window.ranges.push(Err(error)),
        }
    }
    window
}

/// A request that was begun, and goes on on the device while something else is done.
struct Request<'a> {
    ranges: &'a [SectorRange],
    sectors: u64,
    work: Pin<Box<dyn Future<Output = Window> + 'a>>,
    done: Option<Window>,
}

impl<'a> Request<'a> {
    fn new<D: Device>(device: &'a D, ranges: &'a [SectorRange], manner: Manner<'a>) -> Request<'a> {
        let sectors = ranges.iter().map(SectorRange::sectors).sum();
        let work = Box::pin(read_request(device, ranges, manner));
        Request { ranges, sectors, work, done: None }
    }

    /// Begins it, and says whether it has ended.
    async fn is_done(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            if self.done.is_none()
                && let Poll::Ready(done) = self.work.as_mut().poll(cx)
            {
                self.done = Some(done);
            }
            Poll::Ready(self.done.is_some())
        })
        .await
    }

    async fn finish(&mut self) -> Window {
        match self.done.take() {
            Some(done) => done,
            None => self.work.as_mut().await,
        }
    }
}

/// Lets everybody else go on first.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
