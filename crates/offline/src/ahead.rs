//! Reading nodes ahead: while some are looked at, the device is at work on the next.
//!
//! Nodes that lie one behind the other are read with one request. Two windows are under way or in memory at a time, so a
//! walk takes the time of the device or that of the processor, whichever is longer, and 8 MiB.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::disk::read;

/// Sectors of a window.
const WINDOW_SECTORS: u64 = 8192;
/// The most sectors of one request.
const REQUEST_SECTORS: u64 = 2048;

/// What was read of a node; the error is in words.
pub(crate) type NodeBytes = Result<Buf, String>;

/// Reads ranges in their order, ahead of whoever takes them.
pub(crate) struct Ahead<'a, D: Device> {
    device: &'a D,
    ranges: &'a [SectorRange],
    under_way: Option<Begun<'a>>,
}

impl<'a, D: Device> Ahead<'a, D> {
    /// A reader of these ranges.
    pub fn new(device: &'a D, ranges: &'a [SectorRange]) -> Ahead<'a, D> {
        Ahead { device, ranges, under_way: None }
    }

    /// The bytes of the next ranges, at least one; nothing when there are no more.
    pub async fn next(&mut self) -> Option<Vec<NodeBytes>> {
        let now = match self.under_way.take() {
            Some(begun) => begun,
            None => self.begin().await?,
        };
        self.under_way = self.begin().await;
        Some(now.finish().await)
    }

    async fn begin(&mut self) -> Option<Begun<'a>> {
        let (window, rest) = self.ranges.split_at(leading(self.ranges, WINDOW_SECTORS, |_, _| true));
        self.ranges = rest;
        let device = self.device;
        if window.is_empty() { None } else { Some(Begun::new(read_window(device, window)).await) }
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

async fn read_window<D: Device>(device: &D, window: &[SectorRange]) -> Vec<NodeBytes> {
    let mut requests = Vec::new();
    let mut rest = window;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(leading(rest, REQUEST_SECTORS, |last, next| last.end == next.start));
        requests.push(read_request(device, now));
        rest = later;
    }
    join_all(requests).await.into_iter().flatten().collect()
}

/// Reads ranges that follow one another.
async fn read_request<D: Device>(device: &D, ranges: &[SectorRange]) -> Vec<NodeBytes> {
    let start = ranges.first().map_or(Sector(0), |first| first.start);
    let sectors = ranges.iter().map(SectorRange::sectors).sum();
    if ranges.len() > 1
        && let Ok(bytes) = read(device, start, sectors).await
    {
        let mut rest = bytes.as_slice();
        let cut = ranges.iter().map(|range| {
            let (now, later) = rest.split_at((range.sectors() * SECTOR_BYTES) as usize);
            rest = later;
            Ok(Buf::from_bytes(now))
        });
        return cut.collect();
    }
    // One, or some of them can't be read: each on its own.
    join_all(ranges.iter().map(|range| read(device, range.start, range.sectors()))).await
}

/// Work that was begun, and goes on on the device while something else is done.
struct Begun<'a> {
    work: Pin<Box<dyn Future<Output = Vec<NodeBytes>> + 'a>>,
    done: Option<Vec<NodeBytes>>,
}

impl<'a> Begun<'a> {
    async fn new(work: impl Future<Output = Vec<NodeBytes>> + 'a) -> Begun<'a> {
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

    async fn finish(self) -> Vec<NodeBytes> {
        match self.done {
            Some(done) => done,
            None => self.work.await,
        }
    }
}
