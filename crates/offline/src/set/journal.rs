//! The journal of a set: its entries, and the numbers of those that count (docs/reference/format.md
//! §6).

use std::ops::Range;

use ubcache_format::{Geometry, JournalEntry, LastRun, SECTOR_BYTES};

use super::finding::Location;

/// Greatest number of an entry: beyond it none is left for the next one.
pub(crate) const SEQ_MAX: u64 = u64::MAX / 2;
/// Limit of a repair, if the entries up to [`SEQ_MAX`] leave no number for its own entry.
pub(crate) const SEQ_MAX_WITHOUT_THE_LAST: u64 = SEQ_MAX / 2;
/// Place of an entry, and its numbers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct EntryPlace {
    /// Index of the bucket in the ring.
    pub index: u32,
    /// Bytes from the start of the bucket.
    pub offset: u32,
    /// Bytes on disk.
    pub bytes: u32,
    /// The number of the entry.
    pub seq: u64,
    /// The oldest entry that was needed when it was written.
    pub last_seq: u64,
}

/// An entry that replay needs.
#[derive(Clone, Debug)]
pub struct FoundEntry {
    /// Its place.
    pub place: EntryPlace,
    /// Its version: 0 says that the volume table has entries of 64 bytes.
    pub version: u32,
    /// Its contents.
    pub entry: JournalEntry,
}

/// The journal as it was found.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// All entries of all buckets with right checksums, those of earlier laps among them.
    pub places: Vec<Vec<EntryPlace>>,
    /// Entries that replay needs, oldest first; the last is the newest of all.
    pub entries: Vec<FoundEntry>,
    /// The program that ran the set last, by the newest entry.
    pub last_run: LastRun,
    /// True if entries that replay needs are missing or can not be decoded.
    pub incomplete: bool,
    /// The newest entry that replay needs and that is not there; the newest of all if it is not
    /// known which are missing.
    pub(crate) missing: Option<u64>,
    /// Unreadable and undecodable parts: index of the bucket in the ring, and bytes from its start.
    pub(crate) holes: Vec<(u32, Range<u64>)>,
    /// True if something newer than the newest entry may be in one of them.
    pub(crate) hidden: bool,
}

impl Journal {
    /// The newest entry, which describes the set.
    pub fn newest(&self) -> Option<&FoundEntry> {
        self.entries.last()
    }

    /// Returns true if something newer than the newest entry may be in an unreadable part. Entries
    /// are adjacent: the next one can only be behind the newest in its bucket, or at the start of
    /// the next bucket.
    pub(crate) fn hides_the_newest(&self, geometry: &Geometry) -> bool {
        let Some(newest) = self.newest().map(|newest| newest.place) else {
            return !self.holes.is_empty();
        };
        let behind = u64::from(newest.offset) + u64::from(newest.bytes);
        let next = (newest.index + 1) % geometry.journal_buckets.max(1);
        // Its first entry was readable and is older: the bucket has not been written again.
        let passed = self.places.get(next as usize).and_then(|places| places.first());
        let passed = passed.is_some_and(|first| first.offset == 0 && first.seq < newest.seq);
        self.holes.iter().any(|(index, hole)| {
            *index == newest.index && hole.end > behind
                || *index == next && next != newest.index && !passed
        })
    }

    /// The greatest number of an entry, needed or not; 0 if there is none.
    pub(crate) fn newest_seq(&self) -> u64 {
        let newest = self.newest().map_or(0, |newest| newest.place.seq);
        self.places.iter().flatten().map(|place| place.seq).max().unwrap_or(0).max(newest)
    }

    /// The number of the next entry: greater than that of any that can be where nothing can be
    /// read.
    pub(crate) fn next_seq(&self) -> u64 {
        let hidden: u64 =
            self.holes.iter().map(|(_, hole)| (hole.end - hole.start) / SECTOR_BYTES).sum();
        self.newest_seq().saturating_add(1 + hidden)
    }

    pub(crate) fn place(geometry: &Geometry, place: &EntryPlace) -> Location {
        Location::bucket(geometry, geometry.journal_bucket(place.index))
            .plus(u64::from(place.offset))
    }

    /// Counts the buckets of the ring that have no entry that replay needs.
    pub fn free_buckets(&self) -> usize {
        let needed = self.newest().map_or(0, |newest| newest.place.last_seq);
        self.places.iter().filter(|entries| entries.iter().all(|entry| entry.seq < needed)).count()
    }
}
