//! Pieces that were read ahead of a stream (R6).
//!
//! A piece is a fill of the in-flight table from before its read until it is given up, so that a
//! client write that comes near dooms what it overlaps (T2, T3). Its memory is a part of that for
//! fills (S2). It is given up when all of it was used, when nobody has come for it for a while, and
//! when what the backing device has may change otherwise.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::local::{Event, Notify};
use ubcache_env::{DeviceShape, Distance, Nanos, Sector, SectorRange, Slice};
use ubcache_format::SECTOR_BYTES;

use super::fill_queue::FillTicket;
use super::streams::Streams;
use crate::tuning::ReadAheadTuning;

/// Sectors of a piece, however large the requests are that suit the device.
const PIECE_SECTORS_LIMIT: u64 = 8192;

/// A piece.
pub(super) struct Piece {
    pub range: SectorRange,
    /// Number of its stream.
    pub stream: u64,
    data: RefCell<Option<(FillTicket, Slice)>>,
    used_sectors: Cell<u64>,
    /// Its read has ended, or it was given up.
    read: Event,
    gone: Notify,
    is_gone: Cell<bool>,
}

impl Piece {
    /// Its read is under way.
    pub fn is_being_read(&self) -> bool {
        !self.read.is_set()
    }

    /// Waits until its read has ended, or it is given up.
    pub async fn read_ends(&self) {
        self.read.wait().await;
    }

    /// Waits until it is given up.
    pub async fn goes(&self) {
        while !self.is_gone.get() {
            self.gone.notified().await;
        }
    }

    /// Keeps what was read, unless the piece was given up meanwhile.
    pub fn keep(&self, ticket: FillTicket, data: Slice) {
        if !self.is_gone.get() {
            *self.data.borrow_mut() = Some((ticket, data));
        }
        self.read.set();
    }

    /// A part of its data, if it has that, and if no client write was over it; of a mutant, always.
    pub fn part(&self, range: SectorRange, doomed_too: bool) -> Option<Slice> {
        let data = self.data.borrow();
        let (ticket, slice) = data.as_ref()?;
        if ticket.entry.is_doomed_over(range) && !doomed_too {
            return None;
        }
        let from = (range.start - self.range.start) * SECTOR_BYTES;
        Some(slice.cut(from as usize, (from + range.bytes()) as usize))
    }

    fn give_up(&self) {
        self.is_gone.set(true);
        self.data.take();
        self.read.set();
        self.gone.notify_all();
    }
}

/// The pieces of a volume, and its streams.
pub(crate) struct ReadAhead {
    pub(super) streams: RefCell<Streams>,
    /// By start; none overlaps another.
    pieces: RefCell<BTreeMap<Sector, Rc<Piece>>>,
    pub(super) unused_after: Nanos,
}

impl ReadAhead {
    /// Read-ahead over a device of this shape: none over a near one.
    pub fn of(shape: DeviceShape, tuning: ReadAheadTuning) -> Option<ReadAhead> {
        if shape.distance == Distance::Local {
            return None;
        }
        let optimal = (u64::from(shape.optimal_bytes) / SECTOR_BYTES).min(PIECE_SECTORS_LIMIT);
        let piece_sectors_max = tuning.piece_sectors_max.max(optimal);
        Some(ReadAhead {
            streams: RefCell::new(Streams::new(ReadAheadTuning { piece_sectors_max, ..tuning })),
            pieces: RefCell::default(),
            unused_after: tuning.unused_after,
        })
    }

    /// The piece that has all of the range.
    pub(super) fn piece_around(&self, range: SectorRange) -> Option<Rc<Piece>> {
        let pieces = self.pieces.borrow();
        let (_, piece) = pieces.range(..=range.start).next_back()?;
        (range.end <= piece.range.end).then(|| piece.clone())
    }

    /// The beginning of the range up to the next edge of a piece.
    pub(super) fn until_edge(&self, range: SectorRange) -> SectorRange {
        let pieces = self.pieces.borrow();
        let before = pieces.range(..=range.start).next_back().map(|(_, piece)| piece.range.end);
        let inside = before.filter(|end| *end > range.start);
        let next = || pieces.range(range.start..).next().map(|(start, _)| *start);
        let edge = inside.or_else(next).unwrap_or(range.end);
        SectorRange::from_bounds(range.start, edge.min(range.end))
    }

    /// A piece is going to be read. `None`: there is one over the range already.
    pub(super) fn begin(&self, range: SectorRange, stream: u64) -> Option<Rc<Piece>> {
        let mut pieces = self.pieces.borrow_mut();
        let before = pieces.range(..range.end).next_back();
        if before.is_some_and(|(_, piece)| piece.range.end > range.start) {
            return None;
        }
        let piece = Rc::new(Piece {
            range,
            stream,
            data: RefCell::default(),
            used_sectors: Cell::new(0),
            read: Event::default(),
            gone: Notify::default(),
            is_gone: Cell::new(false),
        });
        pieces.insert(range.start, piece.clone());
        Some(piece)
    }

    /// Sectors of a piece were used. Used up, it is given up.
    pub(super) fn used(&self, piece: &Rc<Piece>, sectors: u64) {
        let used = piece.used_sectors.get() + sectors;
        piece.used_sectors.set(used);
        if used >= piece.range.sectors() && self.give_up(piece) {
            self.streams.borrow_mut().piece_used();
        }
    }

    /// Gives a piece up. Returns false if it was before.
    pub(super) fn give_up(&self, piece: &Rc<Piece>) -> bool {
        if piece.is_gone.get() {
            return false;
        }
        self.pieces.borrow_mut().remove(&piece.range.start);
        piece.give_up();
        true
    }

    /// Gives up what waits for a stream that has come to its end, as it seems, for another one.
    pub(super) fn make_room(&self, stream: u64) {
        let waiting: Vec<_> = self.pieces.borrow().values().cloned().collect();
        let others = waiting.iter().map(|piece| piece.stream).filter(|other| *other != stream);
        let Some(stale) = self.streams.borrow().stalest(others) else { return };
        for piece in waiting.iter().filter(|piece| piece.stream == stale) {
            self.expires(piece);
        }
    }

    /// Nobody has come for the rest of a piece.
    pub(super) fn expires(&self, piece: &Rc<Piece>) {
        let wasted = 2 * piece.used_sectors.get() < piece.range.sectors();
        if self.give_up(piece) && wasted {
            self.streams.borrow_mut().piece_unused(piece.stream);
        }
    }

    /// Gives all pieces up.
    pub fn clear(&self) {
        let pieces = std::mem::take(&mut *self.pieces.borrow_mut());
        for piece in pieces.into_values() {
            piece.give_up();
        }
    }
}
