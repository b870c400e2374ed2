//! Flash-only volumes: their data is in the cache and nowhere else (docs/internals/coherence.md,
//! rules Y1 to Y3).
//!
//! There is no backing device, so nothing goes past the cache, nothing is clean, and nothing is
//! written back or evicted. What has no extent reads as zeroes. Room is taken when a sector is
//! first written, and given back by a discard.
//!
//! | module | holds |
//! |---|---|
//! | here | the parts of a volume, its gate, its size |
//! | [`client_calls`] | the calls of frontends |
//! | [`read`] | reads, and the status of ranges |
//! | [`write`] | writes, and the room that they get (N6) |
//! | [`exported`] | a volume of either kind, for frontends that serve both |
//! | [`clear`] | discards and writes of zeroes: extents go |

mod clear;
mod client_calls;
pub(crate) mod exported;
mod read;
mod write;

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::{Env, SectorRange, VolumeError, VolumeInfo};
use ubcache_format::{Inode, SECTOR_BYTES, Uuid};

use crate::alloc::allocator::Allocator;
use crate::coherence::in_flight_table::InFlight;
use crate::context::Context;
use crate::gc::Gc;
use crate::index::Index;
use crate::journal::Journal;
use crate::stats::FlashStatus;
use crate::stats::requests::RequestCounts;
use crate::volume::tickets::{Request, Requests};
use crate::write_turns::Turns;

/// Parts of a set that a flash-only volume uses.
pub(crate) struct FlashCore<E: Env> {
    pub context: Context<E>,
    pub journal: Rc<Journal<E>>,
    pub allocator: Rc<Allocator<E>>,
    pub index: Rc<Index<E>>,
    pub gc: Rc<Gc<E>>,
}

/// A flash-only volume as the volume table has it, and as clients see it.
pub(crate) struct FlashIdentity {
    pub inode: Inode,
    pub uuid: Uuid,
    pub name: String,
    pub sectors: u64,
    pub read_only: bool,
}

/// A flash-only volume of a running set.
pub struct FlashVolume<E: Env> {
    context: Context<E>,
    journal: Rc<Journal<E>>,
    allocator: Rc<Allocator<E>>,
    index: Rc<Index<E>>,
    gc: Rc<Gc<E>>,
    inode: Inode,
    uuid: Uuid,
    info: VolumeInfo,
    sectors: Cell<u64>,
    table: InFlight,
    turns: Turns,
    requests: Requests,
    gate: Cell<Gate>,
    counts: RequestCounts,
    /// Writes that were refused for want of room.
    refused: Cell<u64>,
}

/// Admission of requests.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Gate {
    Open,
    /// Requests wait.
    Paused,
    /// The volume has ended.
    Closed,
}

/// No request is under way. Dropped, those that wait go on, unless the volume has ended.
#[must_use = "requests go on when this is dropped"]
pub(crate) struct FlashPause<'a, E: Env> {
    volume: &'a FlashVolume<E>,
}

impl<E: Env> Drop for FlashPause<'_, E> {
    fn drop(&mut self) {
        if self.volume.gate.get() == Gate::Paused {
            self.volume.gate.set(Gate::Open);
        }
        self.volume.requests.resumed.notify_all();
    }
}

impl<E: Env> FlashVolume<E> {
    pub(crate) fn new(core: FlashCore<E>, identity: FlashIdentity) -> FlashVolume<E> {
        let FlashCore { context, journal, allocator, index, gc } = core;
        let FlashIdentity { inode, uuid, name, sectors, read_only } = identity;
        let block = context.geometry.block_bytes() as u32;
        let block = block.max(context.cache.limits().logical_block_bytes);
        let preferred_bytes = block.max(4096);
        let info = VolumeInfo { name, sectors: 0, block_bytes: block, preferred_bytes, read_only };
        let table = InFlight::new(context.rules);
        let volume = FlashVolume {
            context,
            journal,
            allocator,
            index,
            gc,
            inode,
            uuid,
            info,
            sectors: Cell::default(),
            table,
            turns: Turns::default(),
            requests: Requests::default(),
            gate: Cell::new(Gate::Open),
            counts: RequestCounts::default(),
            refused: Cell::default(),
        };
        volume.set_sectors(sectors);
        volume
    }

    /// Its size from now on, in whole blocks.
    pub(crate) fn set_sectors(&self, sectors: u64) {
        self.sectors.set(sectors / self.block_sectors() * self.block_sectors());
    }

    /// UUID of the volume.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Number of the volume in the volume table.
    pub(crate) fn inode(&self) -> Inode {
        self.inode
    }

    /// Size, data and counters.
    pub fn status(&self) -> FlashStatus {
        FlashStatus {
            name: self.info.name.clone(),
            uuid: self.uuid,
            size_bytes: self.sectors.get() * SECTOR_BYTES,
            used_bytes: self.index.dirty_sectors(self.inode) * SECTOR_BYTES,
            refused_writes: self.refused.get(),
            requests: self.counts.status(),
        }
    }

    /// The smallest unit of I/O in sectors.
    fn block_sectors(&self) -> u64 {
        u64::from(self.info.block_bytes) / SECTOR_BYTES
    }

    /// Entries of the in-flight table.
    pub(crate) fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// Begins a request; waits while the volume is paused.
    async fn begin(&self) -> Result<Request<'_>, VolumeError> {
        while self.gate.get() == Gate::Paused {
            self.requests.resumed.notified().await;
        }
        if self.gate.get() == Gate::Closed {
            return Err(VolumeError::Unavailable("the volume has been removed".to_owned()));
        }
        if self.context.is_ending() {
            return Err(VolumeError::Unavailable("the cache set is being stopped".to_owned()));
        }
        Ok(self.requests.begin())
    }

    async fn begin_write(&self) -> Result<Request<'_>, VolumeError> {
        if self.info.read_only {
            return Err(VolumeError::ReadOnly);
        }
        self.begin().await
    }

    fn check(&self, range: SectorRange) -> Result<(), VolumeError> {
        let (block, sectors) = (self.block_sectors(), self.sectors.get());
        let aligned = range.start.0.is_multiple_of(block) && range.end.0.is_multiple_of(block);
        match range.end.0 <= sectors && !range.is_empty() && aligned {
            true => Ok(()),
            false => {
                let block_bytes = self.info.block_bytes;
                Err(VolumeError::BadRange { range, sectors, block_bytes })
            }
        }
    }

    /// Keeps new requests waiting, and waits for those under way.
    pub(crate) async fn pause(&self) -> FlashPause<'_, E> {
        if self.gate.get() == Gate::Open {
            self.gate.set(Gate::Paused);
        }
        let pause = FlashPause { volume: self };
        self.requests.end().await;
        pause
    }

    /// Ends the volume: requests under way complete, others are refused.
    pub(crate) async fn close(&self) {
        self.gate.set(Gate::Closed);
        self.requests.resumed.notify_all();
        self.requests.end().await;
    }

    /// Waits for the requests that are under way in a set that ends.
    pub(crate) async fn ends(&self) {
        self.requests.end().await;
    }
}
