//! Writes, and the room that they get (N6).

use ubcache_env::local::join_all;
use ubcache_env::{Durability, Env, IoError, IoVec, SectorRange, VolumeError};
use ubcache_format::JournalSeq;

use super::FlashVolume;
use super::client_calls::steps;
use crate::alloc::open_buckets::{Piece, Pieces};
use crate::errors::EngineError;
use crate::replacement::data_class::Class;
use crate::request::cache_io::place_pieces;
use crate::rules::Rule;

/// Longer writes take their room in steps of so many sectors.
const STEP_SECTORS: u64 = 4 << 11;
/// Rounds of the allocator that a write waits for although there is room for it: buckets on their
/// way to be free may be pinned by slow reads.
const PATIENCE: u32 = 64;
/// A bucket of a sparse file on a full file system has no space: another one may have it (N1).
const PLACES_TRIED: u32 = 3;

/// The error that says that there is no room.
pub(super) fn no_room() -> VolumeError {
    const ENOSPC: i32 = 28;
    VolumeError::Io(IoError::Os(ENOSPC))
}

/// A change of the index was refused in a full cache (N4), or can't be made.
pub(super) fn change_error(error: EngineError) -> VolumeError {
    match error {
        EngineError::NoSpace(_) => no_room(),
        error => error.into(),
    }
}

impl<E: Env> FlashVolume<E> {
    /// K1 to K3, whatever the mode of other volumes. What was written before an error stays.
    pub(super) async fn write_range(
        &self,
        range: SectorRange,
        data: &IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let (_ticket, _) = self.table.enter_write(range);
        let mut newest = JournalSeq::default();
        for step in steps(range, STEP_SECTORS) {
            let part = data.cut_sectors(step.start - range.start, step.sectors());
            let written = self.write_step(step, part).await;
            if let Err(error) = &written
                && *error == no_room()
            {
                self.context.env.mark("flash_write_refused");
                self.refused.set(self.refused.get() + 1);
            }
            newest = written?;
        }
        self.durable_if(fua, newest).await
    }

    pub(super) async fn durable_if(
        &self,
        fua: bool,
        newest: JournalSeq,
    ) -> Result<(), VolumeError> {
        if fua && self.context.keeps(Rule::K3FuaWaitsForJournal) {
            self.journal.wait(newest).await?;
        }
        Ok(())
    }

    pub(super) async fn write_step(
        &self,
        range: SectorRange,
        data: IoVec,
    ) -> Result<JournalSeq, VolumeError> {
        self.is_working()?;
        let mut tried = 1;
        let pieces = loop {
            let pieces = self.room_for(range).await?;
            match self.write_pieces(&pieces, &data).await {
                Ok(()) => break pieces,
                Err(error) if error.is_no_space() && tried < PLACES_TRIED => tried += 1,
                Err(error) => return Err(VolumeError::Io(error)),
            }
        };
        self.insert(range, &pieces).await
    }

    /// The set can still change its metadata.
    pub(super) fn is_working(&self) -> Result<(), VolumeError> {
        match self.context.failure() {
            Some(reason) => Err(EngineError::Failed(reason).into()),
            None => Ok(()),
        }
    }

    /// N6: room for the data, or an error at once when the cache has none left for it.
    async fn room_for(&self, range: SectorRange) -> Result<Pieces, VolumeError> {
        self.index.load_over(self.inode, range).await?;
        let mut rounds = 0;
        loop {
            let counted = self.allocator.buckets().is_counted();
            if counted && !self.is_admitted(range) {
                self.gc.compact_if_worth();
                return Err(no_room());
            }
            let (sectors, block) = (range.sectors(), self.block_sectors());
            if let Some(pieces) = self.allocator.try_allocate(Class::Dirty, sectors, block) {
                if self.allocator.buckets().is_flash_short() {
                    self.gc.compact_if_worth();
                }
                return Ok(pieces);
            }
            self.context.env.mark("flash_write_waits");
            let waited = match counted {
                // The buckets that were promised to this start are used up.
                false => self.allocator.until_counted().await,
                true => self.allocator.wait_for_buckets("data").await,
            };
            rounds += 1;
            match waited {
                Ok(()) if rounds < PATIENCE => {}
                Ok(()) => return Err(no_room()),
                Err(error) => return Err(change_error(error)),
            }
        }
    }

    fn is_admitted(&self, range: SectorRange) -> bool {
        let overwrites = self.index.is_loaded(self.inode, range) && {
            let live = self.index.live_extents(self.inode, range);
            live.iter().map(|extent| extent.range.sectors()).sum::<u64>() == range.sectors()
        };
        self.allocator.buckets().admits_flash(range.sectors(), overwrites)
    }

    /// K1: the data to its places; the last block is padded with zeroes.
    async fn write_pieces(&self, pieces: &[Piece], data: &IoVec) -> Result<(), IoError> {
        let block = self.context.geometry.block_bytes() as usize;
        let mut at = 0;
        let writes = pieces.iter().map(|piece| {
            let mut part = data.cut_sectors(at, piece.sectors);
            at += piece.sectors;
            let rest = part.len().next_multiple_of(block) - part.len();
            if rest > 0 {
                part.append(IoVec::zeroes(rest));
            }
            self.context.cache.write(piece.pointer.offset, part, Durability::Volatile)
        });
        let mut result = Ok(());
        for (piece, done) in pieces.iter().zip(join_all(writes).await) {
            if let Err(error) = done {
                self.allocator.note_data_error(piece.pointer, &error);
                result = result.and(Err(error));
            }
        }
        result
    }

    /// K2: the keys of data that is on the cache device.
    async fn insert(
        &self,
        range: SectorRange,
        pieces: &[Piece],
    ) -> Result<JournalSeq, VolumeError> {
        let mut newest = JournalSeq::default();
        let mut at = range.start;
        for some in pieces.chunks(self.journal.step_records()) {
            let sectors = some.iter().map(|piece| piece.sectors).sum();
            let range = SectorRange::new(at, sectors);
            at = range.end;
            let room = self.index.prepare_change(self.inode, range, some.len()).await;
            let mut room = room.map_err(change_error)?;
            let before = self.index.dirty_sectors(self.inode);
            for (part, piece) in place_pieces(range, some) {
                let new = Some((piece.pointer, true));
                newest = self.index.replace(&mut room, self.inode, part, new);
            }
            let added = self.index.dirty_sectors(self.inode) - before;
            self.gc.loosened(sectors.saturating_sub(added));
        }
        Ok(newest)
    }
}
