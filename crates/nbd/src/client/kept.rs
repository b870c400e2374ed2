//! Copies of answered writes that no flush has covered (rule L2): a server that lost its power has
//! lost them, and they are written again on a new connection.

use std::collections::BTreeMap;

use ubcache_env::{IntervalMap, IntervalSet, IoVec, Sector, SectorRange};

/// Copies at most, whatever their size.
const COPIES_MAX: usize = 16 << 10;
/// Ranges without a copy at most; more are one range.
const BARE_MAX: usize = 4096;

/// Content that a write has left.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Data(IoVec),
    Zeroes { holes: bool },
}

struct Copy {
    end: u64,
    content: Content,
    /// Flushes that had begun when the write was answered.
    flushes: u64,
}

/// See the module.
pub(super) struct Kept {
    copies: BTreeMap<u64, Copy>,
    bytes: usize,
    bytes_max: usize,
    /// Ranges whose content is not known, or not kept: flushes that had begun.
    bare: IntervalMap<u64>,
    sectors: u64,
    /// Flushes that have begun.
    flushes: u64,
}

impl Kept {
    pub fn new(bytes_max: usize, sectors: u64) -> Kept {
        Kept {
            copies: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            bare: IntervalMap::default(),
            sectors,
            flushes: 0,
        }
    }

    /// The disk has so many sectors now.
    pub fn grow(&mut self, sectors: u64) {
        self.sectors = sectors;
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns true if something of the range may be lost.
    pub fn overlaps(&self, range: SectorRange) -> bool {
        let before = self.copies.range(..range.end.0).next_back();
        self.bare.overlaps(range) || before.is_some_and(|(_, copy)| copy.end > range.start.0)
    }

    /// Returns true if a flush should make room.
    pub fn wants_flush(&self) -> bool {
        self.bytes > self.bytes_max / 2 || self.copies.len() > COPIES_MAX / 2
    }

    /// A write was answered with success.
    pub fn answered(&mut self, range: SectorRange, content: &Content) {
        self.forget(range);
        let bytes = if let Content::Data(data) = content { data.len() } else { 0 };
        if self.bytes + bytes > self.bytes_max || self.copies.len() >= COPIES_MAX {
            self.doubt(range);
            return;
        }
        // A copy: the memory of a request goes back to its pool.
        let content = match content {
            Content::Data(data) => Content::Data(data.to_buf().into()),
            other => other.clone(),
        };
        self.bytes += bytes;
        self.copies
            .insert(range.start.0, Copy { end: range.end.0, content, flushes: self.flushes });
    }

    /// Nothing of the range can be lost any more, or somebody was told.
    pub fn forget(&mut self, range: SectorRange) {
        self.bare.remove(range);
        let (from, to) = (range.start.0, range.end.0);
        let before = self.copies.range(..from).next_back();
        let first = before.filter(|(_, copy)| copy.end > from).map(|(start, _)| *start);
        let inside = self.copies.range(from..to.max(from)).map(|(start, _)| *start);
        let starts: Vec<u64> = first.into_iter().chain(inside).collect();
        for start in starts {
            let copy = self.copies.remove(&start).expect("just found");
            self.bytes -= bytes_of(&copy.content);
            for (low, high) in [(start, copy.end.min(from)), (start.max(to), copy.end)] {
                if low >= high {
                    continue;
                }
                let content = match &copy.content {
                    Content::Data(data) => Content::Data(part_of(data, low - start, high - low)),
                    other => other.clone(),
                };
                self.bytes += bytes_of(&content);
                self.copies.insert(low, Copy { end: high, content, flushes: copy.flushes });
            }
        }
    }

    /// The content of the range is not known, or no copy is kept.
    pub fn doubt(&mut self, range: SectorRange) {
        self.forget(range);
        self.bare.insert(range, self.flushes);
        if self.bare.intervals() > BARE_MAX {
            self.bare.clear();
            self.bare.insert(SectorRange::new(Sector(0), self.sectors), self.flushes);
        }
    }

    /// A flush is submitted: its number.
    pub fn flush_begins(&mut self) -> u64 {
        self.flushes += 1;
        self.flushes
    }

    /// The flush of that number has succeeded.
    pub fn flush_ends(&mut self, number: u64) {
        self.copies.retain(|_, copy| copy.flushes >= number);
        self.bytes = self.copies.values().map(|copy| bytes_of(&copy.content)).sum();
        self.bare.retain(|_, flushes| flushes >= number);
    }

    /// A flush has failed, and its caller is told: no copy counts any more.
    pub fn flush_failed(&mut self) {
        self.copies.clear();
        self.bytes = 0;
        self.bare.clear();
    }

    /// Takes the ranges that a server which lost its power has lost.
    pub fn take_bare(&mut self) -> IntervalSet {
        let mut lost = IntervalSet::default();
        self.bare.iter().for_each(|(range, _)| lost.insert(range));
        self.bare.clear();
        lost
    }

    /// All copies, those of `except` left out.
    pub fn copies(&self, except: &IntervalSet) -> Vec<(SectorRange, Content)> {
        let mut all = Vec::new();
        for (start, copy) in &self.copies {
            let whole = SectorRange::from_bounds(Sector(*start), Sector(copy.end));
            for part in except.gaps(whole) {
                let content = match &copy.content {
                    Content::Data(data) => {
                        Content::Data(data.cut_sectors(part.start.0 - start, part.sectors()))
                    }
                    other => other.clone(),
                };
                all.push((part, content));
            }
        }
        all
    }
}

/// A part of a copy. A small one does not keep the memory of the whole.
fn part_of(data: &IoVec, first: u64, sectors: u64) -> IoVec {
    let part = data.cut_sectors(first, sectors);
    if part.len() * 2 < data.len() { part.to_buf().into() } else { part }
}

fn bytes_of(content: &Content) -> usize {
    if let Content::Data(data) = content { data.len() } else { 0 }
}
