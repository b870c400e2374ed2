//! One batch of writeback (B1–B5).

use smallvec::{SmallVec, smallvec};
use ubcache_env::local::join_all;
use ubcache_env::{
    Buf, Durability, Env, IoError, IoResult, IoVec, Sector, SectorRange, VolumeError,
};
use ubcache_format::SECTOR_BYTES;

use super::outcome::Cleaned;
use crate::alloc::bucket_pins::Pin;
use crate::coherence::WriteEnd;
use crate::coherence::in_flight_table::Ticket;
use crate::index::extent::{Extent, FIRST, Position};
use crate::journal::reservation::Reservation;
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// One write to the backing device takes at most this many sectors, unless the device is better
/// at larger ones.
const RUN_SECTORS_MAX: u64 = 2048;
/// And never more than this.
const RUN_SECTORS_LIMIT: u64 = 8192;

/// Neighbouring dirty extents that go to the backing device in one write.
struct Run {
    range: SectorRange,
    extents: Vec<Extent>,
    _ticket: Ticket,
    _pins: Vec<Pin>,
}

/// Treatment of the backing device below dirty data.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Below {
    /// The data is written there, and the keys turn clean (B3, B5).
    Written,
    /// The range is zeroed and discarded, and the keys go (D1).
    Discarded,
}

impl<E: Env> CachedVolume<E> {
    /// Cleans whatever is dirty in the range, for a write that the cache has no room for.
    pub(crate) async fn clean_range(&self, range: SectorRange) -> Result<(), VolumeError> {
        self.index.load_over(self.inode(), range).await.map_err(VolumeError::from)?;
        let dirty: Vec<Extent> = self
            .index
            .live_extents(self.inode(), self.index.with_whole_keys(self.inode(), range))
            .into_iter()
            .filter(|extent| extent.dirty)
            .collect();
        let cleaned = self.write_back(dirty, Below::Written).await;
        if cleaned.failed > 0 {
            let what = "dirty data could not be written to the backing device".to_owned();
            return Err(VolumeError::Unavailable(what));
        }
        if let Some(busy) = cleaned.busy {
            self.context.env.mark("cleaning_waits");
            self.coherence.inflight.lets_writeback_in(busy).await;
        }
        Ok(())
    }

    /// Writes extents to the backing device, or discards them there, and marks clean, or drops,
    /// what is still the same.
    pub(crate) async fn write_back(&self, extents: Vec<Extent>, below: Below) -> Cleaned {
        let mut cleaned = Cleaned::default();
        let mut holds = Vec::new();
        for extent in &extents {
            match self.index.hold_over(self.inode(), extent.range).await {
                Ok(more) => holds.extend(more),
                Err(_) => cleaned.failed += 1,
            }
        }
        let runs = self.begin_runs(extents, below, &mut cleaned);
        drop(holds);
        if !runs.is_empty() {
            self.clean_runs(runs, below, &mut cleaned).await;
            self.writeback.progresses();
        }
        cleaned
    }

    /// B2 to B5.
    async fn clean_runs(&self, runs: Vec<Run>, below: Below, cleaned: &mut Cleaned) {
        let failures = self.coherence.failed_flushes();
        // B2: no crash may bring back what these keys replaced, once the new data is down there.
        let durable =
            !self.context.keeps(Rule::B2DirtyRecordDurable) || self.journal.flush().await.is_ok();
        // B3
        let written = match durable {
            true => join_all(runs.iter().map(|run| self.bring_down(run, below))).await,
            false => vec![false; runs.len()],
        };
        // B4: one flush for the batch. A flush that failed meanwhile, even somebody else's, may
        // have cost what was written here.
        let early = below == Below::Discarded && !self.context.keeps(Rule::D1FlushBeforeDrop);
        let flushed = written.contains(&true)
            && (early
                || !self.context.keeps(Rule::B4FlushBeforeClean)
                || (self.flush_backing().await.is_ok()
                    && self.coherence.failed_flushes() == failures)
                || !self.context.keeps(Rule::B4FailedFlushStaysDirty));
        for (run, ok) in runs.into_iter().zip(written) {
            if !(ok && flushed) {
                cleaned.failed += 1;
                self.count(|counters| counters.writeback_keys_failed += run.extents.len() as u64);
                continue;
            }
            // An extent may have been cut since. What there is no record for stays dirty until the
            // next time.
            let records = (2 * run.extents.len()).min(self.journal.step_records());
            // B5, one step.
            let prepared = match below {
                Below::Written => {
                    self.index.prepare_removal(self.inode(), run.range, records).await
                }
                // A discard may be ignored.
                Below::Discarded => {
                    self.index.prepare_change(self.inode(), run.range, records).await
                }
            };
            match prepared {
                Ok(mut room) => {
                    let cleaning = run
                        .extents
                        .iter()
                        .map(|extent| self.not_dirty_any_more(extent, below, &mut room));
                    cleaned.sectors += cleaning.sum::<u64>();
                }
                Err(_) => cleaned.failed += 1,
            }
        }
    }

    /// B1, one step: what is still current and not busy enters the table, in runs.
    fn begin_runs(&self, extents: Vec<Extent>, below: Below, cleaned: &mut Cleaned) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        // They become clean in one step.
        let extents_max = self.journal.step_records();
        let unit = u64::from(self.backing.shape().optimal_bytes) / SECTOR_BYTES;
        let sectors_max = unit.clamp(RUN_SECTORS_MAX, RUN_SECTORS_LIMIT);
        // Objects are written as a whole, where a run has all of one.
        let one_unit = |start: Sector, end: Sector| {
            sectors_max == RUN_SECTORS_MAX || start.0 / sectors_max == (end.0 - 1) / sectors_max
        };
        let mut groups: Vec<Vec<Extent>> = Vec::new();
        for extent in extents {
            let loaded = self.index.is_loaded(self.inode(), extent.range);
            if !loaded || !self.index.is_current(&extent) {
                self.context.env.mark("writeback_key_gone");
                continue;
            }
            match groups.last_mut() {
                Some(group)
                    if group.last().is_some_and(|last| last.range.end == extent.range.start)
                        && group.len() < extents_max
                        && extent.range.end - group[0].range.start <= sectors_max
                        && one_unit(group[0].range.start, extent.range.end) =>
                {
                    self.context.env.mark("writeback_run");
                    group.push(extent);
                }
                _ => groups.push(vec![extent]),
            }
        }
        for extents in groups {
            let range = SectorRange::from_bounds(
                extents[0].range.start,
                extents.last().expect("a group is not empty").range.end,
            );
            // R5
            let kept_away = below == Below::Discarded && self.coherence.zeroes.are_kept_away(range);
            let ticket =
                if kept_away { None } else { self.coherence.inflight.enter_writeback(range) };
            let Some(ticket) = ticket else {
                self.context.env.mark("writeback_waits_for_backing_write");
                cleaned.busy = Some(range);
                continue;
            };
            let buckets = self.allocator.buckets();
            let pin = |extent: &Extent| {
                buckets.pins().pin(extent.pointer.bucket(self.context.geometry.bucket_sectors))
            };
            let pins = extents.iter().map(pin).collect();
            runs.push(Run { range, extents, _ticket: ticket, _pins: pins });
        }
        runs
    }

    /// B3. From its completion on the range is un-flushed.
    async fn bring_down(&self, run: &Run, below: Below) -> bool {
        match below {
            Below::Written => {
                let started = self.context.env.now();
                let done = self.copy_run(run).await;
                self.counts.dirty_written(self.context.env.now().since(started));
                done
            }
            Below::Discarded => {
                let failures = self.coherence.failed_flushes();
                // A device may keep what it is asked to discard, and that is older data. Zeroes it
                // keeps.
                self.coherence.zeroes.submitted(run.range);
                let mut result = Ok(());
                if self.context.keeps(Rule::D1ZeroesFirst) {
                    result = self.backing.write_zeroes(run.range).await;
                }
                if result.is_ok() {
                    result = self.backing.discard(run.range).await;
                }
                self.backing_write_ended(
                    run.range,
                    failures,
                    WriteEnd { ok: result.is_ok(), durable: false, overwrites: true },
                );
                if let Err(error) = &result
                    && *error != IoError::NotSupported
                {
                    self.note_backing_error(error);
                }
                result.is_ok()
            }
        }
    }

    /// Cache to backing device.
    async fn copy_run(&self, run: &Run) -> bool {
        let read = |extent: &Extent| {
            self.context.cache.read(extent.pointer.offset, extent.range.sectors())
        };
        let read: SmallVec<[IoResult<Buf>; 1]> = match run.extents.as_slice() {
            [extent] => smallvec![read(extent).await],
            extents => join_all(extents.iter().map(read)).await.into(),
        };
        let mut data = IoVec::new();
        for result in read {
            match result {
                Ok(buf) => data.push(buf.freeze()),
                Err(error) => {
                    self.context.env.mark("writeback_read_failed");
                    self.context.note_cache_error("reading dirty data", &error);
                    self.writeback.cannot_read(matches!(error, IoError::NoMemory));
                    return false;
                }
            }
        }
        let failures = self.coherence.failed_flushes();
        let result = self.backing.write(run.range.start, data, Durability::Volatile).await;
        self.backing_write_ended(
            run.range,
            failures,
            WriteEnd { ok: result.is_ok(), durable: false, overwrites: true },
        );
        if let Err(error) = &result {
            self.context.env.mark("writeback_write_failed");
            self.note_backing_error(error);
        }
        result.is_ok() || !self.context.keeps(Rule::B3FailureStaysDirty)
    }

    /// B5 for one extent: the parts that are still the dirty key that was read, or discarded,
    /// become clean, or go.
    fn not_dirty_any_more(
        &self,
        written: &Extent,
        below: Below,
        room: &mut Reservation<'_, E>,
    ) -> u64 {
        let same: Vec<Extent> = self
            .index
            .live_extents(self.inode(), written.range)
            .into_iter()
            .filter(|found| {
                let place = written.pointer.advance(found.range.start - written.range.start);
                found.dirty && (found.pointer == place || !self.context.keeps(Rule::B5SameKeyOnly))
            })
            .take(room.left())
            .collect();
        let sectors: u64 = same.iter().map(|extent| extent.range.sectors()).sum();
        for extent in same {
            let clean = (below == Below::Written).then_some((extent.pointer, false));
            self.index.replace(room, self.inode(), extent.range, clean);
        }
        let whole = sectors == written.range.sectors();
        if !whole {
            self.context.env.mark("writeback_overtaken");
        }
        if below == Below::Discarded {
            return sectors;
        }
        self.count(|counters| {
            *if whole {
                &mut counters.writeback_keys_done
            } else {
                &mut counters.writeback_keys_failed
            } += 1;
        });
        sectors
    }

    /// Position at which the scan of a volume starts.
    pub(crate) fn scan_start(&self) -> Position {
        if self.inode().0 == 0 { FIRST } else { (self.inode(), ubcache_env::Sector(0)) }
    }
}
