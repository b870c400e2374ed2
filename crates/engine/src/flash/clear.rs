//! Discards and writes of zeroes: extents go, and what has none reads as zeroes (Y1).

use ubcache_env::{Env, IoVec, Sector, SectorRange, VolumeError};
use ubcache_format::JournalSeq;

use super::FlashVolume;
use super::client_calls::steps;
use super::write::change_error;
use crate::index::extent::removal_records;

/// Clearing works on at most so many sectors at once.
const STEP_SECTORS: u64 = 16 << 11;
/// And a write of the zeroes that a full leaf takes no hole for on so many.
const WRITE_SECTORS: u64 = 2 << 11;

/// A part of a range was cleared, in one step.
struct Cleared {
    range: SectorRange,
    /// The record that says so.
    seq: JournalSeq,
}

impl<E: Env> FlashVolume<E> {
    /// Gives the room of the range back. Parts of extents may stay in a full leaf (N4).
    pub(super) async fn discard_range(
        &self,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let (_ticket, _) = self.table.enter_write(range);
        let mut newest = JournalSeq::default();
        for step in steps(range, STEP_SECTORS) {
            newest = newest.max(self.clear(step).await?.seq);
        }
        self.durable_if(fua, newest).await
    }

    /// Makes the range read as zeroes.
    pub(super) async fn zero_range(
        &self,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let (_ticket, _) = self.table.enter_write(range);
        let mut newest = JournalSeq::default();
        for step in steps(range, STEP_SECTORS) {
            let cleared = self.clear(step).await?;
            newest = newest.max(cleared.seq);
            let before = SectorRange::from_bounds(step.start, cleared.range.start);
            let after = SectorRange::from_bounds(cleared.range.end, step.end);
            for part in [before, after] {
                for part in steps(part, WRITE_SECTORS) {
                    self.context.env.mark("flash_zeroes_written");
                    let zeroes = IoVec::zeroes(part.bytes() as usize);
                    newest = newest.max(self.write_step(part, zeroes).await?);
                }
            }
        }
        self.durable_if(fua, newest).await
    }

    /// Removes what there is of the range: in a full leaf whole keys only, so that it gets no more
    /// of them.
    async fn clear(&self, range: SectorRange) -> Result<Cleared, VolumeError> {
        self.is_working()?;
        let records = removal_records(range);
        let room = self.index.prepare_removal(self.inode, range, records).await;
        let mut room = room.map_err(change_error)?;
        // One step.
        let range = self.index.within_whole_keys(self.inode, range);
        let before = self.index.dirty_sectors(self.inode);
        if !range.is_empty() && !self.index.live_extents(self.inode, range).is_empty() {
            self.context.env.mark("flash_data_discarded");
            self.index.replace(&mut room, self.inode, range, None);
        }
        drop(room);
        // The removal of somebody else, a moment ago, may not be durable either.
        let seq = self.index.newest_dirty(self.inode);
        self.gc.loosened(before - self.index.dirty_sectors(self.inode));
        if self.allocator.buckets().is_flash_short() {
            self.gc.compact_if_worth();
        }
        Ok(Cleared { range, seq })
    }

    /// Y2: removes everything from a sector on, durably; says how many sectors that were. No
    /// request is under way.
    pub(crate) async fn clear_from(&self, from: Sector) -> Result<u64, VolumeError> {
        let before = self.index.dirty_sectors(self.inode);
        let mut at = Some((self.inode, from));
        while let Some(from) = at {
            let extents;
            (extents, at) = self.index.extents_of_leaf(from).await?;
            for extent in extents {
                self.zero_range(extent.range, false).await?;
            }
        }
        self.journal.flush().await?;
        Ok(before - self.index.dirty_sectors(self.inode))
    }
}
