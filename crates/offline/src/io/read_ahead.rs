//! Read-ahead: while threads inspect one range, the device reads the next ones.
//!
//! Adjacent ranges are read with one request. Up to 6 MiB are under way at any time. All threads
//! inspect ranges that have arrived; results are returned in order. So a walk takes the time of the
//! device or of the processors, whichever is longer. Buffers are reused.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Parcel, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use super::buffer_pool::BufferPool;
use super::ordered_queue::OrderedQueue;
use super::prefetched::Prefetched;
use super::read::{read_around, read_into};
use super::thread_pool::ThreadPool;

/// The most sectors of one request, unless a range has more.
const REQUEST_SECTORS: u64 = 2048;
/// Sectors that are under way, unless a range has more.
const AHEAD_SECTORS: u64 = 12288;
/// The same, including ranges that were read and not taken yet.
const HELD_SECTORS: u64 = 16384;
/// Less than this is not worth a thread.
const BYTES_A_THREAD: u64 = 1 << 20;

/// Bytes that may be kept to read into.
pub(crate) const BUFFER_POOL_BYTES: u64 = HELD_SECTORS * SECTOR_BYTES;

/// A range that was read.
pub(crate) struct ReadRange {
    window: Arc<ReadBatch>,
    index: usize,
}

/// The bytes of a range, and which of them could not be read; or the error, in words.
pub(crate) type RangeBytes<'a> = Result<(&'a [u8], &'a [Range<u64>]), &'a str>;

impl ReadRange {
    /// The bytes, or the error.
    pub fn read(&self) -> RangeBytes<'_> {
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

/// Index of a buffer, the bytes of the range in it, and the unreadable bytes of the range.
type InMemory = (usize, Range<usize>, Vec<Range<u64>>);

/// Ranges that were read together.
#[derive(Default)]
struct ReadBatch {
    memory: Vec<Parcel>,
    /// For each range; or the error, in words.
    ranges: Vec<Result<InMemory, String>>,
}

impl ReadBatch {
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

/// Function that inspects range number `usize` on any thread.
pub(crate) type Inspect<T> = Arc<dyn Fn(usize, &ReadRange) -> T + Send + Sync>;

/// Resources and options of a read-ahead.
#[derive(Copy, Clone)]
pub(crate) struct ReadOptions<'a> {
    /// Threads that inspect ranges.
    pub pool: &'a ThreadPool,
    /// Buffers to read into.
    pub buffers: &'a BufferPool,
    /// Ranges that were read before.
    pub prefetched: &'a Prefetched,
    /// Read what is readable around what is not.
    pub around_errors: bool,
}

/// Reads ranges in order, ahead of the caller.
pub(crate) struct ReadAhead<'a, D: Device, T> {
    device: &'a D,
    ranges: &'a [SectorRange],
    options: ReadOptions<'a>,
    inspect: Inspect<T>,
    under_way: VecDeque<PendingRead<'a>>,
    /// Sectors of these.
    under_way_sectors: u64,
    queue: OrderedQueue<T>,
    /// Ranges in the queue, and the sectors whose memory is free once they are popped.
    handed: VecDeque<(ReadRange, u64)>,
    /// Sectors of these.
    handed_sectors: u64,
    /// Number of ranges pushed to the queue, and number popped.
    begun: usize,
    taken: usize,
}

impl<'a, D: Device, T: Send + 'static> ReadAhead<'a, D, T> {
    /// Creates a reader of these ranges, each of which is passed to `inspect`.
    pub fn new(
        device: &'a D,
        ranges: &'a [SectorRange],
        options: ReadOptions<'a>,
        inspect: Inspect<T>,
    ) -> Self {
        let bytes: u64 = ranges.iter().map(SectorRange::bytes).sum();
        let threads = options.pool.threads_for(bytes as usize, BYTES_A_THREAD as usize);
        ReadAhead {
            device,
            ranges,
            options,
            inspect,
            under_way: VecDeque::new(),
            under_way_sectors: 0,
            queue: OrderedQueue::new(options.pool, threads),
            handed: VecDeque::new(),
            handed_sectors: 0,
            begun: 0,
            taken: 0,
        }
    }

    /// Replaces the inspection of ranges that were not handed out yet.
    pub fn set_inspect(&mut self, inspect: Inspect<T>) {
        self.inspect = inspect;
    }

    /// Returns the number of the next range, the range, and the result of its inspection; `None` at
    /// the end.
    pub async fn next(&mut self) -> Option<(usize, ReadRange, T)> {
        loop {
            self.begin().await;
            while let Some(request) = self.under_way.front_mut()
                && request.is_done().await
            {
                self.hand_out().await;
            }
            if let Some(result) = self.queue.pop() {
                let (piece, sectors) = self.handed.pop_front()?;
                self.handed_sectors -= sectors;
                self.taken += 1;
                return Some((self.taken - 1, piece, result));
            }
            if self.queue.run_one() {
                // The device proceeds to the next request, unless none is left.
                if !self.under_way.is_empty() {
                    yield_once().await;
                }
            } else if !self.under_way.is_empty() {
                self.hand_out().await;
            } else if self.queue.pending() > 0 {
                self.queue.wait();
            } else {
                return None;
            }
        }
    }

    /// Reuses the buffer of a range.
    pub fn done(&self, piece: ReadRange) {
        if let Some(window) = Arc::into_inner(piece.window) {
            window
                .memory
                .into_iter()
                .for_each(|memory| self.options.buffers.give(memory.into_buf()));
        }
    }

    /// Waits for the first request, and queues its ranges for inspection.
    async fn hand_out(&mut self) {
        let Some(mut request) = self.under_way.pop_front() else { return };
        let window = Arc::new(request.finish().await);
        self.under_way_sectors -= request.sectors;
        self.handed_sectors += request.sectors;
        for index in 0..request.ranges.len() {
            let piece = ReadRange { window: window.clone(), index };
            // The buffer is free after the last range of it.
            let sectors = if index + 1 == request.ranges.len() { request.sectors } else { 0 };
            self.handed.push_back((ReadRange { window: window.clone(), index }, sectors));
            let (inspect, number) = (self.inspect.clone(), self.begun);
            self.queue.push(move || inspect(number, &piece));
            self.begun += 1;
        }
    }

    /// Begins as many requests as there is room for.
    async fn begin(&mut self) {
        while !self.ranges.is_empty() && self.has_room() {
            let (now, later) = self.ranges.split_at(leading(self.ranges));
            self.ranges = later;
            let mut request = PendingRead::new(self.device, now, self.options);
            self.under_way_sectors += request.sectors;
            if !request.is_done().await {
                // The device starts once this task has waited; a read that is complete at once
                // needs no wait. Allocating the next buffer takes time meanwhile.
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

/// Returns how many of the first ranges are adjacent and fit into a request; at least one.
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
async fn read_request<D: Device>(
    device: &D,
    ranges: &[SectorRange],
    options: ReadOptions<'_>,
) -> ReadBatch {
    let ReadOptions { buffers, prefetched, around_errors, .. } = options;
    let start = ranges.first().map_or(Sector(0), |first| first.start);
    let sectors = ranges.iter().map(SectorRange::sectors).sum();
    let mut window = ReadBatch::default();
    let whole = match prefetched.take(SectorRange::new(start, sectors)) {
        Some(result) => result,
        None => read_into(device, start, sectors, buffers).await,
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
            join_all(
                ranges.iter().map(|range| read_into(device, range.start, range.sectors(), buffers)),
            )
            .await
        }
    };
    for (range, bytes) in ranges.iter().zip(each) {
        let bytes = match bytes {
            Ok(bytes) => Ok((bytes, Vec::new())),
            Err(_) if around_errors => read_around(device, range.start, range.sectors()).await,
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
struct PendingRead<'a> {
    ranges: &'a [SectorRange],
    sectors: u64,
    work: Pin<Box<dyn Future<Output = ReadBatch> + 'a>>,
    done: Option<ReadBatch>,
}

impl<'a> PendingRead<'a> {
    fn new<D: Device>(
        device: &'a D,
        ranges: &'a [SectorRange],
        options: ReadOptions<'a>,
    ) -> PendingRead<'a> {
        let sectors = ranges.iter().map(SectorRange::sectors).sum();
        let work = Box::pin(read_request(device, ranges, options));
        PendingRead { ranges, sectors, work, done: None }
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

    async fn finish(&mut self) -> ReadBatch {
        match self.done.take() {
            Some(done) => done,
            None => self.work.as_mut().await,
        }
    }
}

/// Lets other tasks run first.
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
