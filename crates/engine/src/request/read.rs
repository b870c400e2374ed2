//! Reads (R1–R5).

use std::collections::VecDeque;
use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::buf::PAGE_BYTES;
use ubcache_env::local::join_all;
use ubcache_env::{
    Durability, Env, IoError, IoResult, IoVec, Priority, SectorRange, Slice, StreamId, VolumeError,
};
use ubcache_format::{CacheMode, Pointer};

use super::fill::{Fill, FillTicket, Fills};
use crate::alloc::pins::Pin;
use crate::alloc::sectors::Piece;
use crate::bypass::decide::IN_USE_BYPASS_PERCENT;
use crate::errors::EngineError;
use crate::index::extent::{Extent, removal_records};
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Tasks of a volume that write what was missed to the cache, at most.
const FILL_TASKS_MAX: usize = 32;

/// Data in the cache, and what keeps it there.
pub(crate) struct Hit {
    extent: Extent,
    published: bool,
    _pin: Pin,
}

/// A read that does not find all of its data in one place of the cache.
pub(crate) enum OtherRead {
    /// Nobody has looked.
    WithoutCache,
    InParts {
        bypass: bool,
    },
}

/// A part of a read.
enum Part {
    Hit(Hit),
    Miss { range: SectorRange, fill: Option<FillTicket> },
}

impl<E: Env> CachedVolume<E> {
    /// R1 of a read that finds all of its data in one place, as most do: [`Self::read_hit`] is the
    /// rest of it.
    pub(crate) fn begin_read(
        &self,
        stream: StreamId,
        range: SectorRange,
    ) -> Result<Hit, OtherRead> {
        if !self.lifecycle.uses_cache() {
            return Err(OtherRead::WithoutCache);
        }
        let bypass = self.bypasses(stream, range, false, false);
        let hit = self.hit_around(range).ok_or(OtherRead::InParts { bypass })?;
        self.count_read(bypass, false);
        Ok(hit)
    }

    /// Completes a read that is not a hit in one place.
    pub(crate) async fn read_other(
        &self,
        range: SectorRange,
        other: OtherRead,
    ) -> Result<IoVec, VolumeError> {
        match other {
            OtherRead::WithoutCache => self.read_backing(range).await.map(IoVec::from),
            OtherRead::InParts { bypass } => self.read_parts(range, bypass).await,
        }
    }

    /// The data of the range, where all of it has one key and no copy that is newer.
    fn hit_around(&self, range: SectorRange) -> Option<Hit> {
        let extent = self.index.live_extent_around(self.inode(), range)?;
        (!self.unpublished.borrow().overlaps(range)).then(|| self.hit(extent, true))
    }

    fn count_read(&self, bypass: bool, missed: bool) {
        self.count(|counters| {
            *match (bypass, missed) {
                (false, false) => &mut counters.cache_hits,
                (false, true) => &mut counters.cache_misses,
                (true, false) => &mut counters.cache_bypass_hits,
                (true, true) => &mut counters.cache_bypass_misses,
            } += 1;
        });
    }

    async fn read_parts(&self, range: SectorRange, bypass: bool) -> Result<IoVec, VolumeError> {
        if let Err(error) = self.index.load_for_read(self.inode(), range).await {
            return self.read_without_index(range, error).await;
        }
        let began = self.zeroes.now();
        // R1, one step: look up, pin the hits, register a fill for each miss.
        let parts = self.look_up(range, !bypass && !self.is_stopping());
        let missed = parts.iter().any(|part| matches!(part, Part::Miss { .. }));
        self.count_read(bypass, missed);
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
        if missed && self.zeroes.since(began, range) && self.context.keeps(Rule::R5LooksUpAgain) {
            return Box::pin(self.read_again(range)).await;
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(data),
        }
    }

    /// R5: what the backing device returned may be zeroes of a discard that has not taken effect.
    /// While they are kept away, what misses can't be below dirty data.
    async fn read_again(&self, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.context.env.mark("read_looks_up_again");
        let _away = self.zeroes.keep_away(range);
        if let Err(error) = self.index.load_for_read(self.inode(), range).await {
            return self.read_without_index(range, error).await;
        }
        let parts = self.look_up(range, false);
        let mut data = IoVec::new();
        for (result, _) in join_all(parts.into_iter().map(|part| self.read_part(part))).await {
            data.push(result?);
        }
        Ok(data)
    }

    /// Has R3 done by one of a few tasks: thousands of reads can miss at the same time.
    fn start_fills(&self, fills: Fills) {
        let Some(me) = self.me.upgrade() else { return };
        let few = self.context.keeps(Rule::R3FewFillTasks);
        if few && self.fill_tasks.get() >= FILL_TASKS_MAX {
            self.context.env.mark("fill_waits_for_its_turn");
            self.waiting_fills.borrow_mut().push_back(fills);
            return;
        }
        self.fill_tasks.set(self.fill_tasks.get() + 1);
        let priority = if few { Priority::Fill } else { Priority::Background };
        self.context.env.spawn(priority, async move {
            let mut next = Some(fills);
            while let Some(fills) = next {
                for fill in fills {
                    me.fill(fill).await;
                }
                next = me.next_fills();
            }
            me.fill_tasks.set(me.fill_tasks.get() - 1);
        });
    }

    fn next_fills(&self) -> Option<Fills> {
        let mut waiting = self.waiting_fills.borrow_mut();
        let next = waiting.pop_front();
        if next.is_none() && waiting.capacity() > 0 {
            // A burst leaves no memory behind.
            *waiting = VecDeque::new();
        }
        next
    }

    /// Brings what is missing of the range into the cache; what is there is not read. Not a part of
    /// any run of requests: who asks for this wants the data in the cache, however long it is.
    pub(crate) async fn prefetch_keys(&self, range: SectorRange) -> Result<(), VolumeError> {
        let in_use = self.allocator.buckets().in_use_percent();
        let full = in_use > IN_USE_BYPASS_PERCENT;
        let bypass = !self.lifecycle.uses_cache()
            || self.lifecycle.is_draining()
            || self.mode() == CacheMode::None
            || full;
        if bypass || self.index.load_for_read(self.inode(), range).await.is_err() {
            return Ok(());
        }
        let parts = self.look_up(range, !self.is_stopping());
        let Some(me) = self.me.upgrade() else { return Ok(()) };
        for part in parts {
            if let Part::Miss { fill: Some(_), .. } = &part {
                let (read, fill) = self.read_part(part).await;
                // Before the next part is read: what is in memory has been claimed.
                if let Some(fill) = fill {
                    self.context.env.mark("prefetched");
                    me.fill(fill).await;
                }
                read?;
            }
        }
        Ok(())
    }

    fn look_up(&self, range: SectorRange, fill: bool) -> SmallVec<[Part; 1]> {
        let mut live = self.index.live_extents(self.inode(), range);
        if !self.context.keeps(Rule::E1StaleNotServed) {
            live.clear();
            self.index.each_extent(self.inode(), range, |extent| live.push(extent));
        }
        let mut parts = SmallVec::new();
        let mut at = range.start;
        // Unpublished copies are newer than what the index has.
        let copies: SmallVec<[(SectorRange, Pointer); 2]> =
            self.unpublished.borrow().overlapping(range).collect();
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
                    let gap = SectorRange::from_bounds(at, end);
                    at = end;
                    let fill = if fill { self.register_fill(gap) } else { None };
                    parts.push(Part::Miss { range: gap, fill });
                }
            }
        }
        parts
    }

    fn hit(&self, extent: Extent, published: bool) -> Hit {
        let mut buckets = self.allocator.buckets_mut();
        buckets.touch(extent.pointer, extent.range.sectors());
        let pin = buckets.pins().pin(buckets.bucket_of(extent.pointer));
        Hit { extent, published, _pin: pin }
    }

    fn register_fill(&self, range: SectorRange) -> Option<FillTicket> {
        let block = u64::from(self.context.geometry.block_sectors);
        // Part of a block can't be cached on its own without wasting the rest of it.
        let whole = range.start.0.is_multiple_of(block) && range.sectors().is_multiple_of(block);
        if !whole {
            return None;
        }
        if self.unpublished.borrow().len() >= self.context.tuning.unpublished_max {
            self.context.env.mark("too_many_copies");
            return None;
        }
        // It is memory that is limited, and a sector takes a page of it.
        let bytes = match self.context.keeps(Rule::S2FillsBounded) {
            true => range.bytes().next_multiple_of(PAGE_BYTES as u64),
            false => 0,
        };
        let Some(memory) = self.fill_budget.try_acquire(bytes) else {
            self.context.env.mark("fill_memory_short");
            return None;
        };
        Some(FillTicket { entry: self.inflight.enter_fill(range), _memory: memory })
    }

    pub(crate) async fn read_hit(&self, hit: Hit) -> Result<Slice, VolumeError> {
        let Hit { extent, published, _pin } = hit;
        let started = self.context.env.now();
        let result =
            self.context.cache.read_for_client(extent.pointer.offset, extent.range.sectors()).await;
        self.note_cache_latency(started, false);
        match result {
            Ok(buf) => Ok(buf.freeze()),
            // Says nothing about the data.
            Err(error @ IoError::NoMemory) => Err(VolumeError::Io(error)),
            Err(error) => {
                self.context.note_cache_error("reading cached data", &error);
                // Not part of the future of a hit.
                Box::pin(self.read_around(extent, published)).await
            }
        }
    }

    async fn read_part(&self, part: Part) -> (Result<Slice, VolumeError>, Option<Fill>) {
        match part {
            Part::Hit(hit) => (self.read_hit(hit).await, None),
            Part::Miss { range, fill } => match self.read_backing(range).await {
                Ok(slice) => {
                    let fill = fill.map(|ticket| Fill { range, data: slice.clone(), ticket });
                    (Ok(slice), fill)
                }
                Err(error) => (Err(error), None),
            },
        }
    }

    pub(crate) async fn read_backing(&self, range: SectorRange) -> Result<Slice, VolumeError> {
        match self.backing.read_for_client(range.start, range.sectors()).await {
            Ok(buf) => Ok(buf.freeze()),
            Err(error) => {
                self.note_backing_error(&error);
                Err(VolumeError::Io(error))
            }
        }
    }

    /// R4: what can't be read from the cache comes from the backing device if it is clean, and
    /// its key goes. If it is dirty, nobody else has it.
    async fn read_around(&self, extent: Extent, published: bool) -> Result<Slice, VolumeError> {
        if extent.dirty {
            if !self.context.keeps(Rule::R4DirtyReadFails) {
                return self.read_backing(extent.range).await;
            }
            self.context.env.mark("dirty_read_failed");
            return Err(VolumeError::DirtyDataLost(self.volume_range(extent.range)));
        }
        self.context.env.mark("clean_read_retried");
        self.count(|counters| counters.cache_read_retries += 1);
        // R5: since it was looked up it may have been written, and be discarded now.
        let _away = self.zeroes.keep_away(extent.range);
        let known = self.index.is_loaded(self.inode(), extent.range);
        let dirty = !known || self.index.has_dirty(self.inode(), extent.range);
        if dirty && self.context.keeps(Rule::R5LooksUpAgain) {
            return Ok(Box::pin(self.read_again(extent.range)).await?.to_buf().freeze());
        }
        let slice = self.read_backing(extent.range).await?;
        if !published {
            self.unpublished.borrow_mut().remove(extent.range);
        } else if let Ok(mut room) = self
            .index
            .prepare_change(self.inode(), extent.range, removal_records(extent.range))
            .await
            && self.index.is_current(&extent)
        {
            self.index.replace(&mut room, self.inode(), extent.range, None);
        }
        Ok(slice)
    }

    /// The index can't be read. Without dirty data the backing device has everything.
    async fn read_without_index(
        &self,
        range: SectorRange,
        error: EngineError,
    ) -> Result<IoVec, VolumeError> {
        self.context.env.mark("index_unreadable");
        let known_clean =
            self.allocator.buckets().is_counted() && self.index.dirty_sectors(self.inode()) == 0;
        if !known_clean {
            return Err(error.into());
        }
        self.read_backing(range).await.map(IoVec::from)
    }

    /// R3: writes the data to the cache device and keeps it as an unpublished copy, as far as no
    /// write doomed it meanwhile.
    async fn fill(self: &Rc<Self>, fill: Fill) {
        let Fill { range, data, ticket } = fill;
        if self.is_stopping() {
            return;
        }
        let class = self.allocator.buckets().class_of_fills();
        let written =
            match self.allocator.try_allocate(class, range.sectors(), self.block_sectors()) {
                None => {
                    self.context.env.mark("fill_without_room");
                    None
                }
                Some(pieces) => {
                    let ok = self.write_pieces(&pieces, data.into(), Durability::Volatile).await;
                    ok.then_some(pieces)
                }
            };
        // One step from here on.
        let doomed = ticket.entry.leave();
        if !doomed.is_empty() {
            self.context.env.mark("fill_doomed_by_write");
        }
        if doomed.covers(range) {
            self.count(|counters| counters.cache_miss_collisions += 1);
            return;
        }
        if !doomed.is_empty() {
            self.context.env.mark("fill_kept_in_part");
        }
        let Some(pieces) = written else { return };
        if self.is_stopping() || self.context.failure().is_some() {
            return;
        }
        for (part, piece) in place_pieces(range, &pieces) {
            for gap in doomed.gaps(part) {
                self.add_copy(
                    gap,
                    piece.pointer.advance(gap.start - part.start),
                    piece.pin.clone(),
                );
            }
        }
    }

    /// Writes data to pieces of buckets; the last block is padded with zeroes.
    pub(crate) async fn write_pieces(
        &self,
        pieces: &[Piece],
        data: IoVec,
        durability: Durability,
    ) -> bool {
        let started = self.context.env.now();
        let ok = match pieces {
            [piece] => {
                self.piece_is_written(piece, &self.write_piece(piece, data, durability).await)
            }
            _ => {
                let mut at = 0;
                let writes = pieces.iter().map(|piece| {
                    let part = data.cut_sectors(at, piece.sectors);
                    at += piece.sectors;
                    self.write_piece(piece, part, durability)
                });
                let results = join_all(writes).await;
                let results = pieces.iter().zip(&results);
                results.filter(|(piece, result)| !self.piece_is_written(piece, result)).count() == 0
            }
        };
        self.note_cache_latency(started, true);
        ok
    }

    fn write_piece(
        &self,
        piece: &Piece,
        mut data: IoVec,
        durability: Durability,
    ) -> impl Future<Output = IoResult> {
        let block = self.context.geometry.block_bytes() as usize;
        let rest = data.len().next_multiple_of(block) - data.len();
        if rest > 0 {
            data.append(IoVec::zeroes(rest));
        }
        self.context.cache.write(piece.pointer.offset, data, durability)
    }

    fn piece_is_written(&self, piece: &Piece, result: &IoResult) -> bool {
        if let Err(error) = result {
            self.allocator.note_data_error(piece.pointer, error);
        }
        result.is_ok()
    }

    fn note_cache_latency(&self, started: ubcache_env::Nanos, write: bool) {
        let threshold = {
            let settings = self.context.settings();
            if write {
                settings.congested_write_threshold_us
            } else {
                settings.congested_read_threshold_us
            }
        };
        if threshold > 0 {
            let now = self.context.env.now();
            self.congestion.borrow_mut().completed(now, now.since(started), threshold);
        }
    }
}

/// Assigns to each piece its part of the range.
pub(crate) fn place_pieces(
    range: SectorRange,
    pieces: &[Piece],
) -> impl Iterator<Item = (SectorRange, &Piece)> {
    let mut at = range.start;
    pieces.iter().map(move |piece| {
        let part = SectorRange::new(at, piece.sectors);
        at = part.end;
        (part, piece)
    })
}
