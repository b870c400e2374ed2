//! The journal: all entries of the ring, those that count, and whether the driver would find the same
//! (docs/format.md §6).

use std::collections::BTreeMap;
use std::ops::Range;

use ubcache_env::Device;
use ubcache_env::local::join_all;
use ubcache_format::{FormatError, Geometry, JournalEntry, SECTOR_BYTES, entry_version, parse_entry};

use crate::disk::{Phase, Spare, Watcher, read_around, read_into};
use crate::finding::{Finding, Kind, Place};

/// Journal buckets that are read at once.
const AT_ONCE: u32 = 8;
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

/// Reads the whole ring. Memory: 24 bytes for each entry on the device, and all of those that replay needs.
pub(crate) async fn read_journal<D: Device>(
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    watcher: &dyn Watcher,
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let mut findings = Vec::new();
    let mut keep = |finding| findings.push(finding);
    let mut journal = read_up_to(SEQ_MAX, device, geometry, reading, watcher, &mut keep).await;
    // A repair has to write an entry that comes after all of these.
    if reading.salvage && journal.next_seq() > SEQ_MAX {
        findings.clear();
        let mut keep = |finding| findings.push(finding);
        journal = read_up_to(SEQ_MAX_WITHOUT_THE_LAST, device, geometry, reading, watcher, &mut keep).await;
    }
    findings.into_iter().for_each(report);
    journal
}

async fn read_up_to<D: Device>(
    limit: u64,
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    watcher: &dyn Watcher,
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let sectors = u64::from(geometry.bucket_sectors);
    let total = u64::from(geometry.journal_buckets) * sectors * SECTOR_BYTES;
    let phase = Phase::new(watcher, "journal", total);
    let mut journal = Journal::default();
    let mut found: BTreeMap<u64, FoundEntry> = BTreeMap::new();
    // The newest entry that lies behind the end of what is valid in its bucket.
    let mut behind: Option<(u64, u32, u32)> = None;
    let mut undecodable = false;
    let spare = Spare::new(u64::from(AT_ONCE) * sectors * SECTOR_BYTES);
    let mut start = 0;
    while start < geometry.journal_buckets {
        let end = (start + AT_ONCE).min(geometry.journal_buckets);
        let reads = (start..end).map(async |index| {
            let at = geometry.bucket_start(geometry.journal_bucket(index));
            match read_into(device, at, sectors, &spare).await {
                Err(_) if reading.salvage => read_around(device, at, sectors).await,
                whole => whole.map(|bytes| (bytes, Vec::new())),
            }
        });
        for (index, bytes) in (start..end).zip(join_all(reads).await) {
            let place = Place::bucket(geometry, geometry.journal_bucket(index));
            let entries = match bytes {
                Ok((bytes, holes)) => {
                    journal.holes.extend(holes.into_iter().map(|hole| (index, hole)));
                    let mut scanned =
                        scan(geometry, (index, limit), bytes.as_slice(), place, &mut found, report);
                    if reading.salvage {
                        scanned.salvage(geometry, (index, limit), bytes.as_slice(), &mut found);
                        let block = geometry.block_bytes();
                        let holes = senseless(geometry, bytes.as_slice(), limit);
                        let before = journal.holes.len();
                        journal.holes.extend(holes.map(|at| (index, at..at + block)));
                        undecodable |= journal.holes.len() > before;
                    }
                    spare.give(bytes);
                    scanned
                }
                Err(error) => {
                    journal.holes.push((index, 0..sectors * SECTOR_BYTES));
                    report(Finding::new(
                        Kind::Unreadable,
                        place,
                        format_args!("journal bucket {index}: {error}"),
                    ));
                    Scanned::default()
                }
            };
            if let Some(at) = entries.undecodable {
                journal.incomplete = true;
                undecodable = true;
                // Whoever salvages has it among all of these.
                if !reading.salvage {
                    journal.holes.push((index, at..at + geometry.block_bytes()));
                }
            }
            journal.places.push(entries.places);
            behind = behind.max(entries.behind.map(|(offset, seq)| (seq, index, offset)));
            phase.add(sectors * SECTOR_BYTES);
        }
        // Whatever is older than the newest so far needs is not going to be replayed.
        if let Some(newest) = found.values().next_back() {
            found = found.split_off(&newest.place.last_seq.min(newest.place.seq));
        }
        start = end;
    }
    journal.entries = found.into_values().collect();
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

#[derive(Default)]
struct Scanned {
    places: Vec<EntryPlace>,
    /// Where an entry is that makes no sense, in bytes.
    undecodable: Option<u64>,
    /// The newest entry behind the end of the log: its offset and number.
    behind: Option<(u32, u64)>,
}

fn scan(
    geometry: &Geometry,
    (index, limit): (u32, u64),
    bytes: &[u8],
    place: Place,
    found: &mut BTreeMap<u64, FoundEntry>,
    report: &mut dyn FnMut(Finding),
) -> Scanned {
    let mut places: Vec<EntryPlace> = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        match parse_entry(geometry, rest) {
            Ok((entry, _)) if entry.seq.0 > limit => {
                let detail = format!("an entry has the number {}, which nobody can have reached", entry.seq);
                report(Finding::new(Kind::JournalUndecodable, place.plus(at as u64), detail));
                return Scanned { places, undecodable: Some(at as u64), behind: None };
            }
            Ok((entry, used)) => {
                let spot = EntryPlace {
                    index,
                    offset: at as u32,
                    bytes: used as u32,
                    seq: entry.seq.0,
                    last_seq: entry.last_seq.0,
                };
                places.push(spot);
                found.insert(spot.seq, FoundEntry { place: spot, version: entry_version(rest), entry });
                at += used.max(1);
            }
            Err(error) if ends_the_log(&error) => break,
            Err(error) => {
                report(Finding::new(Kind::JournalUndecodable, place.plus(at as u64), &error));
                return Scanned { places, undecodable: Some(at as u64), behind: None };
            }
        }
    }
    Scanned { behind: newest_behind(geometry, bytes, at), places, undecodable: None }
}

impl Scanned {
    /// Takes what is valid behind the first thing in the bucket that is not.
    fn salvage(
        &mut self,
        geometry: &Geometry,
        (index, limit): (u32, u64),
        bytes: &[u8],
        found: &mut BTreeMap<u64, FoundEntry>,
    ) {
        let end = self.places.last().map_or(0, |last| last.offset as usize + last.bytes as usize);
        let block = geometry.block_bytes() as usize;
        let magic = geometry.journal_magic().to_le_bytes();
        let mut at = end;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let entry = (rest.get(8..16) == Some(magic.as_slice()))
                .then(|| parse_entry(geometry, rest).ok())
                .flatten()
                .filter(|(entry, _)| entry.seq.0 <= limit);
            let Some((entry, used)) = entry else {
                at += block;
                continue;
            };
            let place = EntryPlace {
                index,
                offset: at as u32,
                bytes: used as u32,
                seq: entry.seq.0,
                last_seq: entry.last_seq.0,
            };
            self.places.push(place);
            found.entry(place.seq).or_insert(FoundEntry { place, version: entry_version(rest), entry });
            at += used.max(block);
        }
    }
}

/// Where in a bucket entries with right checksums stand that make no sense, in bytes. All of them, not only the first:
/// what ends the log before them now may not be there any more when a repair has written.
fn senseless<'a>(geometry: &'a Geometry, bytes: &'a [u8], limit: u64) -> impl Iterator<Item = u64> + 'a {
    let magic = geometry.journal_magic().to_le_bytes();
    let blocks = (0..bytes.len()).step_by(geometry.block_bytes() as usize);
    blocks.filter_map(move |at| {
        let rest = bytes.get(at..).filter(|rest| rest.get(8..16) == Some(magic.as_slice()))?;
        let senseless = match parse_entry(geometry, rest) {
            Ok((entry, _)) => entry.seq.0 > limit,
            Err(error) => !ends_the_log(&error),
        };
        senseless.then_some(at as u64)
    })
}

/// Whether a log ends here in order: no magic number, a length that can't be, or a torn entry.
fn ends_the_log(error: &FormatError) -> bool {
    matches!(error.at, 0 | 8 | 28)
}

/// The newest valid entry at any block from `end` on. In a bucket that was used before there are many old ones.
fn newest_behind(geometry: &Geometry, bytes: &[u8], end: usize) -> Option<(u32, u64)> {
    let block = geometry.block_bytes() as usize;
    let magic = geometry.journal_magic().to_le_bytes();
    let mut newest: Option<(u32, u64)> = None;
    for at in (end..bytes.len()).step_by(block) {
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.get(8..16) == Some(magic.as_slice())
            && let Ok((entry, _)) = parse_entry(geometry, rest)
            && entry.seq.0 <= SEQ_MAX
            && newest.is_none_or(|(_, seq)| entry.seq.0 > seq)
        {
            newest = Some((at as u32, entry.seq.0));
        }
    }
    newest
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

/// W1 to W4 of docs/format.md §6.3.
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

/// The entries that the driver ends up with (docs/format.md §6.3): seq and last_seq, ascending.
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
