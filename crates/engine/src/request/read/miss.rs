//! Reads that the cache does not have in one place (R1, R2).

use smallvec::SmallVec;
use ubcache_env::local::join_all;
use ubcache_env::{Env, IoVec, Nanos, Place, SectorRange, Slice, VolumeError};

use super::Hit;
use super::fill_queue::{Fill, FillTicket, Fills};
use crate::index::extent::Extent;
use crate::rules::Rule;
use crate::stats::requests::{BypassReason, Path};
use crate::stats::reuse::Use;
use crate::volume::CachedVolume;

/// A part of a read.
pub(super) enum Part {
    Hit(Hit),
    Miss { range: SectorRange, fill: Option<FillTicket> },
}

impl<E: Env> CachedVolume<E> {
    /// A read that began at `started`.
    pub(crate) async fn read_parts(
        &self,
        range: SectorRange,
        bypass: Option<BypassReason>,
        started: Nanos,
        place: Option<Place>,
    ) -> Result<IoVec, VolumeError> {
        let (missed, result) = self.look_up_and_read(range, bypass.is_some(), place).await;
        if bypass.is_none() {
            self.context.note_use(self.inode(), range, Use::Read);
        } else {
            self.count(|counters| {
                *match missed {
                    false => &mut counters.cache_bypass_hits,
                    true => &mut counters.cache_bypass_misses,
                } += 1;
            });
        }
        let path = match (bypass, missed) {
            (Some(_), _) => Path::BypassRead,
            (None, true) => Path::Miss,
            (None, false) => Path::Hit,
        };
        self.request_ended(path, bypass, range.bytes(), started);
        result
    }

    /// Reads, and returns true with it if something was not in the cache, or if that can't be
    /// known. Counts nothing: the blocks that the write of a part of them reads are no request. Of
    /// a range that is read to a place nothing is returned.
    pub(crate) async fn look_up_and_read(
        &self,
        range: SectorRange,
        bypass: bool,
        place: Option<Place>,
    ) -> (bool, Result<IoVec, VolumeError>) {
        if let Err(error) = self.index.load_for_read(self.inode(), range).await {
            return (true, self.read_without_index(range, error).await);
        }
        let began = self.coherence.zeroes.now();
        let failures = self.coherence.failed_flushes();
        let parts = self.look_up_parts(range, !bypass && !self.is_stopping());
        let missed = parts.iter().any(|part| matches!(part, Part::Miss { .. }));
        if missed {
            self.read_more(range, bypass);
        }
        if let Some(place) = place
            && self.parts_are_read_into(&parts, place).await
        {
            return (missed, Ok(IoVec::new()));
        }
        // R2: all parts at once.
        let mut data = IoVec::new();
        let mut fills = Fills::new();
        let mut failed = None;
        let mut take = |(result, fill): (Result<Slice, VolumeError>, Option<Fill>)| {
            match result {
                Ok(slice) => data.push(slice),
                Err(error) => failed = failed.take().or(Some(error)),
            }
            fills.extend(fill);
        };
        if parts.len() == 1 {
            let part = parts.into_iter().next().expect("there is one");
            take(self.read_part(part).await);
        } else {
            join_all(parts.into_iter().map(|part| self.read_part(part)))
                .await
                .into_iter()
                .for_each(take);
        }
        // The reply does not wait for R3.
        if !fills.is_empty() {
            self.start_fills(fills);
        }
        let overtaken =
            self.coherence.zeroes.since(began, range) || self.is_covered_since(failures, range);
        if missed && overtaken && self.context.keeps(Rule::R5LooksUpAgain) {
            // S2: the memory of a read is held once.
            drop(data);
            return (missed, Box::pin(self.read_again(range)).await);
        }
        match failed {
            Some(error) => (missed, Err(error)),
            None => (missed, Ok(data)),
        }
    }

    /// A read missed: more may be read than what it asks for.
    fn read_more(&self, range: SectorRange, bypass: bool) {
        if self.ahead.is_some() {
            self.read_ahead_of(range);
        }
        if !bypass {
            self.fill_around(range);
        }
    }

    /// R1, one step: looks up, pins the hits, and registers a fill for each miss.
    pub(super) fn look_up_parts(&self, range: SectorRange, fill: bool) -> SmallVec<[Part; 1]> {
        let live = self.index.live_extents(self.inode(), range);
        #[cfg(feature = "mutants")]
        let live = self.with_stale_extents(range, live);
        let mut parts = SmallVec::new();
        let mut at = range.start;
        // Unpublished copies are newer than what the index has.
        let copies = self.coherence.copies_over(range);
        let mut live = live.into_iter().peekable();
        let mut copies = copies.into_iter().peekable();
        while at < range.end {
            while live.peek().is_some_and(|extent| extent.range.end <= at) {
                live.next();
            }
            let next_copy = copies.peek().map_or(range.end, |(part, _)| part.start);
            if next_copy <= at
                && let Some((part, pointer)) = copies.next()
            {
                self.context.env.mark("hit_unpublished_copy");
                let extent = Extent { inode: self.inode(), range: part, dirty: false, pointer };
                parts.push(Part::Hit(self.hit(extent, false)));
                at = part.end;
                continue;
            }
            let rest = SectorRange::from_bounds(at, next_copy);
            match live.peek() {
                Some(extent) if extent.range.start <= at => {
                    let extent = extent.cut(rest);
                    at = extent.range.end;
                    parts.push(Part::Hit(self.hit(extent, true)));
                }
                next => {
                    let end = next.map_or(rest.end, |extent| extent.range.start.min(rest.end));
                    let gap = self.until_piece_edge(SectorRange::from_bounds(at, end));
                    at = gap.end;
                    let fill = if fill { self.register_fill(gap) } else { None };
                    parts.push(Part::Miss { range: gap, fill });
                }
            }
        }
        parts
    }

    pub(super) async fn read_part(&self, part: Part) -> (Result<Slice, VolumeError>, Option<Fill>) {
        match part {
            Part::Hit(hit) => (self.read_hit(hit, self.context.env.now()).await, None),
            Part::Miss { range, fill } => {
                let read = match &self.ahead {
                    None => self.read_backing(range).await,
                    Some(_) => Box::pin(self.read_missing(range)).await,
                };
                match read {
                    Ok(slice) => {
                        let fill = fill.map(|ticket| Fill { range, data: slice.clone(), ticket });
                        (Ok(slice), fill)
                    }
                    Err(error) => (Err(error), None),
                }
            }
        }
    }

    pub(crate) async fn read_backing(&self, range: SectorRange) -> Result<Slice, VolumeError> {
        let now = self.context.env.now();
        match self.backing.read_for_client(now, range.start, range.sectors()).await {
            Ok(buf) => Ok(buf.freeze()),
            Err(error) => {
                self.note_backing_error(&error);
                Err(VolumeError::Io(error))
            }
        }
    }
}
