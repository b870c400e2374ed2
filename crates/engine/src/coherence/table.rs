//! The in-flight table of a volume: every fill, client write and background writeback.
//!
//! Who enters holds a [`Ticket`] until its entry leaves, which it does by itself when the ticket is dropped: an entry
//! that stayed behind would keep writeback from its range, and a stop from its end, for ever.

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_env::{IntervalSet, SectorRange};

use crate::mutants::{Mutant, Mutation};

/// What an entry of the table is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A read miss that wants to put its data into the cache.
    Fill,
    /// A client's write, of any mode; also a discard and a write of zeroes.
    Write,
    /// Background writeback.
    Writeback,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    range: SectorRange,
    /// W2: the backing write may be on its way.
    backing_write: bool,
    /// Fill: the parts that must not be published any more. Write: any part means that its copy
    /// must not be published.
    doomed: IntervalSet,
}

/// An entry of the table. Dropped, it leaves.
#[derive(Debug)]
#[must_use = "the entry leaves when this is dropped"]
pub(crate) struct Ticket {
    table: Rc<RefCell<Table>>,
    /// None: it has left.
    index: Option<usize>,
}

impl Ticket {
    fn index(&self) -> usize {
        self.index.expect("a ticket that has left is gone")
    }

    /// W2: from now on the backing write may land at any moment.
    pub fn backing_write_starts(&self) {
        self.table.borrow_mut().backing_write_starts(self.index());
    }

    /// The entry leaves. Says which parts were doomed.
    pub fn leave(mut self) -> IntervalSet {
        let index = self.index.take().expect("a ticket that has left is gone");
        self.table.borrow_mut().leave(index)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            self.table.borrow_mut().leave(index);
        }
    }
}

/// The table. Its size is bounded by the queue depth of the clients.
#[derive(Default, Debug)]
pub(crate) struct InFlight {
    table: Rc<RefCell<Table>>,
}

impl InFlight {
    /// An empty table.
    pub fn new(mutation: Mutation) -> InFlight {
        InFlight { table: Rc::new(RefCell::new(Table { mutation, ..Table::default() })) }
    }

    fn ticket(&self, index: usize) -> Ticket {
        Ticket { table: self.table.clone(), index: Some(index) }
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }

    /// T2: a client write enters before it does anything else. It dooms every overlapping fill,
    /// and overlapping writes doom each other's copies. Says how many fills it doomed.
    pub fn enter_write(&self, range: SectorRange) -> (Ticket, u64) {
        let (index, doomed) = self.table.borrow_mut().enter_write(range);
        (self.ticket(index), doomed)
    }

    /// R1, T3: registers a fill; where a client write is in the table it is doomed from birth.
    pub fn enter_fill(&self, range: SectorRange) -> Ticket {
        let index = self.table.borrow_mut().enter_fill(range);
        self.ticket(index)
    }

    /// B1: enters a writeback, unless a backing write or another writeback is over the range.
    pub fn enter_writeback(&self, range: SectorRange) -> Option<Ticket> {
        let index = self.table.borrow_mut().enter_writeback(range)?;
        Some(self.ticket(index))
    }

    /// Whether a backing write may be landing anywhere in the range.
    pub fn backing_write_over(&self, range: SectorRange) -> bool {
        self.table.borrow().backing_write_over(range)
    }

    /// Whether background writeback is under way.
    pub fn has_writebacks(&self) -> bool {
        self.table.borrow().has_writebacks()
    }

    /// Dooms what fills are in the range.
    #[cfg(feature = "mutants")]
    pub fn doom_fills(&self, range: SectorRange) {
        self.table.borrow_mut().doom_fills(range);
    }

    /// Everything in the table: kind, range, and whether a backing write may be landing there.
    pub fn entries(&self) -> Vec<(Kind, SectorRange, bool)> {
        let table = self.table.borrow();
        table.entries.iter().flatten().map(|entry| (entry.kind, entry.range, entry.backing_write)).collect()
    }

    /// Entries in the table.
    #[cfg(test)]
    fn len(&self) -> usize {
        let table = self.table.borrow();
        table.writes + table.others
    }
}

#[derive(Default, Debug)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// Number of writes, fills and writebacks: most look-ups need not look.
    writes: usize,
    others: usize,
    writebacks: usize,
    /// All writebacks are in it. A batch enters in ascending order, so the next one mostly lies behind.
    writeback_hull: SectorRange,
    mutation: Mutation,
}

impl Table {
    fn put(&mut self, entry: Entry) -> usize {
        match entry.kind {
            Kind::Write => self.writes += 1,
            _ => self.others += 1,
        }
        if entry.kind == Kind::Writeback {
            let hull = if self.writebacks == 0 { entry.range } else { self.writeback_hull };
            let (low, high) = (hull.start.min(entry.range.start), hull.end.max(entry.range.end));
            self.writeback_hull = SectorRange::from_bounds(low, high);
            self.writebacks += 1;
        }
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.writes + self.others == 0
    }

    fn entry(&mut self, index: usize) -> &mut Entry {
        self.entries[index].as_mut().expect("a ticket is good until its entry leaves")
    }

    fn enter_write(&mut self, range: SectorRange) -> (usize, u64) {
        let mut doomed = IntervalSet::default();
        let mut fills = 0;
        if self.writes + self.others > 0 {
            for entry in self.entries.iter_mut().flatten() {
                if entry.kind == Kind::Writeback || !entry.range.overlaps(&range) {
                    continue;
                }
                if self.mutation.spares(entry.kind, false) {
                    continue;
                }
                let common = entry.range.intersect(&range);
                fills += u64::from(entry.kind == Kind::Fill && entry.doomed.is_empty());
                entry.doomed.insert(common);
                if entry.kind == Kind::Write {
                    doomed.insert(common);
                }
            }
        }
        (self.put(Entry { kind: Kind::Write, range, backing_write: false, doomed }), fills)
    }

    fn enter_fill(&mut self, range: SectorRange) -> usize {
        let mut doomed = IntervalSet::default();
        if self.writes > 0 && !self.mutation.spares(Kind::Fill, true) {
            for entry in self.entries.iter().flatten() {
                if entry.kind == Kind::Write && entry.range.overlaps(&range) {
                    doomed.insert(entry.range.intersect(&range));
                }
            }
        }
        self.put(Entry { kind: Kind::Fill, range, backing_write: false, doomed })
    }

    fn enter_writeback(&mut self, range: SectorRange) -> Option<usize> {
        let write = !self.mutation.is(Mutant::WritebackOverInflightWrite) && self.backing_write_over(range);
        let writeback = !self.mutation.is(Mutant::TwoWritebacksAtOnce) && self.writeback_over(range);
        let busy = write || writeback;
        if busy {
            return None;
        }
        let doomed = IntervalSet::default();
        Some(self.put(Entry { kind: Kind::Writeback, range, backing_write: false, doomed }))
    }

    fn backing_write_starts(&mut self, index: usize) {
        let range = self.entry(index).range;
        let writeback = self.writeback_over(range);
        // I5. The range of a writeback is dirty until it leaves, so the decide step of a write
        // over it finds dirty data and does not come here.
        assert!(!writeback, "no backing write starts over a writeback in flight at {range}");
        self.entry(index).backing_write = true;
    }

    fn backing_write_over(&self, range: SectorRange) -> bool {
        let over = |entry: &Entry| entry.backing_write && entry.range.overlaps(&range);
        self.writes > 0 && self.entries.iter().flatten().any(over)
    }

    fn writeback_over(&self, range: SectorRange) -> bool {
        let over = |entry: &Entry| entry.kind == Kind::Writeback && entry.range.overlaps(&range);
        self.has_writebacks()
            && self.writeback_hull.overlaps(&range)
            && self.entries.iter().flatten().any(over)
    }

    fn has_writebacks(&self) -> bool {
        self.writebacks > 0
    }

    fn leave(&mut self, index: usize) -> IntervalSet {
        let entry = self.entries[index].take().expect("an entry leaves once");
        match entry.kind {
            Kind::Write => self.writes -= 1,
            _ => self.others -= 1,
        }
        self.writebacks -= usize::from(entry.kind == Kind::Writeback);
        self.free.push(index);
        entry.doomed
    }

    #[cfg(feature = "mutants")]
    fn doom_fills(&mut self, range: SectorRange) {
        let fills = self.entries.iter_mut().flatten().filter(|entry| entry.kind == Kind::Fill);
        for entry in fills.filter(|entry| entry.range.overlaps(&range)) {
            entry.doomed.insert(entry.range.intersect(&range));
        }
    }
}

impl Mutation {
    /// A rule about whom a write dooms is broken: fills, at birth or when the write enters; other writes.
    fn spares(self, kind: Kind, at_birth: bool) -> bool {
        match kind {
            Kind::Fill => {
                self.is(Mutant::NoDoomedFills)
                    || self.is_historic()
                    || self.is(if at_birth { Mutant::NoDoomFromBirth } else { Mutant::NoDoomAtEntry })
            }
            _ => self.is(Mutant::WritethroughCopyNotDoomed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_env::Sector;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }

    #[test]
    fn a_write_dooms_the_overlapping_part_of_a_fill_only() {
        let table = InFlight::default();
        let fill = table.enter_fill(range(0, 16));
        let (write, doomed) = table.enter_write(range(8, 16));
        assert_eq!(doomed, 1);
        let late = table.enter_fill(range(20, 8));
        write.leave();
        assert_eq!(fill.leave().iter().collect::<Vec<_>>(), [range(8, 8)]);
        assert_eq!(late.leave().iter().collect::<Vec<_>>(), [range(20, 4)]);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn overlapping_writes_doom_both_copies() {
        let table = InFlight::default();
        let (first, _) = table.enter_write(range(0, 8));
        let (second, _) = table.enter_write(range(4, 8));
        let (apart, _) = table.enter_write(range(100, 8));
        assert!(!first.leave().is_empty());
        assert!(!second.leave().is_empty());
        assert!(apart.leave().is_empty());
    }

    #[test]
    fn a_writeback_waits_for_backing_writes_only() {
        let table = InFlight::default();
        let (write, _) = table.enter_write(range(0, 8));
        let writeback = table.enter_writeback(range(0, 4)).expect("not decided yet");
        assert!(table.enter_writeback(range(2, 8)).is_none(), "twice");
        let (far, low) = (table.enter_writeback(range(100, 8)), table.enter_writeback(range(50, 8)));
        assert!(table.enter_writeback(range(57, 43)).is_none(), "the last sector, and not the first");
        assert!(table.enter_writeback(range(107, 1)).is_none());
        let between = table.enter_writeback(range(58, 42));
        for other in [far, low, between] {
            other.expect("nobody works there").leave();
        }
        assert!(table.has_writebacks(), "one is left");
        writeback.leave();
        assert!(!table.has_writebacks());
        write.backing_write_starts();
        assert!(table.enter_writeback(range(0, 4)).is_none());
        assert!(table.backing_write_over(range(7, 1)));
        write.leave();
        assert!(table.enter_writeback(range(0, 4)).is_some());
    }
}
