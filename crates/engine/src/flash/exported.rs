//! A volume of either kind, for frontends that serve both.

use std::rc::Rc;

use ubcache_env::{
    BlockStatus, Env, ForeignMemory, IoVec, MappedRead, Owner, Place, ReadEnd, SectorRange,
    StreamEnd, StreamId, Volume, VolumeError, VolumeInfo,
};
use ubcache_format::Uuid;

use super::FlashVolume;
use crate::volume::replaceable::ServedVolume;

/// See the module. The calls of a flash-only volume have memory of their own, so that those of the
/// other kind stay small.
pub enum Exported<E: Env> {
    /// A volume with a backing device.
    Cached(Rc<ServedVolume<E>>),
    /// One without.
    Flash(Rc<FlashVolume<E>>),
}

impl<E: Env> Exported<E> {
    /// The volume, if it has a backing device.
    pub fn cached(&self) -> Option<&Rc<ServedVolume<E>>> {
        match self {
            Exported::Cached(volume) => Some(volume),
            Exported::Flash(_) => None,
        }
    }

    /// The volume, if it has no backing device.
    pub fn flash(&self) -> Option<&Rc<FlashVolume<E>>> {
        match self {
            Exported::Cached(_) => None,
            Exported::Flash(volume) => Some(volume),
        }
    }
}

/// Passes a call on to the volume, of whichever kind.
macro_rules! forward {
    ($volume:expr, $call:ident($($argument:expr),*)) => {
        match $volume {
            Exported::Cached(volume) => volume.$call($($argument),*).await,
            Exported::Flash(volume) => Box::pin(volume.$call($($argument),*)).await,
        }
    };
}

impl<E: Env> Volume for Exported<E> {
    fn info(&self) -> VolumeInfo {
        match self {
            Exported::Cached(volume) => volume.info(),
            Exported::Flash(volume) => volume.info(),
        }
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        forward!(self, read(stream, range))
    }

    async fn read_into(
        &self,
        stream: StreamId,
        range: SectorRange,
        place: Place,
    ) -> Result<IoVec, VolumeError> {
        forward!(self, read_into(stream, range, place))
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, write(stream, range, data, fua))
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, write_foreign(stream, range, data, fua))
    }

    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, write_bytes(stream, offset, data, fua))
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, discard(stream, range, fua))
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, write_zeroes(stream, range, fua, may_unmap))
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        forward!(self, flush(stream))
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        match self {
            Exported::Cached(volume) => volume.stream_ended(stream, end),
            Exported::Flash(volume) => volume.stream_ended(stream, end),
        }
    }

    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        forward!(self, prefetch(stream, range))
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        forward!(self, block_status(range))
    }
}

impl<E: Env> Owner for Exported<E> {
    fn map_read(&self, set: Uuid, stream: StreamId, range: SectorRange) -> Option<MappedRead> {
        match self {
            Exported::Cached(volume) => volume.map_read(set, stream, range),
            // All of it is read through the owner.
            Exported::Flash(_) => None,
        }
    }

    fn end_read(&self, number: usize, end: ReadEnd) -> bool {
        match self {
            Exported::Cached(volume) => volume.end_read(number, end),
            Exported::Flash(_) => unreachable!("no read of a flash-only volume is mapped"),
        }
    }
}
