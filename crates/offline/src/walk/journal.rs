//! The journal: all entries of the ring, those that count, and a comparison with the search of the
//! Linux driver (docs/reference/format.md §6).

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ubcache_env::local::{Event, join};
use ubcache_env::{Device, SectorRange};
use ubcache_format::{
    Geometry, JournalEntry, Key, LastRun, Padding, SECTOR_BYTES, entry_version, parse_entry,
};

use super::driver_journal::driver_entries;
use super::journal_bucket::Scanned;
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::io::read_ahead::{ReadAhead, ReadOptions, ReadRange};
use crate::set::{
    EntryPlace, Finding, FindingKind, FoundEntry, Journal, Location, SEQ_MAX,
    SEQ_MAX_WITHOUT_THE_LAST,
};

/// Buckets after which entries are dropped that the newest so far does not need.
const FORGET_AFTER: u32 = 8;
/// Buckets whose bytes stay in memory until the next ones say what is needed of them: mostly
/// nothing.
const BUCKETS_IN_MEMORY: usize = 2;
/// More open entries than this come near the limit of the driver.
const MANY_OPEN: u64 = 15_000;

/// Options of reading the ring.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Reading {
    /// The flag of the superblock: entries at the beginning of the range may be missing.
    pub discard: bool,
    /// Take entries that lie behind the end of what is valid in their bucket.
    pub salvage: bool,
}

/// Reads the whole ring. Memory: 32 bytes for each entry on the device, all of those that replay
/// needs, and what is read ahead.
pub(crate) async fn read_journal<D: Device>(
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    (options, watcher): (ReadOptions<'_>, &dyn Watcher),
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let mut findings = Vec::new();
    let mut keep = |finding| findings.push(finding);
    let mut journal =
        read_up_to(SEQ_MAX, device, geometry, reading, (options, watcher), &mut keep).await;
    // A repair has to write an entry that comes after all of these.
    if reading.salvage && journal.next_seq() > SEQ_MAX {
        findings.clear();
        let mut keep = |finding| findings.push(finding);
        journal = read_up_to(
            SEQ_MAX_WITHOUT_THE_LAST,
            device,
            geometry,
            reading,
            (options, watcher),
            &mut keep,
        )
        .await;
    }
    findings.into_iter().for_each(report);
    journal
}

/// Ranges of the first prio set, the volume table and the root, which an entry names.
pub(crate) fn named_by(geometry: &Geometry, entry: &JournalEntry) -> Vec<SectorRange> {
    let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
    let prio = geometry
        .is_usable(entry.prio_bucket)
        .then(|| SectorRange::new(geometry.bucket_start(entry.prio_bucket), sectors));
    let node = |key: &Key| {
        let pointer = key.pointer().filter(|_| key.check_node(geometry).is_ok())?;
        Some(SectorRange::new(pointer.offset, key.sectors.into()))
    };
    prio.into_iter().chain([&entry.uuid_bucket, &entry.root].into_iter().filter_map(node)).collect()
}

/// Entries that may be needed, by number. Of those whose bytes are not kept the bucket is in memory
/// still.
#[derive(Default)]
struct Found(BTreeMap<u64, (EntryPlace, Option<Bytes>)>);

type Bytes = Box<[u8]>;

impl Found {
    /// Adds the entries of a bucket.
    fn take(&mut self, scanned: &Scanned) {
        let (log, behind) = scanned.places.split_at(scanned.log);
        for place in log {
            self.0.insert(place.seq, (*place, None));
        }
        for place in behind {
            self.0.entry(place.seq).or_insert((*place, None));
        }
    }

    /// Drops entries that are older than the newest so far needs.
    fn forget(&mut self) {
        if let Some((newest, _)) = self.0.values().next_back() {
            self.0 = self.0.split_off(&newest.last_seq.min(newest.seq));
        }
    }

    /// Keeps the bytes of entries of a bucket that is going to leave the memory, as far as the
    /// newest so far needs them.
    fn keep(&mut self, places: &[EntryPlace], bytes: &[u8]) {
        let Some((newest, _)) = self.0.values().next_back() else { return };
        let needed = newest.last_seq.min(newest.seq);
        for place in places.iter().filter(|place| place.seq >= needed) {
            let (from, upto) =
                (place.offset as usize, place.offset as usize + place.bytes as usize);
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

    /// Decodes the newest entry, if its bucket is in memory.
    fn newest_entry(
        &self,
        geometry: &Geometry,
        in_memory: &VecDeque<(u32, ReadRange)>,
    ) -> Option<JournalEntry> {
        let newest = self.newest()?;
        let (_, piece) = in_memory.iter().find(|(index, _)| *index == newest.index)?;
        let (bytes, _) = piece.read().ok()?;
        Some(parse_entry(geometry, bytes.get(newest.offset as usize..)?).ok()?.0)
    }

    /// Decodes the entries. An entry that was not kept is read again: `last_seq` may go down, so
    /// that it is needed after all.
    async fn decode<D: Device>(
        self,
        device: &D,
        geometry: &Geometry,
    ) -> Result<Vec<FoundEntry>, String> {
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
    (options, watcher): (ReadOptions<'_>, &dyn Watcher),
    report: &mut dyn FnMut(Finding),
) -> Journal {
    let hint = PrefetchHint::default();
    let ring = async {
        let journal =
            read_ring(limit, device, geometry, reading, (options, watcher), &hint, report).await;
        hint.ready.set();
        journal
    };
    let prefetch = async {
        hint.ready.wait().await;
        options.prefetched.read_all(device, hint.ranges.take()).await;
    };
    join(ring, prefetch).await.0
}

/// Ranges that the newest entry names: they are read while the rest of the ring is.
#[derive(Default)]
struct PrefetchHint {
    /// The ranges are known, or the ring has been read.
    ready: Event,
    ranges: Cell<Vec<SectorRange>>,
}

/// Reads the ring. Gives the hint as soon as an entry seems to be the newest.
async fn read_ring<D: Device>(
    limit: u64,
    device: &D,
    geometry: &Geometry,
    reading: Reading,
    (options, watcher): (ReadOptions<'_>, &dyn Watcher),
    hint: &PrefetchHint,
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
    let ranges: Vec<SectorRange> = (0..geometry.journal_buckets)
        .map(|index| SectorRange::new(start(index), sectors))
        .collect();
    let (shape, salvage) = (*geometry, reading.salvage);
    let inspect = Arc::new(move |index: usize, piece: &ReadRange| match piece.read() {
        Ok((bytes, _)) => Scanned::of(&shape, (index as u32, limit), bytes, salvage),
        Err(_) => Scanned::default(),
    });
    let mut ahead =
        ReadAhead::new(device, &ranges, ReadOptions { around_errors: salvage, ..options }, inspect);
    let mut in_memory: VecDeque<(u32, ReadRange)> = VecDeque::new();
    while let Some((index, piece, scanned)) = ahead.next().await {
        let index = index as u32;
        let place = Location::bucket(geometry, geometry.journal_bucket(index));
        phase.add(sectors * SECTOR_BYTES);
        match piece.read() {
            Ok((_, holes)) => journal.holes.extend(holes.iter().map(|hole| (index, hole.clone()))),
            Err(error) => {
                journal.holes.push((index, 0..sectors * SECTOR_BYTES));
                let detail = format!("journal bucket {index}: {error}");
                report(Finding::new(FindingKind::Unreadable, place, detail));
            }
        }
        found.take(&scanned);
        let block = geometry.block_bytes();
        undecodable |= scanned.undecodable.is_some() || !scanned.senseless.is_empty();
        journal.holes.extend(scanned.senseless.iter().map(|at| (index, *at..at + block)));
        if let Some((at, why)) = &scanned.undecodable {
            report(Finding::new(FindingKind::JournalUndecodable, place.plus(*at), why));
            journal.incomplete = true;
            // A salvage has it among these already.
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
        if !hint.ready.is_set()
            && !scanned.places.is_empty()
            && found.newest().is_some_and(older)
            && let Some(entry) = found.newest_entry(geometry, &in_memory)
        {
            hint.ranges.set(named_by(geometry, &entry));
            hint.ready.set();
        }
        journal.places.push(scanned.places);
        in_memory.push_back((index, piece));
        let stay = if index + 1 == geometry.journal_buckets { 0 } else { BUCKETS_IN_MEMORY };
        while in_memory.len() > stay
            && let Some((index, piece)) = in_memory.pop_front()
        {
            if let (Ok((bytes, _)), Some(places)) =
                (piece.read(), journal.places.get(index as usize))
            {
                found.keep(places, bytes);
            }
            ahead.done(piece);
        }
    }
    match found.decode(device, geometry).await {
        Ok(entries) => {
            journal.entries = entries;
            journal.last_run = read_last_run(&journal, device, geometry).await;
        }
        Err(error) => {
            let ring = Location::bucket(geometry, geometry.journal_bucket(0));
            report(Finding::new(
                FindingKind::Unreadable,
                ring,
                format_args!("journal, read again: {error}"),
            ));
            journal.incomplete = true;
        }
    }
    // A torn entry is the last one that was written. What has a newer one behind it is damaged.
    if let (Some((seq, index, offset)), Some(newest)) = (behind, journal.newest())
        && seq > newest.place.seq
    {
        let place =
            Location::bucket(geometry, geometry.journal_bucket(index)).plus(u64::from(offset));
        let detail = format!(
            "entry {seq} follows an invalid entry; the newest valid one is {}",
            newest.place.seq
        );
        report(Finding::new(FindingKind::JournalGap, place, detail));
        journal.incomplete = true;
    }
    check(geometry, &mut journal, reading.discard, report);
    journal.hidden = undecodable || journal.hides_the_newest(geometry);
    if journal.incomplete && journal.missing.is_none() || journal.hidden {
        journal.missing = journal.newest().map(|newest| newest.place.seq);
    }
    journal
}

fn check(
    geometry: &Geometry,
    journal: &mut Journal,
    discard: bool,
    report: &mut dyn FnMut(Finding),
) {
    let ring = Location::bucket(geometry, geometry.journal_bucket(0));
    let Some(newest) = journal.newest() else {
        let detail = format!("no valid entry in {} journal buckets", geometry.journal_buckets);
        report(Finding::new(FindingKind::JournalEmpty, ring, detail));
        journal.incomplete = true;
        return;
    };
    let newest = newest.place;
    let mut complete = true;
    if newest.last_seq > newest.seq {
        let detail = format!("entry {} needs entries from {} on", newest.seq, newest.last_seq);
        report(Finding::new(FindingKind::JournalGap, Journal::place(geometry, &newest), detail));
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
            report(Finding::new(FindingKind::JournalGap, place, detail));
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
        report(Finding::new(FindingKind::JournalFull, ring, detail));
    }
    let driver = driver_entries(&journal.places);
    let agrees = driver.last().is_some_and(|&(seq, _)| seq == newest.seq)
        && journal
            .entries
            .iter()
            .all(|e| driver.binary_search_by_key(&e.place.seq, |&(seq, _)| seq).is_ok());
    if !agrees && complete {
        let seen = match (driver.first(), driver.last()) {
            (Some(first), Some(last)) => format!("{} to {}", first.0, last.0),
            _ => "nothing".to_owned(),
        };
        let detail = format!(
            "the whole ring has entries {} to {}, the driver finds {seen}",
            newest.last_seq, newest.seq
        );
        report(Finding::new(FindingKind::JournalDriver, ring, detail));
    }
}

/// FW1 to FW4 of docs/reference/format.md §6.3.
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
            report(Finding::new(FindingKind::JournalOrder, place, detail));
        }
        if new.last_seq < old.last_seq {
            let detail = format!(
                "entry {} needs {}, entry {} before it {}",
                new.seq, new.last_seq, old.seq, old.last_seq
            );
            report(Finding::new(FindingKind::JournalLastSeq, place, detail));
        }
    }
}

/// Reads the [`LastRun`] from the newest entry, and from the one before it if that says more.
async fn read_last_run<D: Device>(journal: &Journal, device: &D, geometry: &Geometry) -> LastRun {
    let Some(newest) = journal.newest() else { return LastRun::Other };
    let mut before = None;
    if matches!(newest.entry.padding, Padding::Unbound(_)) {
        let here = journal.places.get(newest.place.index as usize);
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

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
