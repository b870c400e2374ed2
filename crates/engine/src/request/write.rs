//! Writes of every mode, and zeroes.

use ubcache_env::local::join;
use ubcache_env::{
    Durability, Env, IntervalSet, IoError, IoResult, IoVec, Nanos, Sector, SectorRange, StreamId,
    VolumeError,
};
use ubcache_format::JournalSeq;

use super::cache_io::place_pieces;
use crate::alloc::open_buckets::{Piece, Pieces};
use crate::bypass::may_cache::Access;
use crate::coherence::WriteEnd;
use crate::coherence::in_flight_table::Ticket;
use crate::errors::EngineError;
use crate::index::extent::removal_records;
use crate::journal::reservation::Reservation;
use crate::replacement::data_class::Class;
use crate::rules::Rule;
use crate::stats::histogram::Taken;
use crate::stats::requests::{BypassReason, Path};
use crate::stats::reuse::Use;
use crate::volume::CachedVolume;

/// New content of a write's range.
#[derive(Clone)]
pub(crate) enum Payload {
    /// Immutable (T0), however often it is written.
    Data(IoVec),
    Zeroes {
        /// The backing device may give the room back.
        unmap: bool,
    },
    /// Not copied first, as T0 demands.
    #[cfg(feature = "mutants")]
    Foreign(std::rc::Rc<dyn ubcache_env::ForeignMemory>),
}

impl Payload {
    fn data(&self, range: SectorRange) -> IoVec {
        match self {
            Payload::Data(data) => data.clone(),
            Payload::Zeroes { .. } => IoVec::zeroes(range.bytes() as usize),
            #[cfg(feature = "mutants")]
            Payload::Foreign(memory) => memory.copy().into(),
        }
    }
}

/// Outcome of writing to the cache.
pub(crate) enum ToCache {
    Done,
    /// No room, or the cache device failed: the backing device has to take it.
    Refused,
    Failed(VolumeError),
}

/// A long write over dirty data is split into no more parts than this; beyond it the parts are of
/// one length.
const SPLIT_PARTS_MAX: usize = 64;

impl<E: Env> CachedVolume<E> {
    /// A client's write, which began at `started`. Enters the in-flight table before it does
    /// anything else (W1, K1). One of zeroes is counted by its caller: it is a part of a request.
    pub(crate) async fn write_keys(
        &self,
        (stream, started): (StreamId, Nanos),
        range: SectorRange,
        payload: Payload,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let is_data = payload.is_data();
        if !self.lifecycle.uses_cache() {
            // T5: who writes a part of a block looks for it in the table.
            let _ticket = self.coherence.inflight.enter_write(range);
            let done = self.write_past(range, &payload, fua).await;
            if is_data {
                let (path, reason) = (Path::BypassWrite, Some(BypassReason::NoCache));
                self.request_ended(path, reason, range.bytes(), started);
            }
            return done;
        }
        let (ticket, doomed) = self.coherence.inflight.enter_write(range);
        if doomed > 0 {
            self.count(|counters| counters.fills_doomed += doomed);
        }
        let (bypass, in_use) = self.decide_bypass(started, stream, range, Access::Write);
        if bypass.is_none() && is_data && self.wants_writeback(fua, in_use) {
            if let Some(done) = self.end_in_cache(range, &payload, fua).await {
                let taken = Taken::new(self.context.env.now().since(started));
                self.counts.ended(Path::WritebackWrite, range.bytes(), taken);
                self.context.note_use(self.inode(), range, Use::Write);
                return done;
            }
            self.context.env.mark("writeback_degraded");
        }
        let past = bypass.is_some() || !is_data;
        let done = self.write_through(ticket, range, payload, fua, past).await;
        self.context.note_use(self.inode(), range, if past { Use::Drop } else { Use::Write });
        if is_data {
            let path = if past { Path::BypassWrite } else { Path::WritethroughWrite };
            self.request_ended(path, bypass, range.bytes(), started);
        }
        done
    }

    /// [`CachedVolume::write_keys`] for rare kinds of writes. With one more place that calls it, it
    /// is no longer compiled into its callers, and costs a common write a hundred instructions.
    pub(crate) async fn write_rare(
        &self,
        client: (StreamId, Nanos),
        range: SectorRange,
        payload: Payload,
        fua: bool,
    ) -> Result<(), VolumeError> {
        Box::pin(self.write_keys(client, range, payload, fua)).await
    }

    /// Tries to end a request in the cache. None: the cache refused it.
    async fn end_in_cache(
        &self,
        range: SectorRange,
        payload: &Payload,
        fua: bool,
    ) -> Option<Result<(), VolumeError>> {
        match self.write_to_cache(range, payload, fua).await {
            ToCache::Done => Some(Ok(())),
            ToCache::Failed(error) => Some(Err(error)),
            ToCache::Refused => None,
        }
    }

    /// Bypass and writethrough: W1 to W6.
    async fn write_through(
        &self,
        ticket: Ticket,
        range: SectorRange,
        payload: Payload,
        fua: bool,
        bypass: bool,
    ) -> Result<(), VolumeError> {
        #[cfg(feature = "mutants")]
        let mut before = Vec::new();
        // B6: the backing device does not take what is dirty here.
        let mut refused = false;
        let durable_first = loop {
            let records = removal_records(range);
            #[cfg(feature = "mutants")]
            let records = self.records_with_dirty(records);
            let room = match self.index.prepare_removal(self.inode(), range, records).await {
                Ok(room) => room,
                Err(error) => return self.write_without_cache(range, &payload, fua, error).await,
            };
            // W2, one step: decide.
            let keeps_dirty = self.context.keeps(Rule::W2KeepsDirty);
            if !(keeps_dirty && self.index.has_dirty(self.inode(), range)) {
                #[cfg(feature = "mutants")]
                if !self.context.keeps(Rule::W5RemovalStands) {
                    before = self.index.live_extents(self.inode(), range).into_vec();
                }
                break self.remove_clean(&ticket, range, room);
            }
            drop(room);
            if self.leaves_writeback() && !refused {
                self.context.env.mark("written_back_for_write");
                refused = self.clean_range(range).await.is_err();
                continue;
            }
            if bypass && range.sectors() > self.context.tuning.split_above {
                let parts = self.split_at_dirty(range).await;
                if parts.len() > 1 {
                    // The whole stays in the table: between two parts as well it is under way (T5).
                    let done = Box::pin(self.write_parts(range, parts, &payload, fua)).await;
                    drop(ticket);
                    return done;
                }
            }
            self.context.env.mark("bypass_over_dirty");
            if let Some(done) = self.end_in_cache(range, &payload, fua).await {
                return done;
            }
            // No room for it: clean the range first, then decide again.
            self.context.env.mark("cleaned_for_write");
            self.clean_range(range).await?;
        };
        if let Some(seq) = durable_first
            && let Err(error) = self.wait_for_invalidation(seq).await
            && self.context.keeps(Rule::W3FailureNotSubmitted)
        {
            // W3: the removal in memory stands, the request does not go on.
            return self.write_without_cache(range, &payload, fua, error).await;
        }
        // W4; the copy of a writethrough goes to a fresh place meanwhile, named by nobody yet.
        let data = payload.data_if_any();
        let copy = async {
            let data = data.filter(|_| !bypass)?;
            let pieces =
                self.allocator.try_allocate(Class::Clean, range.sectors(), self.block_sectors())?;
            let pieces =
                self.write_pieces(&pieces, data, Durability::Volatile).await.then_some(pieces)?;
            #[cfg(feature = "mutants")]
            if !self.context.keeps(Rule::W5CopyAfterCompletion) {
                self.keep_copy(range, &pieces);
                return None;
            }
            Some(pieces)
        };
        let write = self.write_backing(range, &payload, fua);
        #[cfg(feature = "mutants")]
        let write = self.with_late_removal(range, write);
        let (result, copy) = join(write, copy).await;
        if result.is_err() {
            self.context.env.mark("backing_write_failed");
        }
        #[cfg(feature = "mutants")]
        if result.is_err() && !self.context.keeps(Rule::W5RemovalStands) {
            self.restore_removed(before).await;
        }
        // W5, one step.
        self.settle_backing_write(ticket, range, &result, copy);
        let zeroes = fua && !payload.is_data() && self.context.keeps(Rule::F3ZeroesFlushed);
        if result.is_ok() && zeroes {
            self.flush_backing().await.map_err(VolumeError::Io)?;
            self.nothing_was_lost(range)?;
        }
        result.map_err(VolumeError::Io)
    }

    /// W2: the dirty parts of a range and what is between them, so that a dirty sector or two do
    /// not bring all of a long write to the cache. What becomes dirty later is found when each part
    /// is decided.
    async fn split_at_dirty(&self, range: SectorRange) -> Vec<SectorRange> {
        if self.index.load_over(self.inode(), range).await.is_err() {
            return vec![range];
        }
        let block = self.block_sectors();
        let up = |sector: Sector| range.start + (sector - range.start).next_multiple_of(block);
        let down = |sector: Sector| range.start + (sector - range.start) / block * block;
        let mut dirty = IntervalSet::default();
        for extent in
            self.index.live_extents(self.inode(), range).iter().filter(|extent| extent.dirty)
        {
            let part = extent.range.intersect(&range);
            dirty.insert(SectorRange::from_bounds(down(part.start), up(part.end)));
        }
        let mut parts = dirty.gaps(range);
        if parts.len() + dirty.intervals() > SPLIT_PARTS_MAX {
            let length = self.context.tuning.split_above;
            let starts = (0..range.sectors()).step_by(length as usize);
            return starts
                .map(|at| SectorRange::new(range.start + at, length).intersect(&range))
                .collect();
        }
        parts.extend(dirty.iter());
        parts.sort_unstable_by_key(|part| part.start);
        parts
    }

    /// A write that goes past the cache, as so many of its parts; each is a write of its own.
    async fn write_parts(
        &self,
        range: SectorRange,
        parts: Vec<SectorRange>,
        payload: &Payload,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.context.env.mark("split_at_dirty");
        let whole = payload.data_if_any();
        for part in parts {
            let piece = match &whole {
                Some(data) => {
                    Payload::Data(data.cut_sectors(part.start - range.start, part.sectors()))
                }
                None => payload.clone(),
            };
            let (ticket, doomed) = self.coherence.inflight.enter_write(part);
            self.count(|counters| counters.fills_doomed += doomed);
            self.write_through(ticket, part, piece, fua, true).await?;
        }
        Ok(())
    }

    /// W2 over a range without dirty data: what is cached there goes, and the backing write may
    /// land from now on. Says which record has to be durable before it is submitted.
    fn remove_clean(
        &self,
        ticket: &Ticket,
        range: SectorRange,
        mut room: Reservation<'_, E>,
    ) -> Option<JournalSeq> {
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::W2RemovesFirst) {
            return None;
        }
        if self.context.keeps(Rule::W2DropsCopies) {
            self.coherence.drop_copies(range);
        }
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::W2KeepsDirty) && self.index.has_dirty(self.inode(), range) {
            self.index.replace(&mut room, self.inode(), range, None);
        }
        let durable_first = self.index.invalidate(&mut room, self.inode(), range);
        #[cfg(feature = "mutants")]
        self.disturb_fills(range);
        if self.context.keeps(Rule::W2NotesWrite) {
            ticket.backing_write_starts();
        }
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::W5UnflushedAtCompletion) {
            self.coherence.note_unflushed(range);
        }
        durable_first.filter(|_| self.context.keeps(Rule::W3WaitsForRemoval))
    }

    pub(super) async fn wait_for_invalidation(&self, seq: JournalSeq) -> Result<(), EngineError> {
        self.context.env.mark("durable_invalidation");
        self.count(|counters| counters.durable_invalidations += 1);
        self.journal.wait(seq).await
    }

    /// W5: the entry leaves, a good copy that nobody doomed is kept. That the range is un-flushed
    /// is known already.
    pub(super) fn settle_backing_write(
        &self,
        ticket: Ticket,
        range: SectorRange,
        result: &IoResult,
        copy: Option<Pieces>,
    ) {
        let doomed = ticket.leave();
        let Some(pieces) = copy else { return };
        if !doomed.is_empty() {
            self.context.env.mark("writethrough_copy_doomed");
            return;
        }
        if result.is_ok() {
            self.keep_copy(range, &pieces);
        }
    }

    /// A copy of what the backing device has is served from now on.
    fn keep_copy(&self, range: SectorRange, pieces: &[Piece]) {
        if !self.has_room_for_copies() || self.is_stopping() || self.context.failure().is_some() {
            return;
        }
        for (part, piece) in place_pieces(range, pieces) {
            self.add_copy(part, piece.pointer, piece.pin.clone());
        }
    }

    /// The write to the backing device itself.
    pub(crate) async fn write_backing(
        &self,
        range: SectorRange,
        payload: &Payload,
        fua: bool,
    ) -> IoResult {
        let failures = self.coherence.failed_flushes();
        let result = match payload {
            Payload::Data(data) => {
                let fua = fua && self.context.keeps(Rule::W4PassesFua);
                let durability = if fua { Durability::Fua } else { Durability::Volatile };
                self.backing.write(range.start, data.clone(), durability).await
            }
            #[cfg(feature = "mutants")]
            Payload::Foreign(_) => {
                let durability = if fua { Durability::Fua } else { Durability::Volatile };
                self.backing.write(range.start, payload.data(range), durability).await
            }
            Payload::Zeroes { unmap } => match self.zero_backing(range, *unmap).await {
                Err(IoError::NotSupported) => {
                    self.backing.write(range.start, payload.data(range), Durability::Volatile).await
                }
                result => result,
            },
        };
        self.backing_write_ended(
            range,
            failures,
            WriteEnd { ok: result.is_ok(), durable: fua && payload.is_data(), overwrites: true },
        );
        if let Err(error) = &result {
            self.note_backing_error(error);
        }
        result
    }

    /// D3: with or without the room of the range, it reads as zeroes.
    async fn zero_backing(&self, range: SectorRange, unmap: bool) -> IoResult {
        #[cfg(feature = "mutants")]
        if unmap && !self.context.keeps(Rule::D3HolesReadAsZeroes) {
            return self.backing.discard(range).await;
        }
        if unmap {
            self.context.env.mark("zeroes_unmapped");
            self.backing.write_holes(range).await
        } else {
            self.backing.write_zeroes(range).await
        }
    }

    /// A write of zeroes was flushed: unless a flush failed in between, which may have cost it.
    pub(crate) fn nothing_was_lost(&self, range: SectorRange) -> Result<(), VolumeError> {
        match self.coherence.is_suspect(range) {
            false => Ok(()),
            true => {
                self.context.env.mark("fua_zeroes_lost");
                Err(VolumeError::Io(IoError::Os(5)))
            }
        }
    }

    /// Writeback: K1 to K3. Does not touch the caller's entry in the table.
    async fn write_to_cache(&self, range: SectorRange, payload: &Payload, fua: bool) -> ToCache {
        if self.context.failure().is_some() {
            return ToCache::Refused;
        }
        // A future of its own costs more than the question.
        if !self.lifecycle.is_marked_dirty()
            && let Err(error) = self.mark_dirty().await
        {
            return ToCache::Failed(error.into());
        }
        let writer = self.dirty_writers.begin();
        // Alone, the data itself can be durable at once, which leaves the journal block nothing to
        // flush. Several writers share a flush.
        let alone = writer.is_alone() && self.context.cache.is_flushed();
        let durability = if fua && alone { Durability::Fua } else { Durability::Volatile };
        let result = self.write_dirty(range, payload, durability).await;
        drop(writer);
        match result {
            Err(refused) => refused,
            Ok(seq) => {
                self.writeback.wake();
                // K3, F3: the journal alone makes it durable.
                match fua && self.context.keeps(Rule::K3FuaWaitsForJournal) {
                    true => match self.journal.wait(seq).await {
                        Ok(()) => ToCache::Done,
                        Err(error) => ToCache::Failed(error.into()),
                    },
                    false => ToCache::Done,
                }
            }
        }
    }

    async fn write_dirty(
        &self,
        range: SectorRange,
        payload: &Payload,
        durability: Durability,
    ) -> Result<JournalSeq, ToCache> {
        let pieces =
            self.allocator.allocate(Class::Dirty, range.sectors(), self.block_sectors()).await;
        let pieces = pieces.ok_or(ToCache::Refused)?;
        let durability = if pieces.len() == 1 { durability } else { Durability::Volatile };
        if durability == Durability::Fua {
            self.context.env.mark("fua_data_written_durably");
        }
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::K1DataBeforeKey) {
            return self.write_key_first(range, &pieces, payload.data(range), durability).await;
        }
        if !self.write_pieces(&pieces, payload.data(range), durability).await {
            return Err(ToCache::Refused);
        }
        self.insert_dirty(range, &pieces).await
    }

    /// K2: the keys of data that is on the cache device.
    pub(crate) async fn insert_dirty(
        &self,
        range: SectorRange,
        pieces: &[Piece],
    ) -> Result<JournalSeq, ToCache> {
        let mut newest = JournalSeq::default();
        let mut at = range.start;
        for some in pieces.chunks(if pieces.len() == 1 { 1 } else { self.journal.step_records() }) {
            let sectors = some.iter().map(|piece| piece.sectors).sum();
            let range = SectorRange::new(at, sectors);
            at = range.end;
            let room = self.index.prepare_change(self.inode(), range, some.len()).await;
            let mut room = room.map_err(|_| ToCache::Refused)?;
            // K2, one step: over whatever is there. A request of many pieces takes several.
            if self.context.keeps(Rule::W2DropsCopies) {
                self.coherence.drop_copies(range);
            }
            #[cfg(feature = "mutants")]
            self.disturb_fills(range);
            for (part, piece) in place_pieces(range, some) {
                newest =
                    self.index.replace(&mut room, self.inode(), part, Some((piece.pointer, true)));
            }
        }
        Ok(newest)
    }
}

impl Payload {
    fn data_if_any(&self) -> Option<IoVec> {
        match self {
            Payload::Data(data) => Some(data.clone()),
            Payload::Zeroes { .. } => None,
            #[cfg(feature = "mutants")]
            Payload::Foreign(memory) => Some(memory.copy().into()),
        }
    }

    pub(super) fn is_data(&self) -> bool {
        !matches!(self, Payload::Zeroes { .. })
    }
}
