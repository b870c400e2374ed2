//! A volume of either kind, for frontends that serve both.

use std::rc::Rc;

use ubcache_env::{
    Env, MappedRead, Owner, ReadEnd, SectorRange, StreamEnd, StreamId, Volume, VolumeInfo, pass_on,
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

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        match self {
            Exported::Cached(volume) => volume.stream_ended(stream, end),
            Exported::Flash(volume) => volume.stream_ended(stream, end),
        }
    }

    pass_on!(forward: read, read_into, write, write_foreign, write_bytes, discard, write_zeroes);
    pass_on!(forward: flush, prefetch, block_status);
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
