//! The requests of frontends.

use std::rc::Rc;

use ubcache_env::{
    BlockStatus, Env, ForeignMemory, IoVec, Sector, SectorRange, StreamEnd, StreamId, Volume,
    VolumeError, VolumeInfo,
};

use super::CachedVolume;
use crate::request::read::ReadPath;
use crate::request::write::Payload;

/// Zeroing and discarding work on at most this much at once.
const LONG_STEP: u64 = 16 << 11;
/// And prefetching on this much, which is what it has in memory.
const PREFETCH_STEP: u64 = 1 << 11;

impl<E: Env> Volume for CachedVolume<E> {
    fn info(&self) -> VolumeInfo {
        self.info.clone()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let keys = self.key_range(range)?;
        if self.is_paused() {
            self.opens().await;
        }
        let _request = self.begin()?;
        match self.look_up(stream, keys) {
            ReadPath::Hit(hit) => self.read_hit(hit).await.map(IoVec::from),
            ReadPath::Miss { bypass } => Box::pin(self.read_parts(keys, bypass)).await,
            ReadPath::Passthrough => Box::pin(self.read_past(keys)).await,
        }
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        assert_eq!(data.sectors(), range.sectors(), "the data fills the range");
        if self.is_paused() {
            self.opens().await;
        }
        let _request = self.begin_write()?;
        self.coherence.stream_writes(stream);
        if self.coherence.turns.are_taken() {
            let payload = Payload::Data(data);
            return Box::pin(self.write_in_turn(stream, keys, payload, fua)).await;
        }
        self.write_keys(stream, keys, Payload::Data(data), fua).await
    }

    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.opens().await;
        let _request = self.begin_write()?;
        self.coherence.stream_writes(stream);
        Box::pin(self.write_part(stream, offset, data, fua)).await
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.write_copied(stream, range, data, fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        self.opens().await;
        let _request = self.begin_write()?;
        self.coherence.stream_writes(stream);
        for step in steps(keys, LONG_STEP) {
            let _turn = Box::pin(self.turn(step)).await;
            self.discard_keys(stream, step).await?;
        }
        if fua { self.flush_devices().await } else { Ok(()) }
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        self.opens().await;
        let _request = self.begin_write()?;
        self.coherence.stream_writes(stream);
        for step in steps(keys, LONG_STEP) {
            let _turn = Box::pin(self.turn(step)).await;
            self.write_keys(stream, step, Payload::Zeroes { unmap: may_unmap }, fua).await?;
        }
        Ok(())
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        self.opens().await;
        let _request = self.begin()?;
        self.flush_all(stream).await
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        if self.coherence.stream_leaves(stream, end, self.lifecycle.uses_cache()) {
            self.context.env.mark("error_lost_with_a_connection");
        }
    }

    async fn prefetch(&self, _stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        let keys = self.key_range(range)?;
        self.opens().await;
        let _request = self.begin()?;
        for step in steps(keys, PREFETCH_STEP) {
            self.prefetch_keys(step).await?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        let keys = self.key_range(range)?;
        self.opens().await;
        let _request = self.begin()?;
        let parts = Box::pin(self.status_of(keys)).await;
        Ok(parts.into_iter().map(|(part, status)| (self.volume_range(part), status)).collect())
    }
}

fn steps(range: SectorRange, most: u64) -> impl Iterator<Item = SectorRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = Sector(range.end.0.min(at.0 + most));
        let step = SectorRange::from_bounds(at, end);
        at = end;
        (!step.is_empty()).then_some(step)
    })
}
