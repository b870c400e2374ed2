//! Reading ahead: while something is looked at, the device is at work on what comes next.
//!
//! What lies one behind the other is read with one request. Requests are under way all the time, as much as 4 MiB, so a
//! walk takes the time of the device or that of the processor, whichever is longer. Their memory is used again and again.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::disk::{Spare, read_into};

/// The most sectors that are handed out together, unless a range has more.
const WINDOW_SECTORS: u64 = 4096;
/// The most sectors of one request, unless a range has more.
const REQUEST_SECTORS: u64 = 2048;
/// Sectors that are under way or wait to be handed out.
const AHEAD_SECTORS: u64 = 8192;

/// Ranges that were read.
#[derive(Default)]
pub(crate) struct Window {
    memory: Vec<Buf>,
    /// For each range, which memory it is in and where; or the error, in words.
    ranges: Vec<Result<(usize, Range<usize>), String>>,
}

impl Window {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// What was read of each range.
    pub fn ranges(&self) -> impl Iterator<Item = Result<&[u8], &str>> {
        self.ranges.iter().map(|range| match range {
            Ok((which, range)) => {
                let memory = self.memory.get(*which).map_or(&[][..], |memory| memory.as_slice());
                Ok(memory.get(range.clone()).unwrap_or_default())
            }
            Err(error) => Err(error.as_str()),
        })
    }

    fn push(&mut self, memory: Buf, ranges: &[SectorRange]) {
        let mut at = 0;
        for range in ranges {
            let end = at + range.bytes() as usize;
            self.ranges.push(Ok((self.memory.len(), at..end)));
            at = end;
        }
        self.memory.push(memory);
    }

    fn append(&mut self, other: Window) {
        let before = self.memory.len();
        self.memory.extend(other.memory);
        self.ranges
            .extend(other.ranges.into_iter().map(|range| range.map(|(which, at)| (before + which, at))));
    }
}

/// Reads ranges in their order, ahead of whoever takes them.
pub(crate) struct Ahead<'a, D: Device> {
    device: &'a D,
    ranges: &'a [SectorRange],
    under_way: VecDeque<Request<'a>>,
    spare: Spare,
}

impl<'a, D: Device> Ahead<'a, D> {
    /// A reader of these ranges.
    pub fn new(device: &'a D, ranges: &'a [SectorRange]) -> Ahead<'a, D> {
        let spare = Spare::new((AHEAD_SECTORS + WINDOW_SECTORS) * SECTOR_BYTES);
        Ahead { device, ranges, under_way: VecDeque::new(), spare }
    }

    /// The next ranges: at least one, and those behind it that are there already; nothing when there are no more.
    pub async fn next(&mut self) -> Option<Window> {
        self.begin().await;
        let mut first = self.under_way.pop_front()?;
        let mut sectors = first.sectors;
        let mut window = first.finish().await;
        while let Some(request) = self.under_way.front_mut()
            && sectors + request.sectors <= WINDOW_SECTORS
            && request.is_done().await
        {
            sectors += request.sectors;
            window.append(request.finish().await);
            self.under_way.pop_front();
        }
        Some(window)
    }

    /// Takes back the memory of a window.
    pub fn done(&self, window: Window) {
        window.memory.into_iter().for_each(|memory| self.spare.give(memory));
    }

    /// Begins as many requests as there is room for.
    async fn begin(&mut self) {
        let mut sectors: u64 = self.under_way.iter().map(|request| request.sectors).sum();
        let mut waiting = false;
        while !self.ranges.is_empty() && (sectors < AHEAD_SECTORS || self.under_way.is_empty()) {
            let (now, later) = self.ranges.split_at(leading(self.ranges));
            self.ranges = later;
            let mut request = Request::new(self.device, now, self.spare.clone());
            sectors += request.sectors;
            waiting |= !request.is_done().await;
            self.under_way.push_back(request);
        }
        if waiting {
            // They are on their way once this task has waited, which it would not if what it wants is there already.
            yield_once().await;
        }
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
async fn read_request<D: Device>(device: &D, ranges: &[SectorRange], spare: Spare) -> Window {
    let start = ranges.first().map_or(Sector(0), |first| first.start);
    let sectors = ranges.iter().map(SectorRange::sectors).sum();
    let mut window = Window::default();
    match read_into(device, start, sectors, &spare).await {
        Ok(bytes) => window.push(bytes, ranges),
        Err(error) if ranges.len() == 1 => window.ranges.push(Err(error)),
        // Some of them can't be read: each on its own.
        Err(_) => {
            let each = ranges.iter().map(|range| read_into(device, range.start, range.sectors(), &spare));
            for (range, bytes) in ranges.iter().zip(join_all(each).await) {
                match bytes {
                    Ok(bytes) => window.push(bytes, std::slice::from_ref(range)),
                    Err(error) => window.ranges.push(Err(error)),
                }
            }
        }
    }
    window
}

/// A request that was begun, and goes on on the device while something else is done.
struct Request<'a> {
    sectors: u64,
    work: Pin<Box<dyn Future<Output = Window> + 'a>>,
    done: Option<Window>,
}

impl<'a> Request<'a> {
    fn new<D: Device>(device: &'a D, ranges: &'a [SectorRange], spare: Spare) -> Request<'a> {
        let sectors = ranges.iter().map(SectorRange::sectors).sum();
        Request { sectors, work: Box::pin(read_request(device, ranges, spare)), done: None }
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
