//! Discards (D1).
//!
//! Clean data goes as under a bypass write. Dirty data goes as in a writeback that discards instead
//! of writing: the key stays until the backing device has discarded its range durably, so that the
//! older data below it is never seen.

use ubcache_env::{Env, IntervalSet, IoError, SectorRange, StreamId, VolumeError};
use ubcache_format::JournalSeq;

use crate::bypass::may_cache::Access;
use crate::coherence::WriteEnd;
use crate::coherence::in_flight_table::Ticket;
use crate::index::extent::Extent;
use crate::journal::reservation::Reservation;
use crate::rules::Rule;
use crate::volume::CachedVolume;
use crate::writeback::batch::Below;

/// Parts of a discard that are many: dozens of steps.
const MANY_PARTS: usize = 1000;

/// Part of a discard that one step decides.
struct Step {
    range: SectorRange,
    /// Parts without dirty data, each with its entry in the table.
    clean: Vec<(SectorRange, Ticket)>,
    /// The record that has to be durable before these are submitted.
    durable_first: Option<JournalSeq>,
    dirty: Vec<Extent>,
}

impl<E: Env> CachedVolume<E> {
    /// D1. May be ignored, in parts or as a whole; when this returns it is settled.
    pub(crate) async fn discard_keys(
        &self,
        stream: StreamId,
        range: SectorRange,
    ) -> Result<(), VolumeError> {
        // D2: a device says that it can discard only if what it discarded reads the same every
        // time.
        if !self.backing.limits().discard && self.context.keeps(Rule::D2DeterminedOnly) {
            return Ok(());
        }
        if !self.lifecycle.uses_cache() {
            let _ticket = self.coherence.inflight.enter_write(range);
            return self.backing.discard(range).await.map_err(VolumeError::Io);
        }
        let (_whole, doomed) = self.coherence.inflight.enter_write(range);
        self.count(|counters| counters.fills_doomed += doomed);
        self.decide_bypass(self.context.env.now(), stream, range, Access::Discard);
        let mut result = Ok(());
        let mut rest = range;
        let mut parts = 0;
        while !rest.is_empty() {
            let records = self.journal.step_records();
            let Ok(room) = self.index.prepare_change(self.inode(), rest, records).await else {
                break;
            };
            let step = self.decide_discard(rest, room);
            if step.range.end < rest.end {
                self.context.env.mark("discard_in_steps");
            }
            rest = SectorRange::from_bounds(step.range.end, rest.end);
            let dirty = step.dirty.len();
            parts += dirty + step.clean.len();
            result = result.and(self.discard_clean(step.clean, step.durable_first).await);
            if dirty > 0 {
                self.context.env.mark("dirty_data_discarded");
                // An error leaves it dirty, which is what a discard that is ignored leaves.
                self.write_back(step.dirty, Below::Discarded).await;
                self.writeback.wake();
            }
        }
        if parts > MANY_PARTS {
            self.context.env.mark("discard_of_many_parts");
        }
        result
    }

    /// W2, one step: from the front of the range as much as there is room for. Clean parts get
    /// entries of their own.
    fn decide_discard(&self, range: SectorRange, mut room: Reservation<'_, E>) -> Step {
        // No more parts than extents, each with one record: see `LONG_STEP`.
        let (live, range) = self.index.first_live_extents(self.inode(), range, room.left());
        let drops = !self.context.keeps(Rule::D1KeepsDirty);
        let dirty: Vec<Extent> = live.into_iter().filter(|extent| extent.dirty && !drops).collect();
        let mut stays = IntervalSet::default();
        dirty.iter().for_each(|extent| stays.insert(extent.range));
        let mut clean = Vec::new();
        let mut durable_first = None;
        for part in stays.gaps(range) {
            let (ticket, _) = self.coherence.inflight.enter_write(part);
            self.coherence.drop_copies(part);
            #[cfg(feature = "mutants")]
            if drops && self.index.has_dirty(self.inode(), part) {
                durable_first = durable_first.max(Some(self.index.replace(
                    &mut room,
                    self.inode(),
                    part,
                    None,
                )));
            }
            durable_first = durable_first.max(self.index.invalidate(&mut room, self.inode(), part));
            ticket.backing_write_starts();
            clean.push((part, ticket));
        }
        let durable_first = durable_first.filter(|_| self.context.keeps(Rule::D1WaitsForRemoval));
        Step { range, clean, durable_first, dirty }
    }

    /// W3 to W5. If the removal can't be made durable, the backing device is not asked.
    async fn discard_clean(
        &self,
        parts: Vec<(SectorRange, Ticket)>,
        durable_first: Option<JournalSeq>,
    ) -> Result<(), VolumeError> {
        if let Some(seq) = durable_first
            && self.wait_for_invalidation(seq).await.is_err()
        {
            return Ok(());
        }
        let mut result = Ok(());
        for (part, ticket) in parts {
            let failures = self.coherence.failed_flushes();
            let done = self.backing.discard(part).await;
            self.backing_write_ended(
                part,
                failures,
                WriteEnd { ok: done.is_ok(), durable: false, overwrites: false },
            );
            self.settle_backing_write(ticket, part, &done, None);
            // A device that can't discard ignores it.
            if let Err(error) = done
                && error != IoError::NotSupported
            {
                self.note_backing_error(&error);
                result = Err(VolumeError::Io(error));
            }
        }
        result
    }
}
