//! A state of the model: two devices, the journal, what is in memory, and what clients have seen.
//!
//! Everything is small and fixed in size, so that millions of states fit into memory.

mod disk;
mod few;
mod flush_reports;
mod op;

use crate::monitor::Register;

pub use disk::{Disk, Version};
pub use few::Few;
pub use flush_reports::FlushReports;
pub use op::{At, Op, OpKind, Wants};

/// Sectors at most.
pub const SECTORS: usize = 2;
/// Client operations at most.
pub const OPS: usize = 3;
/// Places for copies and dirty data on the cache device.
pub const PLACES: usize = 10;
/// Records that are not durable, at most.
pub const RECORDS: usize = 12;
/// Versions of one sector that are not durable, at most.
pub const VERSIONS: usize = 6;

/// First content of the backing device.
pub const OLDER: u8 = 0;
/// First content of a dirty key.
pub const DIRTY: u8 = 1;
/// Content that operation `n` writes: `FIRST + n`.
pub const FIRST: u8 = 2;
/// Content of a place that was never written.
pub const GARBAGE: u8 = 7;
/// Content of a place that is not read any more (J3).
pub const LOST: u8 = 6;
/// Clients at most. They differ in the FLUSHes that they get errors for (F4).
pub const CLIENTS: u8 = 2;

/// A number for a place.
pub type Place = u8;
/// No place.
pub const NOWHERE: Place = 0xff;
/// Not read yet.
pub const UNREAD: u8 = 0xff;

/// A key of one sector: none, or a place and whether it is dirty.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Key(u8);

impl Key {
    /// No key.
    pub const NONE: Key = Key(0);

    /// A key to a place.
    pub fn new(place: Place, dirty: bool) -> Key {
        Key((place + 1) << 1 | u8::from(dirty))
    }

    /// The place that it points to.
    pub fn place(self) -> Option<Place> {
        (self.0 >> 1).checked_sub(1)
    }

    /// Returns true if it is dirty.
    pub fn is_dirty(self) -> bool {
        self.0 & 1 == 1
    }

    /// Returns true if it is a key, and clean.
    pub fn is_clean(self) -> bool {
        self.0 > 1 && !self.is_dirty()
    }
}

/// A change of the index in the journal.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Record {
    /// The sector.
    pub sector: u8,
    /// Its key from now on.
    pub key: Key,
    /// It removes dirty data.
    pub drops_dirty: bool,
}

/// Progress of background writeback.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum WritebackAt {
    /// Idle.
    #[default]
    Idle,
    /// B2.
    Waiting,
    /// B3: submitted.
    Flying,
    /// B3: completed.
    Completed,
    /// B4.
    Flushing,
    /// B5 is next.
    Marking,
}

/// Background writeback; one batch at a time.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Writeback {
    /// Its progress.
    pub at: WritebackAt,
    /// Its sectors.
    pub mask: u8,
    /// Sectors that have landed.
    pub landed: u8,
    /// It has failed.
    pub failed: bool,
    /// F5, as for clients.
    pub shaken: bool,
    /// Records that it waits for, in the way of clients.
    pub wait: u8,
    /// Its part in the flush of the backing device.
    pub wants: Wants,
    /// The places that are read.
    pub place: [Place; SECTORS],
}

/// Events that may still happen, so that the search ends.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Budget {
    /// Client operations.
    pub ops: u8,
    /// Evictions.
    pub evictions: u8,
    /// Batches of background writeback.
    pub writebacks: u8,
    /// Backing writes that fail.
    pub errors: u8,
    /// Failures of the journal, for good, and flushes of the cache device that fail.
    pub journal_errors: u8,
    /// Flushes of the backing device that fail.
    pub flush_errors: u8,
    /// Power failures.
    pub power_failures: u8,
    /// Host restarts.
    pub restarts: u8,
}

/// The content of a place.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct PlaceContent {
    /// The value that a read returns.
    pub live: u8,
    /// The value that a power failure leaves, or `live`.
    pub durable: u8,
}

/// The whole.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// Events that may still happen.
    pub budget: Budget,
    /// The backing device.
    pub disk: [Disk; SECTORS],
    /// A flush of the backing device is in flight.
    pub disk_flush: bool,
    /// The data on the cache device.
    pub places: [PlaceContent; PLACES],
    /// The index as far as it is durable.
    pub durable: [Key; SECTORS],
    /// Records that are not durable.
    pub records: Few<Record, RECORDS>,
    /// Number of records that are being written.
    pub submitted: u8,
    /// The journal has failed.
    pub journal_failed: bool,
    /// J3: a flush of the cache device has failed, and with it the set.
    pub set_failed: bool,
    /// The index in memory.
    pub index: [Key; SECTORS],
    /// Unpublished copies: place + 1.
    pub unpublished: [u8; SECTORS],
    /// Un-flushed sectors.
    pub current: u8,
    /// Un-flushed sectors that the flush in flight covers.
    pub flushing: u8,
    /// F5: sectors that a failed flush may have cost.
    pub suspect: u8,
    /// F4.
    pub flush_reports: FlushReports,
    /// The clients.
    pub ops: [Op; OPS],
    /// Background writeback.
    pub writeback: Writeback,
    /// Values that clients may see.
    pub registers: [Register; SECTORS],
    /// Clients that have written, as bits.
    pub wrote: u8,
    /// Clients among these without an error for the last failed flush.
    pub ignorant: u8,
}

impl State {
    /// The value that a read of the sector returns at this moment. `None`: an error.
    pub fn serve(&self, sector: usize) -> Option<u8> {
        self.read(
            sector,
            self.copy(sector).or(self.index[sector].place()),
            self.index[sector].is_dirty(),
        )
    }

    /// The value that a read returns that has found this place. R4: clean data that can't be read
    /// is read below.
    pub fn read(&self, sector: usize, place: Option<Place>, dirty: bool) -> Option<u8> {
        match place.map(|place| self.places[usize::from(place)].live) {
            Some(LOST) if dirty => None,
            Some(LOST) | None => Some(self.disk[sector].live()),
            found => found,
        }
    }

    /// The unpublished copy.
    pub fn copy(&self, sector: usize) -> Option<Place> {
        self.unpublished[sector].checked_sub(1)
    }

    /// Un-flushed sectors, as bits.
    pub fn unflushed(&self) -> u8 {
        self.current | self.flushing
    }

    /// Places that were written since the cache device was flushed, as bits.
    pub fn not_durable(&self) -> u16 {
        let fragile = |place: &usize| self.places[*place].live != self.places[*place].durable;
        (0..PLACES).filter(fragile).map(|place| 1 << place).sum()
    }

    /// Returns true if a crash may bring back a key: it is durable, or in a record that is not.
    pub fn may_return(&self, sector: usize) -> bool {
        self.durable[sector] != Key::NONE
            || self
                .records
                .iter()
                .any(|record| usize::from(record.sector) == sector && record.key != Key::NONE)
    }

    /// Changes the index and records that.
    pub fn replace(&mut self, sector: usize, key: Key) {
        let drops_dirty = self.index[sector].is_dirty() && key == Key::NONE;
        self.index[sector] = key;
        self.records.push(Record { sector: sector as u8, key, drops_dirty });
    }

    /// Number of records that must become durable until the newest one of the sector is.
    pub fn newest_record(&self, sector: usize) -> u8 {
        let at = self.records.iter().rposition(|record| usize::from(record.sector) == sector);
        at.map_or(0, |at| at as u8 + 1)
    }

    /// Places that must keep what they hold. `suspicious`: also those that only a crash could bring
    /// back.
    fn used(&self, suspicious: bool) -> u16 {
        let mut used = 0_u16;
        let mut add = |place: Option<Place>| {
            if let Some(place) = place.filter(|place| *place != NOWHERE) {
                used |= 1 << place;
            }
        };
        for sector in 0..SECTORS {
            add(self.index[sector].place());
            add(self.copy(sector));
            add(Some(self.writeback.place[sector])
                .filter(|_| self.writeback.at != WritebackAt::Idle));
            for op in self.ops.iter().filter(|op| op.at != At::Nowhere) {
                add(Some(op.place[sector]));
            }
            if suspicious {
                add(self.durable[sector].place());
            }
        }
        if suspicious {
            self.records.iter().for_each(|record| add(record.key.place()));
        }
        used
    }

    /// Writes data to a place that is free. `j2`: and that no crash brings back. None: no place is
    /// left.
    pub fn allocate(&mut self, value: u8, j2: bool) -> Option<Place> {
        let (used, suspicious) = (self.used(false), self.used(true));
        // Without J2 the worst choice is a place that was freed just now.
        let reused = (0..PLACES).find(|place| !j2 && suspicious & !used & 1 << place != 0);
        let place = reused.or_else(|| (0..PLACES).find(|place| suspicious & 1 << place == 0))?;
        self.places[place].live = value;
        if reused.is_none() {
            self.places[place].durable = GARBAGE;
        }
        Some(place as Place)
    }

    /// Numbers the places in the order of their names in the state, and clears the others: states
    /// that differ in nothing else are the same.
    pub fn tidy_places(&mut self) {
        let mut renamed = [NOWHERE; PLACES];
        let mut next = 0;
        let mut rename = |place: Place| {
            if place == NOWHERE {
                return NOWHERE;
            }
            let new = &mut renamed[usize::from(place)];
            if *new == NOWHERE {
                *new = next;
                next += 1;
            }
            *new
        };
        let mut rename_key = |key: &mut Key| {
            if let Some(place) = key.place() {
                *key = Key::new(rename(place), key.is_dirty());
            }
        };
        self.index.iter_mut().for_each(&mut rename_key);
        self.durable.iter_mut().for_each(&mut rename_key);
        self.records.iter_mut().for_each(|record| rename_key(&mut record.key));
        for copy in &mut self.unpublished {
            *copy = copy.checked_sub(1).map_or(0, |place| rename(place) + 1);
        }
        if self.writeback.at == WritebackAt::Idle {
            self.writeback = Writeback { place: [NOWHERE; SECTORS], ..Writeback::default() };
        }
        for place in &mut self.writeback.place {
            *place = rename(*place);
        }
        for op in &mut self.ops {
            if op.at == At::Nowhere {
                *op = Op { place: [NOWHERE; SECTORS], ..Op::default() };
            }
            for place in &mut op.place {
                *place = rename(*place);
            }
        }
        let old = std::mem::take(&mut self.places);
        for (place, new) in renamed.iter().enumerate().filter(|(_, new)| **new != NOWHERE) {
            self.places[usize::from(*new)] = old[place];
        }
    }
}
