//! A volume of the set's thread, as a lane asks for it.

use std::sync::Arc;

use ubcache_engine::Exported;
use ubcache_env::{
    IoVec, MappedRead, Owner, ReadEnd, SectorRange, StreamEnd, StreamId, Volume, VolumeError,
    VolumeInfo, pass_on,
};
use ubcache_format::Uuid;
use ubcache_host::OwnedVolume;

use crate::served::world::World;

/// A volume that lanes share with the set's thread.
pub(crate) type Owned<W> = Arc<OwnedVolume<Exported<W>>>;

/// See the module. Data goes over in the memory that it is in, where nobody else holds that.
pub(crate) struct Letters<W: World> {
    owned: Owned<W>,
    /// Its info when the client came.
    info: VolumeInfo,
}

impl<W: World> Letters<W> {
    /// Letters for a volume. `None`: its owner has ended.
    pub(crate) fn new(owned: Owned<W>) -> Option<Letters<W>> {
        Some(Letters { info: owned.info()?, owned })
    }
}

fn ended() -> VolumeError {
    VolumeError::Unavailable("the cache set is being stopped".to_owned())
}

/// A call that the owner carries out.
macro_rules! letter {
    ($letters:expr, $call:ident($($argument:expr),*)) => {
        $letters
            .owned
            .ask(move |volume| async move { volume.$call($($argument),*).await })
            .await
            .unwrap_or_else(|| Err(ended()))
    };
}

impl<W: World> Volume for Letters<W> {
    fn info(&self) -> VolumeInfo {
        self.owned.info().unwrap_or_else(|| self.info.clone())
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let letter = move |volume: std::rc::Rc<Exported<W>>| async move {
            volume.read(stream, range).await.map(IoVec::into_parcels)
        };
        let read = self.owned.ask(letter).await.unwrap_or_else(|| Err(ended()));
        read.map(IoVec::from_parcels)
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let data = data.into_parcels();
        letter!(self, write(stream, range, IoVec::from_parcels(data), fua))
    }

    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let data = data.into_parcels();
        letter!(self, write_bytes(stream, offset, IoVec::from_parcels(data), fua))
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        self.owned.stream_ended(stream, end);
    }

    pass_on!(letter: discard, write_zeroes, flush, prefetch, block_status);
}

impl<W: World> Owner for Letters<W> {
    fn map_read(&self, set: Uuid, stream: StreamId, range: SectorRange) -> Option<MappedRead> {
        self.owned.map_read(set, stream, range)
    }

    fn end_read(&self, number: usize, end: ReadEnd) -> bool {
        self.owned.end_read(number, end)
    }
}
