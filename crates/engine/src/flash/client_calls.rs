//! Calls of frontends.

use ubcache_env::bytes::ByteRange;
use ubcache_env::{
    BlockStatus, Env, IoError, IoVec, Nanos, Sector, SectorRange, StreamEnd, StreamId, Volume,
    VolumeError, VolumeInfo,
};
use ubcache_format::SECTOR_BYTES;

use super::FlashVolume;
use crate::rules::Rule;
use crate::stats::histogram::Taken;
use crate::stats::requests::Path;
use crate::write_turns::{Edges, Turn};

impl<E: Env> Volume for FlashVolume<E> {
    fn info(&self) -> VolumeInfo {
        VolumeInfo { sectors: self.sectors.get(), ..self.info.clone() }
    }

    async fn read(&self, _stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let _request = self.begin().await?;
        self.check(range)?;
        let started = self.context.env.now();
        let result = self.read_range(range).await;
        self.request_ended(Path::Hit, range.bytes(), started);
        result
    }

    async fn write(
        &self,
        _stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let _request = self.begin_write().await?;
        self.check(range)?;
        assert_eq!(data.sectors(), range.sectors(), "the data fills the range");
        let started = self.context.env.now();
        let _turn = self.turn(range).await;
        let result = self.write_range(range, &data, fua).await;
        self.request_ended(Path::WritebackWrite, range.bytes(), started);
        result
    }

    async fn write_bytes(
        &self,
        _stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let _request = self.begin_write().await?;
        let started = self.context.env.now();
        let bytes = data.len() as u64;
        let result = Box::pin(self.write_part(offset, data, fua)).await;
        self.request_ended(Path::WritebackWrite, bytes, started);
        result
    }

    async fn discard(
        &self,
        _stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let _request = self.begin_write().await?;
        self.check(range)?;
        let started = self.context.env.now();
        let _turn = self.turn(range).await;
        let result = self.discard_range(range, fua).await;
        self.request_ended(Path::Discard, range.bytes(), started);
        result
    }

    async fn write_zeroes(
        &self,
        _stream: StreamId,
        range: SectorRange,
        fua: bool,
        _may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let _request = self.begin_write().await?;
        self.check(range)?;
        let started = self.context.env.now();
        let _turn = self.turn(range).await;
        let result = self.zero_range(range, fua).await;
        self.request_ended(Path::WritebackWrite, range.bytes(), started);
        result
    }

    /// F1: everything that was answered before is in the journal. There is no device below.
    async fn flush(&self, _stream: StreamId) -> Result<(), VolumeError> {
        let _request = self.begin().await?;
        let started = self.context.env.now();
        let newest = self.index.newest_dirty(self.inode);
        let result = match self.context.keeps(Rule::F1FlushesJournal) {
            true => self.journal.wait(newest).await,
            false => Ok(()),
        };
        self.request_ended(Path::Flush, 0, started);
        result.map_err(VolumeError::from)
    }

    fn stream_ended(&self, _stream: StreamId, _end: StreamEnd) {}

    async fn prefetch(&self, _stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        let _request = self.begin().await?;
        // All that there is of it is in the cache.
        self.check(range)
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        let _request = self.begin().await?;
        self.check(range)?;
        self.status_of(range).await
    }
}

impl<E: Env> FlashVolume<E> {
    fn request_ended(&self, path: Path, bytes: u64, started: Nanos) {
        let taken = Taken::new(self.context.env.now().since(started));
        self.counts.ended(path, bytes, taken);
    }

    /// A turn over whole blocks, if somebody writes a part of a block at the time (T5).
    async fn turn(&self, range: SectorRange) -> Option<Turn> {
        if !self.turns.are_taken() {
            return None;
        }
        let turn = self.turns.take(range, Edges::new());
        turn.comes().await;
        Some(turn)
    }

    /// T5: reads the blocks of which `data` has a part only, and writes them as a whole. From the
    /// read to the reply no other write is over them.
    async fn write_part(&self, offset: u64, data: IoVec, fua: bool) -> Result<(), VolumeError> {
        let block_bytes = self.block_sectors() * SECTOR_BYTES;
        let bytes = ByteRange::new(offset, data.len() as u64, block_bytes);
        let around = bytes.around();
        self.check(around)?;
        let exclusive = self.context.keeps(Rule::T5PartExcludesWrites);
        let turn = exclusive.then(|| self.turns.take(around, bytes.edges().collect()));
        if let Some(turn) = &turn {
            turn.comes().await;
            for edge in bytes.edges() {
                self.table.writes_leave(edge).await;
            }
        }
        let Some(mut whole) = self.context.env.buffers().for_bytes(around.bytes() as usize) else {
            self.context.env.mark("no_memory_for_client");
            return Err(VolumeError::Io(IoError::NoMemory));
        };
        for edge in bytes.edges() {
            let old = self.read_range(edge).await?;
            let at = (edge.start.bytes() - around.start.bytes()) as usize;
            old.copy_to(&mut whole.as_mut_slice()[at..at + old.len()]);
        }
        let at = (offset - around.start.bytes()) as usize;
        data.copy_to(&mut whole.as_mut_slice()[at..at + data.len()]);
        drop(data);
        self.write_range(around, &whole.into(), fua).await
    }
}

/// The range in parts of so many sectors.
pub(super) fn steps(range: SectorRange, most: u64) -> impl Iterator<Item = SectorRange> {
    let starts = (range.start.0..range.end.0).step_by(most as usize);
    starts.map(move |at| SectorRange::from_bounds(Sector(at), Sector(range.end.0.min(at + most))))
}
