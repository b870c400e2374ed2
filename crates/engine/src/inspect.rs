//! The memory of a volume at one moment, for assertions from outside: the simulator compares it
//! with the devices (docs/internals/coherence.md §10). Nothing is read, loaded or changed.

use ubcache_env::{Env, IntervalSet, Sector, SectorRange};

use crate::coherence::in_flight_table::Kind;
use crate::volume::CachedVolume;

/// State of a copy in the cache.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// In the index, with a record: the backing device has the same.
    Clean,
    /// In the index: the newest data, which the backing device may lack.
    Dirty,
    /// Served, but in no record: a crash forgets it (C1).
    Unpublished,
}

/// A range of a backing device and where its copy is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CachedCopy {
    /// In sectors of the backing device, from its first one.
    pub range: SectorRange,
    /// The sector of the cache device where the copy of the first sector is.
    pub at: Sector,
    /// State of the copy.
    pub state: CopyState,
}

/// An entry of the in-flight table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InFlightEntry {
    /// A read miss that may leave a copy.
    Fill(SectorRange),
    /// A client's write, discard or write of zeroes that has not been decided (W2), or goes to the
    /// cache.
    Write(SectorRange),
    /// A client's write, discard or write of zeroes on its way to the backing device.
    BackingWrite(SectorRange),
    /// Background writeback.
    Writeback(SectorRange),
}

/// See the module. Ranges are in sectors of the backing device, from its first one.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// True if the cache is used at all: after it has failed, requests may go past it (A4), and its
    /// copies mean nothing any more.
    pub uses_cache: bool,
    /// Live copies in leaves that are in memory, and unpublished ones.
    pub copies: Vec<CachedCopy>,
    /// The in-flight table.
    pub in_flight: Vec<InFlightEntry>,
    /// Ranges that the backing device may lose, as far as the volume knows.
    pub unflushed: IntervalSet,
    /// Ranges that it may have lost, and may still return for a while.
    pub suspect: IntervalSet,
}

/// The memory of a set beside its volumes.
#[derive(Clone, Debug)]
pub struct SetView {
    /// Most times in a row that a bucket has been held back for its old pointers, although each
    /// pass of garbage collection should leave none of them (G2).
    pub longest_hold: u32,
}

impl<E: Env> CachedVolume<E> {
    /// Shows the memory of the volume at this moment.
    pub fn inspect(&self) -> VolumeView {
        let mut copies = Vec::new();
        let all = SectorRange::new(Sector(0), self.backing.limits().sectors);
        self.index.each_loaded_extent(self.inode(), all, |extent| {
            copies.push(CachedCopy {
                range: extent.range,
                at: extent.pointer.offset,
                state: if extent.dirty { CopyState::Dirty } else { CopyState::Clean },
            });
        });
        copies.extend(self.coherence.copies().into_iter().map(|(range, pointer)| CachedCopy {
            range,
            at: pointer.offset,
            state: CopyState::Unpublished,
        }));
        // Places that the cache device may have lost are served to nobody.
        copies.retain(|copy: &CachedCopy| {
            !self.context.cache.is_lost(SectorRange::new(copy.at, copy.range.sectors()))
        });
        let in_flight =
            self.coherence.inflight.entries().into_iter().map(|(kind, range, backing_write)| {
                match kind {
                    Kind::Fill => InFlightEntry::Fill(range),
                    Kind::Write if backing_write => InFlightEntry::BackingWrite(range),
                    Kind::Write => InFlightEntry::Write(range),
                    Kind::Writeback => InFlightEntry::Writeback(range),
                }
            });
        VolumeView {
            uses_cache: self.lifecycle.uses_cache(),
            copies,
            in_flight: in_flight.collect(),
            unflushed: self.coherence.unflushed(),
            suspect: self.coherence.suspects(),
        }
    }
}
