//! Lanes: clients of a volume are served in several places, for one owner of all that changes.
//!
//! A lane has its own environment: sockets, timers, memory, a handle to the cache device. Of the
//! volume it asks two things. A read that is a hit in one place it carries out itself: the owner
//! *maps* it, which is one step, then the lane reads the data, then it *ends* the read, which is
//! another step (rule R7 in `docs/internals/coherence.md`). Everything else goes to the owner as a
//! letter, and the lane waits for the answer.
//!
//! In production lanes are threads (`docs/internals/lanes.md`), in the simulator they are tasks
//! with drawn delays.

use std::rc::Rc;

use ubcache_format::{Sector, SectorRange, Uuid};

use crate::buf::IoVec;
use crate::device::{Device, IoError};
use crate::pass_on;
use crate::volume::{StreamEnd, StreamId, Volume, VolumeError, VolumeInfo};
use crate::world::{Env, Nanos};

/// A read that a lane carries out: all of its data is in one place, which stays as it is until the
/// read is ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct MappedRead {
    /// Number by which it is ended.
    pub number: usize,
    /// First sector on the cache device.
    pub at: Sector,
}

/// The way in which a lane's part of a read ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadEnd {
    /// The data was read, in so much time.
    Read(Nanos),
    /// The device failed.
    Failed(IoError),
    /// It was not read: there was no memory, or nobody waits for it any more.
    GivenUp,
}

/// The owner of a volume, as a lane sees it. The calls of [`Volume`] are letters.
pub trait Owner: Volume {
    /// Maps a read, if all of its data is in one place in the cache of this set.
    fn map_read(&self, set: Uuid, stream: StreamId, range: SectorRange) -> Option<MappedRead>;

    /// Ends a read that was mapped. Returns true if it was read, and the data may be used.
    fn end_read(&self, number: usize, end: ReadEnd) -> bool;
}

/// A volume, as the clients of a lane see it.
pub struct LaneVolume<E, O, D> {
    env: E,
    owner: Rc<O>,
    /// The cache device of the set, with the lane's own handle.
    cache: (Uuid, Rc<D>),
}

impl<E: Env, O: Owner, D: Device> LaneVolume<E, O, D> {
    /// A volume of this owner. `cache`: the set, and the lane's handle to its cache device. What is
    /// in the cache of another set is read by the owner.
    pub fn new(env: E, owner: Rc<O>, cache: (Uuid, Rc<D>)) -> LaneVolume<E, O, D> {
        LaneVolume { env, owner, cache }
    }

    /// Reads a range that is a hit in one place. `None`: the owner is to read it.
    async fn read_hit(&self, stream: StreamId, range: SectorRange) -> Option<IoVec> {
        let (set, cache) = &self.cache;
        let mapped = self.owner.map_read(*set, stream, range)?;
        let ending = Ending { owner: &*self.owner, number: Some(mapped.number) };
        // Without memory in the lane the owner says what that means.
        let into = self.env.buffers().for_sectors(range.sectors())?;
        let started = self.env.now();
        let (buf, result) = cache.read(mapped.at, into).await;
        let end = match result {
            Ok(()) => ReadEnd::Read(self.env.now().since(started)),
            Err(error) => ReadEnd::Failed(error),
        };
        ending.end(end).then(|| IoVec::from(buf.freeze()))
    }
}

/// A mapped read that is not ended yet. Dropped, it is given up.
struct Ending<'a, O: Owner> {
    owner: &'a O,
    number: Option<usize>,
}

impl<O: Owner> Ending<'_, O> {
    fn end(mut self, end: ReadEnd) -> bool {
        let number = self.number.take().expect("it is not ended");
        self.owner.end_read(number, end)
    }
}

impl<O: Owner> Drop for Ending<'_, O> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.owner.end_read(number, ReadEnd::GivenUp);
        }
    }
}

/// A letter to the owner.
macro_rules! letter {
    ($lane:expr, $call:ident($($argument:expr),*)) => {
        $lane.owner.$call($($argument),*).await
    };
}

impl<E: Env, O: Owner, D: Device> Volume for LaneVolume<E, O, D> {
    fn info(&self) -> VolumeInfo {
        self.owner.info()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        if let Some(data) = self.read_hit(stream, range).await {
            return Ok(data);
        }
        Box::pin(self.owner.read(stream, range)).await
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        self.owner.stream_ended(stream, end);
    }

    pass_on!(letter: read_into, write, write_foreign, write_bytes, discard, write_zeroes, flush);
    pass_on!(letter: prefetch, block_status);
}
