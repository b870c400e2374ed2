//! The other end of clients: the volume itself, the NBD server in front of it, over streams that
//! are cut anywhere, the driver of ublk with its server, or the disk of a virtual machine.

pub mod connection;
pub mod nbd;
pub mod ublk;
pub mod vhost;

use std::rc::Rc;

use ubcache_env::{
    BlockStatus, ByteRange, ForeignMemory, IoVec, SectorRange, StreamEnd, StreamId, Volume,
    VolumeError, VolumeInfo, bytes,
};

use crate::executor::SimEnv;
use crate::plan::Frontend;
pub use nbd::{NbdVolume, is_cut};
pub use ublk::{HeldRequest, UblkVolume};
pub use vhost::VhostVolume;

/// See the module. Sectors are counted from the first one that the plan speaks of.
pub struct Front<V> {
    way: Way<V>,
    head: u64,
    /// Size of a block of the volume in bytes.
    block: u64,
}

enum Way<V> {
    /// The volume.
    Direct(Rc<V>),
    /// The NBD server.
    Nbd(NbdVolume<V>),
    /// The driver of ublk.
    Ublk(UblkVolume<V>),
    /// The disk of a virtual machine.
    Vhost(VhostVolume<V>),
}

impl<V: Volume> Front<V> {
    /// A front as the plan has it, past so many sectors of the volume. `blame` is told what a
    /// server must not do.
    pub fn new(
        frontend: &Frontend,
        env: &SimEnv,
        (volume, head): (Rc<V>, u64),
        blame: Rc<dyn Fn(String)>,
    ) -> Front<V> {
        let block = u64::from(volume.info().block_bytes);
        let way = match frontend {
            Frontend::Direct => Way::Direct(volume),
            Frontend::Nbd(shape) => Way::Nbd(NbdVolume::new(*shape, env.clone(), volume, blame)),
            Frontend::Ublk(shape) => Way::Ublk(UblkVolume::new(*shape, env.clone(), volume, blame)),
            Frontend::Vhost(shape) => {
                Way::Vhost(VhostVolume::new(*shape, env.clone(), volume, blame))
            }
        };
        Front { way, head, block }
    }

    /// The network fails for a moment: every connection is cut. Of a block device, another server
    /// goes on; so it does with the disk of a guest.
    pub async fn disconnect(&self) {
        match &self.way {
            Way::Direct(_) => {}
            Way::Nbd(volume) => volume.disconnect(),
            Way::Ublk(volume) => volume.change_servers().await,
            Way::Vhost(volume) => volume.disconnect(),
        }
    }

    /// The clients leave in good order; none has a request under way.
    pub async fn leave(&self) {
        match &self.way {
            Way::Direct(_) => {}
            Way::Nbd(volume) => volume.leave().await,
            Way::Ublk(volume) => volume.leave().await,
            Way::Vhost(volume) => volume.leave().await,
        }
    }

    /// Requests that the next process is to carry out, if this one ends now. Ranges are the
    /// plan's.
    pub fn held(&self) -> Vec<HeldRequest> {
        let Way::Ublk(volume) = &self.way else { return Vec::new() };
        let mut held = volume.held();
        for request in held.iter_mut().filter(|request| !request.range.is_empty()) {
            request.range = request.range.shift(-(self.head as i64));
        }
        held
    }

    /// Carries out a request of the process before. Returns the data of a read.
    pub async fn carry_out_again(&self, mut held: HeldRequest) -> Result<IoVec, VolumeError> {
        let Way::Ublk(volume) = &self.way else { unreachable!("only devices hold requests") };
        if !held.range.is_empty() {
            held.range = self.there(held.range);
        }
        volume.carry_out_again(held).await
    }

    /// The bytes of a range, as the volume has it.
    fn bytes(&self, range: SectorRange) -> ByteRange {
        ByteRange::of_sectors(self.there(range), self.block)
    }

    /// The range as the volume has it.
    fn there(&self, range: SectorRange) -> SectorRange {
        range.shift(self.head as i64)
    }
}

macro_rules! forward {
    ($self:ident, $volume:ident => $call:expr) => {
        match &$self.way {
            Way::Direct($volume) => $call,
            Way::Nbd($volume) => $call,
            Way::Ublk($volume) => $call,
            Way::Vhost($volume) => $call,
        }
    };
}

impl<V: Volume> Volume for Front<V> {
    fn info(&self) -> VolumeInfo {
        let info = forward!(self, volume => volume.info());
        VolumeInfo { sectors: info.sectors - self.head, ..info }
    }
    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        match &self.way {
            Way::Direct(volume) => bytes::read(&**volume, stream, self.bytes(range)).await,
            Way::Nbd(volume) => volume.read(stream, self.there(range)).await,
            Way::Ublk(volume) => bytes::read(volume, stream, self.bytes(range)).await,
            Way::Vhost(volume) => volume.read(stream, self.there(range)).await,
        }
    }
    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        match &self.way {
            Way::Direct(volume) => {
                bytes::write(&**volume, stream, self.bytes(range), data, fua).await
            }
            Way::Nbd(volume) => volume.write(stream, self.there(range), data, fua).await,
            Way::Ublk(volume) => bytes::write(volume, stream, self.bytes(range), data, fua).await,
            Way::Vhost(volume) => volume.write(stream, self.there(range), data, fua).await,
        }
    }
    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        match &self.way {
            Way::Direct(volume) if self.bytes(range).is_whole() => {
                volume.write_foreign(stream, self.there(range), data, fua).await
            }
            Way::Ublk(volume) if self.bytes(range).is_whole() => {
                volume.write_foreign(stream, self.there(range), data, fua).await
            }
            Way::Direct(_) | Way::Ublk(_) => {
                self.write(stream, range, data.copy().into(), fua).await
            }
            // A server has the data in memory of its own.
            Way::Nbd(volume) => {
                volume.write(stream, self.there(range), data.copy().into(), fua).await
            }
            Way::Vhost(volume) => volume.write_foreign(stream, self.there(range), data, fua).await,
        }
    }
    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let offset = offset + self.head * 512;
        forward!(self, volume => volume.write_bytes(stream, offset, data, fua).await)
    }
    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        match &self.way {
            Way::Direct(volume) => bytes::discard(&**volume, stream, self.bytes(range), fua).await,
            Way::Nbd(volume) => volume.discard(stream, self.there(range), fua).await,
            Way::Ublk(volume) => bytes::discard(volume, stream, self.bytes(range), fua).await,
            Way::Vhost(volume) => volume.discard(stream, self.there(range), fua).await,
        }
    }
    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        match &self.way {
            Way::Direct(volume) => {
                let range = self.bytes(range);
                bytes::write_zeroes(&**volume, stream, range, fua, may_unmap).await
            }
            Way::Nbd(volume) => {
                volume.write_zeroes(stream, self.there(range), fua, may_unmap).await
            }
            Way::Ublk(volume) => {
                let range = self.bytes(range);
                bytes::write_zeroes(volume, stream, range, fua, may_unmap).await
            }
            Way::Vhost(volume) => {
                volume.write_zeroes(stream, self.there(range), fua, may_unmap).await
            }
        }
    }
    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        forward!(self, volume => volume.flush(stream).await)
    }
    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        forward!(self, volume => volume.stream_ended(stream, end));
    }
    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        let around = self.bytes(range).around();
        forward!(self, volume => volume.prefetch(stream, around).await)
    }
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        let there = self.bytes(range).around();
        let found = forward!(self, volume => volume.block_status(there).await)?;
        let back = |(range, status): (SectorRange, BlockStatus)| {
            (range.shift(-(self.head as i64)), status)
        };
        Ok(found.into_iter().map(back).collect())
    }
}
