//! Errors of the engine: it can't do what it was asked to.

use ubcache_env::{IoError, VolumeError};
use ubcache_format::{Apart, FormatError, Sector, Uuid};

/// A set can't be opened, attached to, or go on. The caller adds the names of the devices.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A device failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation, as in "reading the journal".
        what: &'static str,
        /// The device's error.
        source: IoError,
    },
    /// The content of a device is damaged or not what it should be.
    #[error("{what}{}: {source}", at.map(|at| format!(" at sector {at}")).unwrap_or_default())]
    Format {
        /// The structure that was read.
        what: &'static str,
        /// Its sector on the device.
        at: Option<Sector>,
        /// The fault that was found in it.
        source: FormatError,
    },
    /// The content of a device contradicts itself.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// The structure that was read.
        what: &'static str,
        /// Found and expected values.
        detail: String,
    },
    /// A cache device is needed and this is a backing device, or the other way round.
    #[error("this is a bcache {found} device, a {expected} device is needed here")]
    WrongKind {
        /// `cache` or `backing`.
        found: &'static str,
        /// `cache` or `backing`.
        expected: &'static str,
    },
    /// The backing device belongs to another set.
    #[error(
        "the backing device is {state} and belongs to cache set {found}, not to {expected}; \
         serve it with the cache device of that set, or give it up there first"
    )]
    OtherSet {
        /// The set named by the backing device.
        found: Uuid,
        /// The set it was to be attached to.
        expected: Uuid,
        /// Its state word.
        state: &'static str,
    },
    /// The backing device is dirty and the set does not know it.
    #[error(
        "the backing device {uuid} has dirty data in a cache, but cache set {set} has no record of \
         it; \
         find the cache device that it was used with (its data is needed), nothing was changed"
    )]
    DirtyElsewhere {
        /// The backing device.
        uuid: Uuid,
        /// The set.
        set: Uuid,
    },
    /// The cache and the backing device are not of the same run.
    #[error(
        "the cache and the backing device {uuid} are not of one run: {apart}; nothing was changed \
         on the backing device"
    )]
    OlderCopy {
        /// The backing device.
        uuid: Uuid,
        /// Statements of both superblocks.
        apart: Apart,
    },
    /// Somebody wrote to a backing device that has no superblock on it, and it has dirty data (A9).
    #[error(
        "the disk of backing device {uuid} was written without its cache, or is another one: found \
         {found}, expected {expected}; nothing was changed"
    )]
    WrittenElsewhere {
        /// The backing device.
        uuid: Uuid,
        /// Its present content, at the first place that differs.
        found: String,
        /// The content that was left there.
        expected: String,
    },
    /// A backing device that has no superblock on it has another size than it had (A9).
    #[error(
        "the disk of backing device {uuid} has {found} sectors, and had {expected} when it was \
         used last; nothing was changed"
    )]
    Resized {
        /// The backing device.
        uuid: Uuid,
        /// Sectors that it has.
        found: u64,
        /// Sectors that it had.
        expected: u64,
    },
    /// It is to be chosen what counts, and the choice would lose dirty data.
    #[error("{0}")]
    WouldLose(&'static str),
    /// The backing device is shorter than it was, and dirty data lies beyond its end.
    #[error(
        "the backing device is shorter than it was: it ends at sector {end}, and the cache has \
         {dirty} dirty sectors of it \
         beyond that, up to sector {last}; give it its full size again"
    )]
    BeyondEnd {
        /// Sectors that only the cache has.
        dirty: u64,
        /// End of the last of them.
        last: Sector,
        /// End of the device.
        end: Sector,
    },
    /// A backing device has become too short for a volume: its sectors.
    #[error("the backing device has {0} sectors, too few for a volume")]
    NoVolumeLeft(u64),
    /// A volume that is being moved to another backing device: nothing else changes that meanwhile.
    #[error("the volume is being moved to another disk")]
    Moving,
    /// The device that a volume is to be moved to is too small: sectors.
    #[error("it has {found} sectors, and the volume with its superblock needs {expected}")]
    TooSmall {
        /// Its size.
        found: u64,
        /// The size that it needs.
        expected: u64,
    },
    /// A move can't begin, or can't be brought to its end.
    #[error("{0}")]
    CannotMove(&'static str),
    /// A move has ended without a switch; the volume goes on with its old device.
    #[error("{0}")]
    MoveEnded(MoveEnd),
    /// A cache device has no room for more buckets than it has.
    #[error("the buckets have {bytes} bytes, and the device has no room for one of {bucket} more")]
    NoMoreBuckets {
        /// All that it has.
        bytes: u64,
        /// The size of one.
        bucket: u64,
    },
    /// The cache is becoming smaller or larger, or became smaller in this run.
    #[error("the cache is being resized, or was since its set was started")]
    Resizing,
    /// A cache can't become smaller to have a size that it does not exceed: bytes.
    #[error("the cache has {before} bytes, and {after} are not fewer")]
    NotSmaller {
        /// Its size.
        before: u64,
        /// The size that it was to have.
        after: u64,
    },
    /// A cache would have fewer buckets than the format needs: bytes.
    #[error("a cache of {found} bytes has too few buckets; expected {least} bytes or more")]
    CacheTooSmall {
        /// The size that it was to have.
        found: u64,
        /// The least one with its buckets.
        least: u64,
    },
    /// A smaller cache has no room for what this one can't drop, and its reserves: bytes.
    #[error(
        "what can't be dropped beyond the new end, and what a cache keeps free, take {needed} \
             bytes; there is room for {room} before it"
    )]
    DoesNotFit {
        /// Room that it needs.
        needed: u64,
        /// Room that there is.
        room: u64,
    },
    /// A cache keeps its size.
    #[error("{0}")]
    ShrinkEnded(ShrinkEnd),
    /// A backing device has become shorter, and its volume may not: sectors of the volume.
    #[error("the volume has {before} sectors, and its disk has room for {after} now")]
    WouldShorten {
        /// Its size.
        before: u64,
        /// Its size if it did.
        after: u64,
    },
    /// A backing device with this UUID is attached already.
    #[error("a backing device with UUID {0} is attached already (a copy of the device?)")]
    AlreadyAttached(Uuid),
    /// There is no backing device with this UUID that the set knows and that is not served.
    #[error("the set knows no backing device {0} that is not served")]
    NotAbsent(Uuid),
    /// So many bytes of the backing device are only in the cache.
    #[error("the cache has {0} bytes of the backing device that only it has")]
    HasDirty(u64),
    /// There is no flash-only volume with this UUID.
    #[error("the set has no flash-only volume {0}")]
    NoFlash(Uuid),
    /// So many bytes of a flash-only volume would be lost.
    #[error("{0} bytes of data would be lost, which only the cache has")]
    HasFlashData(u64),
    /// A flash-only volume can't have this size.
    #[error(
        "{sectors} sectors are no size of a flash-only volume: it has blocks of {block} sectors, \
         one at least, and less than 2^44 sectors"
    )]
    FlashSize {
        /// Sectors.
        sectors: u64,
        /// Sectors.
        block: u64,
    },
    /// A label is too long for the volume table.
    #[error("the label has {0} bytes, and the volume table has room for 32")]
    LongLabel(usize),
    /// The end of a flash-only volume could not be discarded.
    #[error("the data beyond the new end could not be discarded: {0}")]
    ClearFailed(String),
    /// The volume is of another set, which it was not taken over from.
    #[error("the volume {0} belongs to another cache set")]
    NotOfThisSet(Uuid),
    /// The volume has no cache already.
    #[error("the volume is not attached to a cache set")]
    NotAttached,
    /// Dirty data can't be written to the backing device.
    #[error(
        "the backing device fails writes of dirty data ({0} errors); the volume stays attached, \
         repair the device and try again"
    )]
    BackingFails(u64),
    /// Dirty data can't be read from the cache.
    #[error(
        "the cache device fails reads of dirty data, or of its index ({0} errors); the volume \
         stays attached, and `ubcache check` says what the device does not return"
    )]
    DirtyUnreadable(u64),
    /// A flush failed earlier, and not everybody who had written knows of it.
    #[error(
        "a flush of the backing device {0} failed while clients used it, and not all that had \
         written have flushed since: \
         part of what they wrote before may be lost; check the device, and what was on its way to \
         it"
    )]
    LossUntold(Uuid),
    /// Block sizes do not fit.
    #[error(
        "the backing device has blocks of {backing} sectors, smaller than the {cache} sectors of \
         the cache; \
         make the cache with blocks of at most {backing} sectors"
    )]
    BlockTooSmall {
        /// Sectors.
        backing: u32,
        /// Sectors.
        cache: u32,
    },
    /// The volume table is full.
    #[error("the set has no free slot for another volume (it has {0}, and slots are never reused)")]
    NoSlot(u32),
    /// Something failed on the cache device while a backing device was attached.
    #[error("{0}")]
    OfCache(Box<EngineError>),
    /// No room for metadata.
    #[error("the cache has no free bucket for {0}")]
    NoSpace(&'static str),
    /// The set has failed earlier.
    #[error("the cache set has failed: {0}")]
    Failed(String),
    /// The volume was released while its dirty data was written back.
    #[error("the volume {0} has been removed, with dirty data that stays in the cache")]
    Removed(Uuid),
    /// The set is being stopped.
    #[error("the cache set is being stopped")]
    Stopping,
}

impl EngineError {
    /// Returns true for an I/O that failed for lack of memory.
    pub(crate) fn is_no_memory(&self) -> bool {
        matches!(self, EngineError::Io { source: IoError::NoMemory, .. })
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(IoError) -> EngineError {
        move |source| EngineError::Io { what, source }
    }

    pub(crate) fn of_cache(self) -> EngineError {
        EngineError::OfCache(Box::new(self))
    }

    pub(crate) fn format(
        what: &'static str,
        at: Sector,
    ) -> impl FnOnce(FormatError) -> EngineError {
        move |source| EngineError::Format { what, at: Some(at), source }
    }
}

/// Reason why a cache did not become smaller.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShrinkEnd {
    /// An administrator ended it.
    #[error("it was cancelled")]
    Cancelled,
    /// Bytes that could not be moved.
    #[error(
        "{dirty} bytes of dirty data and {metadata} bytes of metadata beyond the new end find \
             no room before it, or can't be read"
    )]
    NoRoom {
        /// Dirty data.
        dirty: u64,
        /// Buckets with metadata.
        metadata: u64,
    },
    /// Bytes that somebody is reading or writing.
    #[error("{0} bytes beyond the new end stay in use")]
    InUse(u64),
}

/// Reason why a move has ended without a switch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoveEnd {
    /// An administrator ended it.
    #[error("the move was cancelled")]
    Cancelled,
    /// The set is being stopped; another run of it goes on with the move.
    #[error("the set is being stopped")]
    Suspended,
    /// The new device failed.
    #[error("{what} the new device: {error}")]
    NewFails {
        /// The operation.
        what: &'static str,
        /// Its error.
        error: IoError,
    },
    /// The old device can't be read.
    #[error("reading the old device at sector {at}: {error}")]
    OldUnreadable {
        /// First sector of the read.
        at: Sector,
        /// Its error.
        error: IoError,
    },
    /// A flush of the old device failed: it may hold less than it was told to, and change.
    #[error("a flush of the old device failed: {0}")]
    OldLoses(IoError),
}

/// The error that a client gets.
impl From<EngineError> for VolumeError {
    fn from(error: EngineError) -> VolumeError {
        match error {
            EngineError::Io { source, .. } => VolumeError::Io(source),
            other => VolumeError::Unavailable(other.to_string()),
        }
    }
}
