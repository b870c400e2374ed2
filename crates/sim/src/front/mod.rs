//! The other end of clients: the volume itself, or the NBD server in front of it, over streams that
//! are cut anywhere.

pub mod connection;
pub mod nbd;

use std::rc::Rc;

use ubcache_env::{
    BlockStatus, ForeignMemory, IoVec, SectorRange, StreamId, Volume, VolumeError, VolumeInfo,
};

use crate::executor::SimEnv;
use crate::plan::Frontend;
pub use nbd::{NbdVolume, is_cut};

/// See the module.
pub enum Front<V> {
    /// The volume.
    Direct(Rc<V>),
    /// The NBD server.
    Nbd(NbdVolume<V>),
}

impl<V: Volume> Front<V> {
    /// A front as the plan has it. `blame` is told what a server must not do.
    pub fn new(frontend: &Frontend, env: &SimEnv, volume: Rc<V>, blame: Rc<dyn Fn(String)>) -> Front<V> {
        match frontend {
            Frontend::Direct => Front::Direct(volume),
            Frontend::Nbd(shape) => Front::Nbd(NbdVolume::new(*shape, env.clone(), volume, blame)),
        }
    }

    /// The network fails for a moment: every connection is cut.
    pub fn disconnect(&self) {
        if let Front::Nbd(volume) = self {
            volume.disconnect();
        }
    }

    /// The clients leave in good order; none has a request under way.
    pub async fn leave(&self) {
        if let Front::Nbd(volume) = self {
            volume.leave().await;
        }
    }
}

macro_rules! forward {
    ($self:ident, $volume:ident => $call:expr) => {
        match $self {
            Front::Direct($volume) => $call,
            Front::Nbd($volume) => $call,
        }
    };
}

impl<V: Volume> Volume for Front<V> {
    fn info(&self) -> VolumeInfo {
        forward!(self, volume => volume.info())
    }
    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        forward!(self, volume => volume.read(stream, range).await)
    }
    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, volume => volume.write(stream, range, data, fua).await)
    }
    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        match self {
            Front::Direct(volume) => volume.write_foreign(stream, range, data, fua).await,
            // A server has the data in memory of its own.
            Front::Nbd(volume) => volume.write(stream, range, data.copy().into(), fua).await,
        }
    }
    async fn discard(&self, stream: StreamId, range: SectorRange, fua: bool) -> Result<(), VolumeError> {
        forward!(self, volume => volume.discard(stream, range, fua).await)
    }
    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        forward!(self, volume => volume.write_zeroes(stream, range, fua, may_unmap).await)
    }
    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        forward!(self, volume => volume.flush(stream).await)
    }
    fn stream_ended(&self, stream: StreamId) {
        forward!(self, volume => volume.stream_ended(stream));
    }
    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        forward!(self, volume => volume.prefetch(stream, range).await)
    }
    async fn block_status(&self, range: SectorRange) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        forward!(self, volume => volume.block_status(range).await)
    }
}
