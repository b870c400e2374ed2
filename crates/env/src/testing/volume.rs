//! A volume in memory that records its requests and can be held up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_format::{Sector, SectorRange};

use crate::buf::{Buf, IoVec};
use crate::local::Event;
use crate::volume::{BlockStatus, StreamEnd, StreamId, Volume, VolumeError, VolumeInfo};

/// A request that the volume got.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are the arguments of the calls of a volume")]
pub enum Asked {
    /// A read.
    Read(SectorRange),
    /// A write.
    Write { range: SectorRange, fua: bool },
    /// A write of parts of blocks.
    WriteBytes { offset: u64, length: usize, fua: bool },
    /// A discard.
    Discard { range: SectorRange, fua: bool },
    /// Zeroes.
    Zero { range: SectorRange, fua: bool, may_unmap: bool },
    /// A flush.
    Flush,
    /// A prefetch.
    Prefetch(SectorRange),
    /// A question for the status of blocks.
    Status(SectorRange),
}

/// A volume in memory.
pub struct MemoryVolume {
    /// Its info.
    pub info: RefCell<VolumeInfo>,
    /// Its bytes.
    pub content: RefCell<Vec<u8>>,
    /// True for each sector that takes space.
    allocated: RefCell<Vec<bool>>,
    /// The requests that it got.
    pub asked: RefCell<Vec<Asked>>,
    /// The streams of its reads.
    pub streams: RefCell<Vec<StreamId>>,
    /// The ends of streams.
    pub ends: RefCell<Vec<StreamEnd>>,
    /// Errors for the next requests.
    pub failures: RefCell<VecDeque<Option<VolumeError>>>,
    /// Events that the next requests wait for.
    pub gates: RefCell<VecDeque<Rc<Event>>>,
    /// Requests under way.
    pub running: Cell<u32>,
    /// Requests that were under way at the same time.
    pub most_running: Cell<u32>,
    /// True if all memory of written payloads began at a page.
    pub aligned: Cell<bool>,
}

impl std::fmt::Debug for MemoryVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryVolume").field("info", &self.info).finish_non_exhaustive()
    }
}

impl MemoryVolume {
    /// A volume of zeroes with blocks of 512 bytes.
    pub fn new(name: &str, sectors: u64) -> Rc<MemoryVolume> {
        let info = VolumeInfo {
            name: name.to_owned(),
            sectors,
            block_bytes: 512,
            preferred_bytes: 4096,
            read_only: false,
        };
        let len = usize::try_from(sectors).expect("small");
        Rc::new(MemoryVolume {
            info: RefCell::new(info),
            content: RefCell::new(vec![0; len * 512]),
            allocated: RefCell::new(vec![false; len]),
            asked: RefCell::default(),
            streams: RefCell::default(),
            ends: RefCell::default(),
            failures: RefCell::default(),
            gates: RefCell::default(),
            running: Cell::new(0),
            most_running: Cell::new(0),
            aligned: Cell::new(true),
        })
    }

    /// Makes the next request wait for the event.
    pub fn hold(&self) -> Rc<Event> {
        let gate = Rc::new(Event::default());
        self.gates.borrow_mut().push_back(gate.clone());
        gate
    }

    async fn begin(&self, asked: Asked) -> Result<(), VolumeError> {
        self.asked.borrow_mut().push(asked);
        self.running.set(self.running.get() + 1);
        self.most_running.set(self.most_running.get().max(self.running.get()));
        let failure = self.failures.borrow_mut().pop_front().flatten();
        let gate = self.gates.borrow_mut().pop_front();
        if let Some(gate) = gate {
            gate.wait().await;
        }
        self.running.set(self.running.get() - 1);
        failure.map_or(Ok(()), Err)
    }

    fn set(&self, range: SectorRange, allocated: bool) {
        for sector in range.start.0..range.end.0 {
            self.allocated.borrow_mut()[sector as usize] = allocated;
        }
    }
}

fn bytes(range: SectorRange) -> std::ops::Range<usize> {
    range.start.bytes() as usize..range.end.bytes() as usize
}

impl Volume for MemoryVolume {
    fn info(&self) -> VolumeInfo {
        self.info.borrow().clone()
    }
    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.streams.borrow_mut().push(stream);
        self.begin(Asked::Read(range)).await?;
        let content = Buf::from_bytes(&self.content.borrow()[bytes(range)]).freeze();
        // Content in several parts, as from a cache.
        let mut parts = IoVec::new();
        let middle = content.len() / 1024 * 512;
        parts.push(content.cut(0, middle));
        parts.push(content.cut(middle, content.len()));
        Ok(parts)
    }
    async fn write(
        &self,
        _: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        assert_eq!(data.len() as u64, range.bytes());
        if data.parts().iter().any(|part| part.as_slice().as_ptr().addr() % 4096 != 0) {
            self.aligned.set(false);
        }
        self.begin(Asked::Write { range, fua }).await?;
        data.copy_to(&mut self.content.borrow_mut()[bytes(range)]);
        self.set(range, true);
        Ok(())
    }
    async fn write_bytes(
        &self,
        _: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.begin(Asked::WriteBytes { offset, length: data.len(), fua }).await?;
        let at = offset as usize;
        data.copy_to(&mut self.content.borrow_mut()[at..at + data.len()]);
        let end = (offset + data.len() as u64).div_ceil(512);
        self.set(SectorRange::from_bounds(Sector(offset / 512), Sector(end)), true);
        Ok(())
    }
    async fn discard(&self, _: StreamId, range: SectorRange, fua: bool) -> Result<(), VolumeError> {
        self.begin(Asked::Discard { range, fua }).await?;
        self.content.borrow_mut()[bytes(range)].fill(0);
        self.set(range, false);
        Ok(())
    }
    async fn write_zeroes(
        &self,
        _: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        self.begin(Asked::Zero { range, fua, may_unmap }).await?;
        self.content.borrow_mut()[bytes(range)].fill(0);
        self.set(range, !may_unmap);
        Ok(())
    }
    async fn flush(&self, _: StreamId) -> Result<(), VolumeError> {
        self.begin(Asked::Flush).await
    }
    fn stream_ended(&self, _: StreamId, end: StreamEnd) {
        self.ends.borrow_mut().push(end);
    }
    async fn prefetch(&self, _: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        self.begin(Asked::Prefetch(range)).await
    }
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        self.begin(Asked::Status(range)).await?;
        let allocated = self.allocated.borrow();
        let status = |sector: u64| BlockStatus {
            hole: !allocated[sector as usize],
            ..BlockStatus::default()
        };
        Ok((range.start.0..range.end.0)
            .map(|sector| (SectorRange::new(Sector(sector), 1), status(sector)))
            .collect())
    }
}
