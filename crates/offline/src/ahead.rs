//! Reading nodes ahead: while some are looked at, the device is at work on the next.
//!
//! Nodes that lie one behind the other are read with one request. Two windows are under way or in memory at a time, so a
//! walk takes the time of the device or that of the processor, whichever is longer, and 8 MiB, which are used again and
//! again.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::disk::{Spare, read_into};

/// Sectors of a window.
const WINDOW_SECTORS: u64 = 8192;
/// The most sectors of one request.
const REQUEST_SECTORS: u64 = 2048;

/// Nodes that were read together.
#[derive(Default)]
pub(crate) struct Window {
    memory: Vec<Buf>,
    /// For each node, which memory it is in and where; or the error, in words.
    nodes: Vec<Result<(usize, Range<usize>), String>>,
}

impl Window {
    /// What was read of each node.
    pub fn nodes(&self) -> impl Iterator<Item = Result<&[u8], &str>> {
        self.nodes.iter().map(|node| match node {
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
            self.nodes.push(Ok((self.memory.len(), at..end)));
            at = end;
        }
        self.memory.push(memory);
    }

    fn append(&mut self, other: Window) {
        let before = self.memory.len();
        self.memory.extend(other.memory);
        self.nodes.extend(other.nodes.into_iter().map(|node| node.map(|(which, at)| (before + which, at))));
    }
}

/// Reads ranges in their order, ahead of whoever takes them.
pub(crate) struct Ahead<'a, D: Device> {
    device: &'a D,
    ranges: &'a [SectorRange],
    under_way: Option<Begun<'a>>,
    spare: Spare,
}

impl<'a, D: Device> Ahead<'a, D> {
    /// A reader of these ranges.
    pub fn new(device: &'a D, ranges: &'a [SectorRange]) -> Ahead<'a, D> {
        let spare = Spare::new(2 * WINDOW_SECTORS * SECTOR_BYTES);
        Ahead { device, ranges, under_way: None, spare }
    }

    /// The next ranges, at least one; nothing when there are no more.
    pub async fn next(&mut self) -> Option<Window> {
        let now = match self.under_way.take() {
            Some(begun) => begun,
            None => self.begin().await?,
        };
        self.under_way = self.begin().await;
        Some(now.finish().await)
    }

    /// Takes back the memory of a window.
    pub fn done(&self, window: Window) {
        window.memory.into_iter().for_each(|memory| self.spare.give(memory));
    }

    async fn begin(&mut self) -> Option<Begun<'a>> {
        let (window, rest) = self.ranges.split_at(leading(self.ranges, WINDOW_SECTORS, |_, _| true));
        self.ranges = rest;
        if window.is_empty() {
            return None;
        }
        Some(Begun::new(read_window(self.device, window, self.spare.clone())).await)
    }
}

/// How many of the first ranges have so many sectors at most together, and fit to one another; at least one of any.
fn leading(ranges: &[SectorRange], sectors: u64, fits: impl Fn(&SectorRange, &SectorRange) -> bool) -> usize {
    let mut sum = 0;
    let mut last: Option<&SectorRange> = None;
    let count = ranges
        .iter()
        .take_while(|range| {
            sum += range.sectors();
            let taken = sum <= sectors && last.is_none_or(|last| fits(last, range));
            last = Some(range);
            taken
        })
        .count();
    count.max(1).min(ranges.len())
}

async fn read_window<D: Device>(device: &D, window: &[SectorRange], spare: Spare) -> Window {
    let mut requests = Vec::new();
    let mut rest = window;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(leading(rest, REQUEST_SECTORS, |last, next| last.end == next.start));
        requests.push(read_request(device, now, &spare));
        rest = later;
    }
    let mut all = Window::default();
    join_all(requests).await.into_iter().for_each(|part| all.append(part));
    all
}

/// Reads ranges that follow one another.
async fn read_request<D: Device>(device: &D, ranges: &[SectorRange], spare: &Spare) -> Window {
    let start = ranges.first().map_or(Sector(0), |first| first.start);
    let sectors = ranges.iter().map(SectorRange::sectors).sum();
    let mut window = Window::default();
    match read_into(device, start, sectors, spare).await {
        Ok(bytes) => window.push(bytes, ranges),
        Err(error) if ranges.len() == 1 => window.nodes.push(Err(error)),
        // Some of them can't be read: each on its own.
        Err(_) => {
            let each = ranges.iter().map(|range| read_into(device, range.start, range.sectors(), spare));
            for (range, bytes) in ranges.iter().zip(join_all(each).await) {
                match bytes {
                    Ok(bytes) => window.push(bytes, std::slice::from_ref(range)),
                    Err(error) => window.nodes.push(Err(error)),
                }
            }
        }
    }
    window
}

/// Work that was begun, and goes on on the device while something else is done.
struct Begun<'a> {
    work: Pin<Box<dyn Future<Output = Window> + 'a>>,
    done: Option<Window>,
}

impl<'a> Begun<'a> {
    async fn new(work: impl Future<Output = Window> + 'a) -> Begun<'a> {
        let mut begun = Begun { work: Box::pin(work), done: None };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = begun.work.as_mut().poll(cx) {
                begun.done = Some(done);
            }
            Poll::Ready(())
        })
        .await;
        begun
    }

    async fn finish(self) -> Window {
        match self.done {
            Some(done) => done,
            None => self.work.await,
        }
    }
}
