//! The journal: all entries of the ring, those that count, and whether the driver would find the same
//! (docs/reference/format.md §6).

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use ubcache_env::local::{Event, join};
use ubcache_env::{Device, SectorRange};
use ubcache_format::{Geometry, JournalEntry, LastRun, Padding, SECTOR_BYTES, entry_version, parse_entry};

use crate::ahead::{Ahead, Manner, Piece};
use crate::disk::{Phase, Watcher, read};
use crate::finding::{Finding, Kind, Place};
use crate::scan::Scanned;
use crate::walk::named_by;

/// After so many buckets, entries are forgotten that the newest so far does not need.
const FORGET_AFTER: u32 = 8;
/// Buckets whose bytes stay in memory until the next ones say what is needed of them: mostly nothing.
const BUCKETS_IN_MEMORY: usize = 2;
/// Behind this there is no number for the next entry that is greater still.
pub(crate) const SEQ_MAX: u64 = u64::MAX / 2;
/// What a repair takes, where what it takes up to [`SEQ_MAX`] leaves no number for its own entry.
const SEQ_MAX_WITHOUT_THE_LAST: u64 = SEQ_MAX / 2;
/// More open entries than this come near the limit of the driver.
const MANY_OPEN: u64 = 15_000;

/// Where an entry is, and its numbers.
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
    /// Where it is.
    pub place: EntryPlace,
    /// Its version: 0 says that the volume table has entries of 64 bytes.
    pub version: u32,
    /// What it says.
    pub entry: JournalEntry,
}

/// The journal as it was found.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// All entries of all buckets with right checksums, those of earlier laps among them.
    pub places: Vec<Vec<EntryPlace>>,
    /// Those that replay needs, oldest first; the last is the newest of all.
    pub entries: Vec<FoundEntry>,
    /// Who ran the set last, by the newest.
    pub last_run: LastRun,
    /// Whether entries that replay needs are missing or can not be decoded.
    pub incomplete: bool,
    /// The newest entry that replay needs and that is not there; the newest of all if it is not known which are missing.
    pub(crate) missing: Option<u64>,
    /// What can't be read or makes no sense: index of the bucket in the ring, and bytes from its start.
    pub(crate) holes: Vec<(u32, Range<u64>)>,
    /// Whether something newer than the newest entry may be in one of them.
    pub(crate) hidden: bool,
}

/// How to read the ring.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Reading {
    /// The flag of the superblock: entries at the beginning of the range may be missing.
    pub discard: bool,
    /// Take entries that lie behind the end of what is valid in their bucket.
    pub salvage: bool,
}

impl Journal {
    /// The newest entry, which describes the set.
    pub fn newest(&self) -> Option<&FoundEntry> {
        self.entries.last()
    }

    /// Whether something newer than the newest entry may be where nothing can be read. Entries stand one behind the
    /// other: the next one can only be behind the newest in its bucket, or at the start of the next bucket.
    fn hides_the_newest(&self, geometry: &Geometry) -> bool {
        let Some(newest) = self.newest().map(|newest| newest.place) else { return !self.holes.is_empty() };
        let behind = u64::from(newest.offset) + u64::from(newest.bytes);
        let next = (newest.index + 1) % geometry.journal_buckets.max(1);
        // Its first entry was readable and is older: the bucket has not been written again.
        let passed = self.places.get(next as usize).and_then(|places| places.first());
        let passed = passed.is_some_and(|first| first.offset == 0 && first.seq < newest.seq);
        self.holes.iter().any(|(index, hole)| {
            *index == newest.index && hole.end > behind || *index == next && next != newest.index && !passed
        })
    }

    /// Who ran the set last. Reads the entry before the newest, if that says more.
    async fn read_last_run<D: Device>(&self, device: &D, geometry: &Geometry) -> LastRun {
        let Some(newest) = self.newest() else { return LastRun::Other };
        let mut before = None;
        if matches!(newest.entry.padding, Padding::Unbound(_)) {
            let here = self.places.get(newest.place.index as usize);
            let place = here.and_then(|places| {
                places.iter().find(|place| place.offset + place.bytes == newest.place.offset)
            });
            let start = geometry.bucket_start(geometry.journal_bucket(newest.place.index));
            if let Some(place) = place
                && let Ok(bytes) = read(device, start, u64::from(geometry.bucket_sectors)).await
            {
                let bytes = bytes.as_slice().get(place.offset as usize..).unwrap_or_default();
                before = parse_entry(geometry, bytes).ok().map(|(entry, _)| entry);
            }
        }
        LastRun::of(&newest.entry, before.as_ref())
    }

    /// The greatest number of an entry, needed or not; 0 if there is none.
    pub(crate) fn newest_seq(&self) -> u64 {
        let newest = self.newest().map_or(0, |newest| newest.place.seq);
        self.places.iter().flatten().map(|place| place.seq).max().unwrap_or(0).max(newest)
    }

    /// The number of the next entry: greater than that of any that can be where nothing can be read.
    pub(crate) fn next_seq(&self) -> u64 {
        let hidden: u64 = self.holes.iter().map(|(_, hole)| (hole.end - hole.start) / SECTOR_BYTES).sum();
        self.newest_seq().saturating_add(1 + hidden)
    }

    fn place(geometry: &Geometry, place: &EntryPlace) -> Place {
        Place::bucket(geometry, geometry.journal_bucket(place.index)).plus(u64::from(place.offset))
    }

    /// Buckets of the ring that nothing in them keeps from being written again.
    pub fn free_buckets(&self) -> usize {
        let needed = self.newest().map_or(0, |newest| newest.place.last_seq);
        self.places.iter().filter(|entries| entries.iter().all(|entry| entry.seq < needed)).count()
    }
}

/// Reads the whole ring. Memory: 32 bytes for each entry on the device, all of those that replay needs, and what is read
/// ahead.
pub(crate) async fn read_journal<D: Device>(
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    (manner, watcher): (Manner<'_>, &dyn Watcher),
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let mut findings = Vec::new();
    let mut keep = |finding| findings.push(finding);
    let mut journal = read_up_to(SEQ_MAX, device, geometry, reading, (manner, watcher), &mut keep).await;
    // A repair has to write an entry that comes after all of these.
    if reading.salvage && journal.next_seq() > SEQ_MAX {
        findings.clear();
        let mut keep = |finding| findings.push(finding);
        journal =
            read_up_to(SEQ_MAX_WITHOUT_THE_LAST, device, geometry, reading, (manner, watcher), &mut keep)
                .await;
    }
    findings.into_iter().for_each(report);
    journal
}

/// Entries that may be needed, by number. Of those whose bytes are not kept the bucket is in memory still.
#[derive(Default)]
struct Found(BTreeMap<u64, (EntryPlace, Option<Bytes>)>);

type Bytes = Box<[u8]>;

impl Found {
    /// Takes the entries of a bucket.
    fn take(&mut self, scanned: &Scanned) {
        let (log, behind) = scanned.places.split_at(scanned.log);
        for place in log {
            self.0.insert(place.seq, (*place, None));
        }
        for place in behind {
            self.0.entry(place.seq).or_insert((*place, None));
        }
    }

    /// Whatever is older than the newest so far needs is not going to be replayed.
    fn forget(&mut self) {
        if let Some((newest, _)) = self.0.values().next_back() {
            self.0 = self.0.split_off(&newest.last_seq.min(newest.seq));
        }
    }

    /// Keeps the bytes of entries of a bucket that is going to leave the memory, as far as the newest so far needs them.
    fn keep(&mut self, places: &[EntryPlace], bytes: &[u8]) {
        let Some((newest, _)) = self.0.values().next_back() else { return };
        let needed = newest.last_seq.min(newest.seq);
        for place in places.iter().filter(|place| place.seq >= needed) {
            let (from, upto) = (place.offset as usize, place.offset as usize + place.bytes as usize);
            if let Some((kept_place, kept @ None)) = self.0.get_mut(&place.seq)
                && kept_place == place
            {
                *kept = bytes.get(from..upto).map(Box::from);
            }
        }
    }

    /// The newest so far.
    fn newest(&self) -> Option<&EntryPlace> {
        self.0.values().next_back().map(|(newest, _)| newest)
    }

    /// What it says, if its bucket is in memory.
    fn newest_entry(&self, geometry: &Geometry, in_memory: &VecDeque<(u32, Piece)>) -> Option<JournalEntry> {
        let newest = self.newest()?;
        let (_, piece) = in_memory.iter().find(|(index, _)| *index == newest.index)?;
        let (bytes, _) = piece.read().ok()?;
        Some(parse_entry(geometry, bytes.get(newest.offset as usize..)?).ok()?.0)
    }

    /// What the entries say. Where `last_seq` goes down, some are needed after all that were not kept.
    async fn decode<D: Device>(self, device: &D, geometry: &Geometry) -> Result<Vec<FoundEntry>, String> {
        let mut entries = Vec::with_capacity(self.0.len());
        for (place, kept) in self.0.into_values() {
            let bytes = match kept {
                Some(bytes) => bytes,
                None => {
                    let bucket = geometry.bucket_start(geometry.journal_bucket(place.index));
                    let sectors = u64::from(geometry.bucket_sectors);
                    let bytes = read(device, bucket, sectors).await?;
                    let rest = bytes.as_slice().get(place.offset as usize..).unwrap_or_default();
                    rest.iter().copied().take(place.bytes as usize).collect()
                }
            };
            let parsed = parse_entry(geometry, &bytes).map_err(|error| error.to_string());
            let (entry, _) = parsed?;
            entries.push(FoundEntry { place, version: entry_version(&bytes), entry });
        }
        Ok(entries)
    }
}

async fn read_up_to<D: Device>(
    limit: u64,
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    (manner, watcher): (Manner<'_>, &dyn Watcher),
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let (told, named) = (Event::default(), Cell::default());
    let ring = async {
        let early = (&told, &named);
        let journal = read_ring(limit, device, geometry, reading, (manner, watcher), early, report).await;
        told.set();
        journal
    };
    let early = async {
        told.wait().await;
        manner.early.read_all(device, named.take()).await;
    };
    join(ring, early).await.0
}

/// Reads the ring. As soon as an entry seems to be the newest, what it names is told.
async fn read_ring<D: Device>(
    limit: u64,
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    (manner, watcher): (Manner<'_>, &dyn Watcher),
    (told, named): (&Event, &Cell<Vec<SectorRange>>),
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let sectors = u64::from(geometry.bucket_sectors);
    let start = |index: u32| geometry.bucket_start(geometry.journal_bucket(index));
    let total = u64::from(geometry.journal_buckets) * sectors * SECTOR_BYTES;
    let phase = Phase::new(watcher, "journal", total);
    let mut journal = Journal::default();
    let mut found = Found::default();
    // The newest entry that lies behind the end of what is valid in its bucket.
    let mut behind: Option<(u64, u32, u32)> = None;
    let mut undecodable = false;
    let ranges: Vec<SectorRange> =
        (0..geometry.journal_buckets).map(|index| SectorRange::new(start(index), sectors)).collect();
    let (shape, salvage) = (*geometry, reading.salvage);
    let look = Arc::new(move |index: usize, piece: &Piece| match piece.read() {
        Ok((bytes, _)) => Scanned::of(&shape, (index as u32, limit), bytes, salvage),
        Err(_) => Scanned::default(),
    });
    let mut ahead = Ahead::new(device, &ranges, Manner { around: salvage, ..manner }, look);
    let mut in_memory: VecDeque<(u32, Piece)> = VecDeque::new();
    while let Some((index, piece, scanned)) = ahead.next().await {
        let index = index as u32;
        let place = Place::bucket(geometry, geometry.journal_bucket(index));
        phase.add(sectors * SECTOR_BYTES);
        match piece.read() {
            Ok((_, holes)) => journal.holes.extend(holes.iter().map(|hole| (index, hole.clone()))),
            Err(error) => {
                journal.holes.push((index, 0..sectors * SECTOR_BYTES));
                let detail = format!("journal bucket {index}: {error}");
                report(Finding::new(Kind::Unreadable, place, detail));
            }
        }
        found.take(&scanned);
        let block = geometry.block_bytes();
        undecodable |= scanned.undecodable.is_some() || !scanned.senseless.is_empty();
        journal.holes.extend(scanned.senseless.iter().map(|at| (index, *at..at + block)));
        if let Some((at, why)) = &scanned.undecodable {
            report(Finding::new(Kind::JournalUndecodable, place.plus(*at), why));
            journal.incomplete = true;
            // Whoever salvages has it among all of these.
            if !reading.salvage {
                journal.holes.push((index, *at..at + block));
            }
        }
        behind = behind.max(scanned.behind.map(|(offset, seq)| (seq, index, offset)));
        if (index + 1).is_multiple_of(FORGET_AFTER) || index + 1 == geometry.journal_buckets {
            found.forget();
        }
        // Behind the newest entry stand those of an earlier lap.
        let older = |newest: &EntryPlace| scanned.places.iter().all(|place| place.seq < newest.seq);
        if !told.is_set()
            && !scanned.places.is_empty()
            && found.newest().is_some_and(older)
            && let Some(entry) = found.newest_entry(geometry, &in_memory)
        {
            named.set(named_by(geometry, &entry));
            told.set();
        }
        journal.places.push(scanned.places);
        in_memory.push_back((index, piece));
        let stay = if index + 1 == geometry.journal_buckets { 0 } else { BUCKETS_IN_MEMORY };
        while in_memory.len() > stay
            && let Some((index, piece)) = in_memory.pop_front()
        {
            if let (Ok((bytes, _)), Some(places)) = (piece.read(), journal.places.get(index as usize)) {
                found.keep(places, bytes);
            }
            ahead.done(piece);
        }
    }
    match found.decode(device, geometry).await {
        Ok(entries) => {
            journal.entries = entries;
            journal.last_run = journal.read_last_run(device, geometry).await;
        }
        Err(error) => {
            let ring = Place::bucket(geometry, geometry.journal_bucket(0));
            report(Finding::new(Kind::Unreadable, ring, format_args!("journal, read again: {error}")));
            journal.incomplete = true;
        }
    }
    // A torn entry is the last one that was written. What has a newer one behind it is damaged.
    if let (Some((seq, index, offset)), Some(newest)) = (behind, journal.newest())
        && seq > newest.place.seq
    {
        let place = Place::bucket(geometry, geometry.journal_bucket(index)).plus(u64::from(offset));
        let detail = format!(
            "entry {seq} lies behind something that is no entry; the newest of those that count is {}",
            newest.place.seq
        );
        report(Finding::new(Kind::JournalGap, place, detail));
        journal.incomplete = true;
    }
    check(geometry, &mut journal, reading.discard, report);
    journal.hidden = undecodable || journal.hides_the_newest(geometry);
    if journal.incomplete && journal.missing.is_none() || journal.hidden {
        journal.missing = journal.newest().map(|newest| newest.place.seq);
    }
    journal
}

fn check(geometry: &Geometry, journal: &mut Journal, discard: bool, report: &mut dyn FnMut(Finding)) {
    let ring = Place::bucket(geometry, geometry.journal_bucket(0));
    let Some(newest) = journal.newest() else {
        let detail = format!("no valid entry in {} journal buckets", geometry.journal_buckets);
        report(Finding::new(Kind::JournalEmpty, ring, detail));
        journal.incomplete = true;
        return;
    };
    let newest = newest.place;
    let mut complete = true;
    if newest.last_seq > newest.seq {
        let detail = format!("entry {} needs entries from {} on", newest.seq, newest.last_seq);
        report(Finding::new(Kind::JournalGap, Journal::place(geometry, &newest), detail));
        journal.missing = Some(newest.seq);
        complete = false;
    }
    let mut missing = None;
    let mut expected = newest.last_seq;
    for (position, found) in journal.entries.iter().enumerate() {
        let place = Journal::place(geometry, &found.place);
        let seq = found.place.seq;
        if seq > expected && !(discard && position == 0) {
            let detail = format!(
                "entries {expected} to {} are missing, {} to {} are needed",
                seq - 1,
                newest.last_seq,
                newest.seq
            );
            report(Finding::new(Kind::JournalGap, place, detail));
            missing = missing.max(Some(seq - 1));
            complete = false;
        }
        expected = seq.saturating_add(1);
    }
    journal.incomplete |= !complete;
    journal.missing = journal.missing.max(missing);
    check_order(geometry, journal, report);
    let open = newest.seq.saturating_sub(newest.last_seq);
    let free = journal.free_buckets();
    if open > MANY_OPEN || free < 3.min(geometry.journal_buckets as usize / 2) {
        let detail = format!(
            "{free} of {} journal buckets are free, {} entries are open",
            geometry.journal_buckets,
            open + 1
        );
        report(Finding::new(Kind::JournalFull, ring, detail));
    }
    let driver = as_the_driver(&journal.places);
    let agrees = driver.last().is_some_and(|&(seq, _)| seq == newest.seq)
        && journal.entries.iter().all(|e| driver.binary_search_by_key(&e.place.seq, |&(seq, _)| seq).is_ok());
    if !agrees && complete {
        let seen = match (driver.first(), driver.last()) {
            (Some(first), Some(last)) => format!("{} to {}", first.0, last.0),
            _ => "nothing".to_owned(),
        };
        let detail = format!(
            "the whole ring has entries {} to {}, the driver finds {seen}",
            newest.last_seq, newest.seq
        );
        report(Finding::new(Kind::JournalDriver, ring, detail));
    }
}

/// W1 to W4 of docs/reference/format.md §6.3.
fn check_order(geometry: &Geometry, journal: &Journal, report: &mut dyn FnMut(Finding)) {
    let buckets = geometry.journal_buckets.max(1);
    for pair in journal.entries.windows(2) {
        let (old, new) = (&pair[0].place, &pair[1].place);
        if old.seq.checked_add(1) != Some(new.seq) {
            continue;
        }
        let place = Journal::place(geometry, new);
        let follows = if old.index == new.index {
            new.offset > old.offset
        } else {
            new.index == (old.index + 1) % buckets && new.offset == 0
        };
        if !follows {
            let detail = format!(
                "entry {} is in journal bucket {} at byte {}, entry {} before it in {} at byte {}",
                new.seq, new.index, new.offset, old.seq, old.index, old.offset
            );
            report(Finding::new(Kind::JournalOrder, place, detail));
        }
        if new.last_seq < old.last_seq {
            let detail = format!(
                "entry {} needs {}, entry {} before it {}",
                new.seq, new.last_seq, old.seq, old.last_seq
            );
            report(Finding::new(Kind::JournalLastSeq, place, detail));
        }
    }
}

/// The entries that the driver ends up with (docs/reference/format.md §6.3): seq and last_seq, ascending.
pub(crate) fn as_the_driver(places: &[Vec<EntryPlace>]) -> Vec<(u64, u64)> {
    let count = places.len();
    let mut probe = Probe { places, read: vec![false; count], list: BTreeMap::new() };
    let Some(first) = probe.find_any() else { return Vec::new() };
    let (mut low, mut middle) = (first, first);
    let mut high = (low + 1..count).find(|&index| probe.read[index]).unwrap_or(count);
    while low + 1 < high {
        let before = probe.greatest();
        middle = (low + high) / 2;
        probe.useful(middle);
        if probe.greatest() == before {
            high = middle;
        } else {
            low = middle;
        }
    }
    let mut index = middle;
    loop {
        index = index.checked_sub(1).unwrap_or(count - 1);
        if index == middle {
            break;
        }
        if !probe.read[index] && !probe.useful(index) {
            break;
        }
    }
    probe.list.into_iter().collect()
}

struct Probe<'a> {
    places: &'a [Vec<EntryPlace>],
    read: Vec<bool>,
    list: BTreeMap<u64, u64>,
}

impl Probe<'_> {
    fn find_any(&mut self) -> Option<usize> {
        let count = self.places.len();
        for i in 0..count {
            let index = (i as u32).wrapping_mul(2_654_435_769) as usize % count;
            if self.read[index] {
                break;
            }
            if self.useful(index) {
                return Some(index);
            }
        }
        (0..count).find(|&index| !self.read[index] && self.useful(index))
    }

    fn greatest(&self) -> Option<u64> {
        self.list.keys().next_back().copied()
    }

    /// Reads a bucket: whether it has an entry that is not expired by what was read so far.
    fn useful(&mut self, index: usize) -> bool {
        self.read[index] = true;
        let mut useful = false;
        for entry in &self.places[index] {
            self.list = self.list.split_off(&entry.last_seq);
            let expired = self.list.range(entry.seq..).any(|(_, &last)| entry.seq < last);
            if expired || self.list.contains_key(&entry.seq) {
                continue;
            }
            self.list.insert(entry.seq, entry.last_seq);
            useful = true;
        }
        useful
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
