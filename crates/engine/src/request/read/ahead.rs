//! Read-ahead of streams, where the backing device is remote (R6).
//!
//! A stream that misses gets the next part of the backing device read before it asks for it. What
//! was read waits in memory, in pieces, and is used once. It goes to the cache only as what the
//! client's own reads would have left there: a stream that bypasses the cache leaves nothing
//! (docs/decisions/0012-read-ahead.md).

use std::rc::Rc;

use ubcache_env::local::{Either, first};
use ubcache_env::{Env, IntervalSet, Priority, Sector, SectorRange, Slice, VolumeError};

use super::fill_queue::FillTicket;
use super::pieces::{Piece, ReadAhead};
use super::streams::Ahead;
use crate::rules::Rule;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// Reads what the cache lacks: from a piece that was read ahead, or from the backing device.
    pub(super) async fn read_missing(&self, range: SectorRange) -> Result<Slice, VolumeError> {
        let Some(ahead) = &self.ahead else { return self.read_backing(range).await };
        if let Some(piece) = ahead.piece_around(range)
            && let Some(slice) = self.read_piece(ahead, piece, range).await
        {
            return Ok(slice);
        }
        let started = self.context.env.now();
        let result = self.read_backing(range).await;
        ahead.streams.borrow_mut().request_ended(self.context.env.now().since(started));
        result
    }

    /// R6: takes the range from a piece, if no write was over it since before it was read.
    async fn read_piece(
        &self,
        ahead: &ReadAhead,
        piece: Rc<Piece>,
        range: SectorRange,
    ) -> Option<Slice> {
        if piece.is_being_read() {
            self.context.env.mark("waits_for_read_ahead");
            ahead.streams.borrow_mut().client_waits(piece.stream, piece.range.start);
            piece.read_ends().await;
        }
        let doomed_too = !self.context.keeps(Rule::R6DoomedUnread);
        let Some(part) = piece.part(range, doomed_too) else {
            self.context.env.mark("read_ahead_for_nothing");
            return None;
        };
        let slice = if range == piece.range {
            part
        } else {
            // S2: a small part must not keep the memory of all of it.
            let mut buf = self.context.env.buffers().for_sectors(range.sectors())?;
            buf.as_mut_slice().copy_from_slice(part.as_slice());
            buf.freeze()
        };
        self.context.env.mark("read_ahead_used");
        ahead.used(&piece, range.sectors());
        Some(slice)
    }

    /// The beginning of a range that the cache lacks, as far as it can come from one place.
    pub(super) fn until_piece_edge(&self, gap: SectorRange) -> SectorRange {
        self.ahead.as_ref().map_or(gap, |ahead| ahead.until_edge(gap))
    }

    /// A read missed in this range: if it belongs to a stream, what follows is read.
    pub(super) fn read_ahead_of(&self, range: SectorRange) {
        let Some(ahead) = &self.ahead else { return };
        let next = ahead.streams.borrow_mut().note(range, self.all_keys().end);
        let Some(next) = next else { return };
        let Some(me) = self.me.upgrade() else { return };
        let Ahead { stream, range, piece_sectors } = next;
        let mut at = range.start;
        while at < range.end {
            let end = Sector((at.0 + 1).next_multiple_of(piece_sectors)).min(range.end);
            let part = SectorRange::from_bounds(at, end);
            at = end;
            if self.index.is_loaded(self.inode(), part) {
                me.read_pieces(part, stream);
            } else {
                let me = me.clone();
                self.context.env.spawn(Priority::Foreground, async move {
                    // A stop, and a change of the superblock, wait for it as for a client (A3).
                    if me.is_paused() {
                        return;
                    }
                    let Ok(_request) = me.begin() else { return };
                    if me.index.load_for_read(me.inode(), part).await.is_ok() {
                        me.read_pieces(part, stream);
                    }
                });
            }
        }
    }

    /// R1 of read-ahead, one step: registers what the cache lacks of the range, and reads it.
    fn read_pieces(self: &Rc<Self>, range: SectorRange, stream: u64) {
        let Some(ahead) = &self.ahead else { return };
        let ends = self.is_stopping() || self.is_paused() || self.context.failure().is_some();
        if ends || !self.lifecycle.uses_cache() || self.coherence.is_suspect(range) {
            return;
        }
        // Misses that are to be cached need the other half.
        let is_short = || self.fills.memory.available() < self.context.tuning.fill_bytes_max / 2;
        if is_short() {
            self.context.env.mark("read_ahead_short_of_memory");
            ahead.make_room(stream);
            if is_short() {
                return;
            }
        }
        let mut there = IntervalSet::default();
        for extent in self.index.live_extents(self.inode(), range) {
            there.insert(extent.range);
        }
        for (copy, _) in self.coherence.copies_over(range) {
            there.insert(copy);
        }
        for gap in there.gaps(range) {
            let Some(ticket) = self.register_fill(gap) else { return };
            let Some(piece) = ahead.begin(gap, stream) else { continue };
            self.context.env.mark("reads_ahead");
            let me = self.clone();
            let task = self.context.env.spawn(Priority::Foreground, async move {
                me.read_piece_ahead(piece, ticket).await;
            });
            self.add_task(task);
        }
    }

    /// Reads a piece, and gives it up when nobody comes for it.
    async fn read_piece_ahead(&self, piece: Rc<Piece>, ticket: FillTicket) {
        let ahead = self.ahead.as_ref().expect("it has a piece");
        let delivered = ahead.streams.borrow().delivered();
        let (started, range) = (self.context.env.now(), piece.range);
        let read = self.backing.read_for_client(started, range.start, range.sectors()).await;
        // An error is not the client's: its own read will tell.
        let Ok(buf) = read else {
            ahead.give_up(&piece);
            return;
        };
        let took = self.context.env.now().since(started);
        ahead.streams.borrow_mut().piece_ended(range.sectors(), delivered, took);
        piece.keep(ticket, buf.freeze());
        let expiry = self.context.env.sleep(ahead.unused_after);
        if let Either::Right(()) = first(piece.goes(), expiry).await {
            self.context.env.mark("read_ahead_unused");
            ahead.expires(&piece);
        }
    }

    /// R6: what was read ahead is not used any more: the backing device may have something else.
    pub(crate) fn drop_read_ahead(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.clear();
        }
    }
}
