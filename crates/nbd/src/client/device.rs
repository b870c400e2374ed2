//! Calls of the device become requests of a size that the server takes.

use std::rc::Rc;

use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Durability, Env, IoError, IoResult, IoVec, Sector,
    SectorRange,
};

use super::request::{Ask, Request};
use super::{Connect, RemoteDisk, SECTOR_BYTES};
use crate::proto::StatusExtent;
use crate::proto::constants::{STATE_HOLE, STATE_ZERO, transmission};

const EINVAL: i32 = 22;
const EROFS: i32 = 30;

impl<E: Env, C: Connect> RemoteDisk<E, C> {
    /// Checks a range for a request: the error, or `None`.
    fn outside(&self, range: SectorRange) -> Option<IoError> {
        let sectors = self.shared.limits().sectors;
        (range.end.0 > sectors || range.start.0 > range.end.0)
            .then_some(IoError::OutOfRange { range, sectors })
    }

    /// Checks a range of a request that changes something.
    fn check_change(&self, range: SectorRange) -> IoResult {
        if let Some(error) = self.outside(range) {
            return Err(error);
        }
        if self.read_only() {
            return Err(IoError::Os(EROFS));
        }
        let block = u64::from(self.shared.export.block()) / SECTOR_BYTES;
        match range.start.0.is_multiple_of(block) && range.end.0.is_multiple_of(block) {
            true => Ok(()),
            false => Err(IoError::Os(EINVAL)),
        }
    }

    fn start(&self, request: Request) -> Rc<Request> {
        let request = Rc::new(request);
        self.shared.submit(request.clone());
        request
    }

    /// Starts a request that changes something, when no other one is over it.
    async fn start_change(&self, ask: Ask, range: SectorRange) -> Rc<Request> {
        loop {
            self.shared.landing.claim(range).await;
            // A copy that was written again would undo the trim.
            if !matches!(ask, Ask::Trim) || !self.shared.kept.borrow().overlaps(range) {
                break;
            }
            self.shared.landing.release(range);
            if self.shared.flush_for_itself().await.is_err() {
                // The trim fails as well, or nothing is kept any more.
                self.shared.landing.claim(range).await;
                break;
            }
        }
        self.start(Request::new(ask, range, self.shared.env.now()))
    }

    /// Changes the range in parts; `ask` gives the request for each.
    async fn change(
        &self,
        range: SectorRange,
        most: u64,
        ask: impl Fn(SectorRange) -> Ask,
    ) -> IoResult {
        let mut parts = Vec::new();
        for part in cut(range, most) {
            parts.push(self.start_change(ask(part), part).await);
        }
        let mut result = Ok(());
        for part in parts {
            result = result.and(answer(&part).await);
        }
        result
    }

    async fn read_whole(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        let range = SectorRange::new(at, into.len() as u64 / SECTOR_BYTES);
        let most = self.shared.export.payload_max();
        if range.bytes() <= most {
            let request = Request::new(Ask::Read, range, self.shared.env.now());
            *request.buf.borrow_mut() = Some(into);
            let request = self.start(request);
            let result = answer(&request).await;
            let buf = request.buf.take().unwrap_or_default();
            return (buf, result);
        }
        let mut into = into;
        let mut parts = Vec::new();
        for part in cut(range, most) {
            let Some(buf) = self.shared.env.buffers().for_sectors(part.sectors()) else {
                return (into, Err(IoError::NoMemory));
            };
            let request = Request::new(Ask::Read, part, self.shared.env.now());
            *request.buf.borrow_mut() = Some(buf);
            parts.push(self.start(request));
        }
        let mut result = Ok(());
        for part in parts {
            result = result.and(answer(&part).await);
            if let Some(buf) = part.buf.take() {
                let from = ((part.range.start.0 - at.0) * SECTOR_BYTES) as usize;
                into.as_mut_slice()[from..from + buf.len()].copy_from_slice(buf.as_slice());
            }
        }
        (into, result)
    }

    /// Reads a part of blocks, by reading whole ones.
    async fn read_part(&self, range: SectorRange, mut into: Buf) -> (Buf, IoResult) {
        let block = u64::from(self.shared.export.block()) / SECTOR_BYTES;
        let start = Sector(range.start.0 / block * block);
        let end = Sector(range.end.0.next_multiple_of(block));
        let whole = SectorRange::from_bounds(start, end);
        let Some(buf) = self.shared.env.buffers().for_sectors(whole.sectors()) else {
            return (into, Err(IoError::NoMemory));
        };
        let (buf, result) = self.read_whole(start, buf).await;
        if result.is_ok() {
            let from = ((range.start.0 - start.0) * SECTOR_BYTES) as usize;
            let bytes = &buf.as_slice()[from..from + into.len()];
            into.as_mut_slice().copy_from_slice(bytes);
        }
        (into, result)
    }

    async fn zero(&self, range: SectorRange, holes: bool) -> IoResult {
        self.check_change(range)?;
        let export = &self.shared.export;
        if export.has(transmission::SEND_WRITE_ZEROES) {
            return self
                .change(range, export.span_max(), |_| Ask::Zeroes { holes, fast: false })
                .await;
        }
        let zeroes = |part: SectorRange| Ask::Write {
            data: IoVec::zeroes(part.bytes() as usize),
            fua: false,
        };
        self.change(range, export.payload_max(), zeroes).await
    }
}

impl<E: Env, C: Connect> Device for RemoteDisk<E, C> {
    fn limits(&self) -> DeviceLimits {
        self.shared.limits()
    }

    fn shape(&self) -> DeviceShape {
        self.shared.export.shape()
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        let bytes = into.len() as u64;
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return (into, Err(IoError::Os(EINVAL)));
        }
        let range = range_at(at, bytes);
        if let Some(error) = self.outside(range) {
            return (into, Err(error));
        }
        if bytes == 0 {
            return (into, Ok(()));
        }
        let block = u64::from(self.shared.export.block()) / SECTOR_BYTES;
        if range.start.0.is_multiple_of(block) && range.end.0.is_multiple_of(block) {
            Box::pin(self.read_whole(at, into)).await
        } else {
            Box::pin(self.read_part(range, into)).await
        }
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        if !(from.len() as u64).is_multiple_of(SECTOR_BYTES) {
            return Err(IoError::Os(EINVAL));
        }
        let range = range_at(at, from.len() as u64);
        self.check_change(range)?;
        let fua = durability == Durability::Fua;
        let part_of = |part: SectorRange| Ask::Write {
            data: from.cut_sectors(part.start.0 - range.start.0, part.sectors()),
            fua,
        };
        self.change(range, self.shared.export.payload_max(), part_of).await?;
        if fua && !self.shared.export.has_fua() {
            return self.flush().await;
        }
        Ok(())
    }

    async fn flush(&self) -> IoResult {
        match self.shared.export.is_volatile() {
            true => self.shared.flush().await,
            false => Ok(()),
        }
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        self.check_change(range)?;
        if !self.limits().discard {
            return Err(IoError::NotSupported);
        }
        let most = self.shared.export.span_max();
        if !self.shared.export.has_fast_zeroes() {
            return self.change(range, most, |_| Ask::Trim).await;
        }
        match self.change(range, most, |_| Ask::Zeroes { holes: true, fast: true }).await {
            // The server would have to write them: no discard is worth that.
            Err(IoError::NotSupported) => Ok(()),
            result => result,
        }
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.zero(range, false).await
    }

    async fn write_holes(&self, range: SectorRange) -> IoResult {
        self.zero(range, true).await
    }

    async fn refresh_size(&self) -> IoResult<u64> {
        self.shared.grow();
        Ok(self.limits().sectors)
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        if let Some(error) = self.outside(range) {
            return Err(error);
        }
        let export = &self.shared.export;
        let block = u64::from(export.block()) / SECTOR_BYTES;
        if export.allocation.is_none()
            || !range.start.0.is_multiple_of(block)
            || !range.end.0.is_multiple_of(block)
            || range.is_empty()
        {
            return Ok(vec![(range, false)]);
        }
        let first = cut(range, export.span_max()).next().unwrap_or(range);
        let request = self.start(Request::new(Ask::Status, first, self.shared.env.now()));
        answer(&request).await?;
        let extents = request.extents.take();
        Ok(parts_of(first, &extents, most))
    }
}

/// A range of so many bytes, as far as numbers go.
fn range_at(at: Sector, bytes: u64) -> SectorRange {
    SectorRange { start: at, end: Sector(at.0.saturating_add(bytes / SECTOR_BYTES)) }
}

/// The range in parts of so many bytes at most.
fn cut(range: SectorRange, most: u64) -> impl Iterator<Item = SectorRange> {
    let step = most / SECTOR_BYTES;
    (range.start.0..range.end.0).step_by(step as usize).map(move |start| {
        SectorRange::from_bounds(Sector(start), Sector((start + step).min(range.end.0)))
    })
}

async fn answer(request: &Request) -> IoResult {
    request.done.wait().await;
    request.result.take().unwrap_or(Err(IoError::Gone))
}

/// The parts of a range that extents from its start describe. A sector that is a hole in part is
/// none.
fn parts_of(range: SectorRange, extents: &[StatusExtent], most: usize) -> Vec<(SectorRange, bool)> {
    const HOLE: u32 = STATE_HOLE | STATE_ZERO;
    let mut parts: Vec<(SectorRange, bool)> = Vec::new();
    let (mut at, mut bytes) = (range.start.0, range.start.0 * SECTOR_BYTES);
    for extent in extents {
        bytes = bytes.saturating_add(u64::from(extent.length));
        let hole = extent.flags & HOLE == HOLE;
        let end = if hole { bytes / SECTOR_BYTES } else { bytes.div_ceil(SECTOR_BYTES) };
        let end = end.min(range.end.0);
        if end <= at {
            continue;
        }
        let full = parts.len() == most;
        match parts.last_mut() {
            Some((last, same)) if *same == hole => last.end = Sector(end),
            _ if full => break,
            _ => parts.push((SectorRange::from_bounds(Sector(at), Sector(end)), hole)),
        }
        at = end;
    }
    if parts.is_empty() { vec![(range, false)] } else { parts }
}
