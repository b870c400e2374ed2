//! The interface of frontends: the cached volume as the client sees it.

use std::rc::Rc;

use ubcache_format::SectorRange;

use crate::buf::{Buf, IoVec};
use crate::device::{IoError, Place};

/// A source of requests: a connection or a queue. Sequential access is detected per stream, and a
/// flush that failed over writes is reported once to each stream (`docs/internals/coherence.md`
/// §2).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct StreamId(pub u64);

/// The way in which a stream ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum StreamEnd {
    /// The client said that it leaves, and got all replies.
    Orderly,
    /// The connection broke: replies may not have reached the client.
    Cut,
}

/// Size and properties of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Name of the export.
    pub name: String,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest request in bytes; a power of two, at least 512.
    pub block_bytes: u32,
    /// Request size in bytes below which a request costs more than it should.
    pub preferred_bytes: u32,
    /// True if writes are refused.
    pub read_only: bool,
}

/// State of a range, as far as it is known without reading it.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockStatus {
    /// Reads as zeroes, and takes no space.
    pub hole: bool,
    /// The cache has it.
    pub cached: bool,
    /// Only the cache has it.
    pub dirty: bool,
}

/// Memory with the data of a write that the frontend does not own: of a guest, or of the kernel's
/// requester. Its content may change at any moment until the write is answered.
pub trait ForeignMemory {
    /// Copies what it holds now.
    fn copy(&self) -> Buf;
}

/// Reasons for the failure of a client's request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VolumeError {
    /// A device failed.
    #[error("{0}")]
    Io(#[from] IoError),
    /// The range is outside the volume or not aligned to its block.
    #[error(
        "request {range} does not fit the volume of {sectors} sectors with blocks of {block_bytes} \
         bytes"
    )]
    BadRange {
        /// The requested range.
        range: SectorRange,
        /// The size of the volume.
        sectors: u64,
        /// The smallest unit of I/O.
        block_bytes: u32,
    },
    /// The newest content of the range is in a cache that can't be read.
    #[error("the newest content of sectors {0} is in the cache and can't be read")]
    DirtyDataLost(SectorRange),
    /// The volume is read-only.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The set has failed or is being stopped.
    #[error("the volume is not available: {0}")]
    Unavailable(String),
}

impl VolumeError {
    /// The errno for the client.
    pub fn errno(&self) -> i32 {
        match self {
            VolumeError::Io(error) => error.errno(),
            VolumeError::BadRange { .. } => 22,
            VolumeError::DirtyDataLost(_) => 5,
            VolumeError::ReadOnly => 1,
            VolumeError::Unavailable(_) => 108,
        }
    }
}

/// A volume. Requests run concurrently; a reply means what `docs/internals/coherence.md` §2 says.
///
/// Ranges are in sectors of the volume and must be multiples of the block size of the info.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Volume: 'static {
    /// Size, block, name.
    fn info(&self) -> VolumeInfo;

    /// Reads the range.
    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError>;

    /// Reads like [`Volume::read`], straight to a place where that can be done without memory in
    /// between. Returns the data, or nothing of it if all of it is at the place.
    async fn read_into(
        &self,
        stream: StreamId,
        range: SectorRange,
        place: Place,
    ) -> Result<IoVec, VolumeError> {
        let _ = place;
        self.read(stream, range).await
    }

    /// Writes the range; `fua`: durable when it returns.
    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError>;

    /// Writes like [`Volume::write`], for a frontend that does not own the data. Data that is
    /// written twice, or resumed, has to be the same each time (rule T0), so it is copied here,
    /// once, before anything else. Data in an [`IoVec`] is immutable, and costs nothing.
    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.write(stream, range, data.copy().into(), fua).await
    }

    /// Writes bytes that are no whole blocks: the rest of the first and the last block stays what
    /// it is, also beside other writes to it (rule T5). `offset` is a byte of the volume.
    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError>;

    /// The client does not need the range any more. May be ignored, in whole or in part.
    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError>;

    /// Makes the range read as zeroes. `may_unmap`: space may be given back.
    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError>;

    /// Makes every write that was answered before this call durable, of all streams. Fails once for
    /// each stream that wrote before a flush of the device failed, even if no client had requested
    /// that flush.
    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError>;

    /// The stream has ended and none of its requests is under way.
    fn stream_ended(&self, stream: StreamId, end: StreamEnd);

    /// Brings the range into the cache if it is not there. A hint.
    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError>;

    /// Status of the range: consecutive parts from its start, at least one; may stop early.
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError>;
}

/// Makes methods of an `impl Volume` that pass their calls on: with `pass_on!(call: write, flush);`
/// each of these is `call!(self, METHOD(ARGUMENTS))`, where `call` is a macro of the caller's that
/// awaits the answer.
#[macro_export]
macro_rules! pass_on {
    (@ $call:ident read) => {
        async fn read(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
        ) -> Result<$crate::IoVec, $crate::VolumeError> {
            $call!(self, read(stream, range))
        }
    };
    (@ $call:ident read_into) => {
        async fn read_into(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
            place: $crate::Place,
        ) -> Result<$crate::IoVec, $crate::VolumeError> {
            $call!(self, read_into(stream, range, place))
        }
    };
    (@ $call:ident write) => {
        async fn write(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
            data: $crate::IoVec,
            fua: bool,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, write(stream, range, data, fua))
        }
    };
    (@ $call:ident write_foreign) => {
        async fn write_foreign(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
            data: std::rc::Rc<dyn $crate::ForeignMemory>,
            fua: bool,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, write_foreign(stream, range, data, fua))
        }
    };
    (@ $call:ident write_bytes) => {
        async fn write_bytes(
            &self,
            stream: $crate::StreamId,
            offset: u64,
            data: $crate::IoVec,
            fua: bool,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, write_bytes(stream, offset, data, fua))
        }
    };
    (@ $call:ident discard) => {
        async fn discard(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
            fua: bool,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, discard(stream, range, fua))
        }
    };
    (@ $call:ident write_zeroes) => {
        async fn write_zeroes(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
            fua: bool,
            may_unmap: bool,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, write_zeroes(stream, range, fua, may_unmap))
        }
    };
    (@ $call:ident flush) => {
        async fn flush(&self, stream: $crate::StreamId) -> Result<(), $crate::VolumeError> {
            $call!(self, flush(stream))
        }
    };
    (@ $call:ident prefetch) => {
        async fn prefetch(
            &self,
            stream: $crate::StreamId,
            range: $crate::SectorRange,
        ) -> Result<(), $crate::VolumeError> {
            $call!(self, prefetch(stream, range))
        }
    };
    (@ $call:ident block_status) => {
        async fn block_status(
            &self,
            range: $crate::SectorRange,
        ) -> Result<Vec<($crate::SectorRange, $crate::BlockStatus)>, $crate::VolumeError> {
            $call!(self, block_status(range))
        }
    };
    ($call:ident: $($method:ident),+ $(,)?) => {
        $($crate::pass_on!(@ $call $method);)+
    };
}

/// A call of what a handle points to.
macro_rules! inner {
    ($handle:expr, $call:ident($($argument:expr),*)) => {
        (**$handle).$call($($argument),*).await
    };
}

impl<V: Volume> Volume for Rc<V> {
    fn info(&self) -> VolumeInfo {
        (**self).info()
    }

    pass_on!(inner: read, read_into, write, write_foreign, write_bytes, discard, write_zeroes);
    pass_on!(inner: flush, prefetch, block_status);

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        (**self).stream_ended(stream, end);
    }
}
