//! A new set: tree, volume table, prio chain and journal entry. `repair` and `restore` write it.
//!
//! ```text
//!  1  nodes, volume table, prio chain ──▶ buckets that nothing needs, flush
//!  2  journal entry                       from now on the new set counts
//!  3  superblock, if it has to be written
//! ```

use std::ops::Range;

use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{
    BucketNr, Drops, Inode, JournalEntry, JournalSeq, Key, LastRun, Padding, Pointer, PrioEntry,
    SECTOR_BYTES, SUPERBLOCK_SECTOR, Sector, Stamp, Superblock, UuidEntry, encode_entry,
    encode_prio, encode_uuids,
};

use super::device::flush;
use super::tree::{in_use, no_room, write_entry, write_tree};
use crate::error::{OfflineError, On};
use crate::io::progress::Watcher;
use crate::set::{EntryPlace, View};
use crate::walk::driver_entries;

/// Everything that is written but the keys.
pub(crate) struct NewSet<'a> {
    /// The superblock.
    pub superblock: &'a Superblock,
    /// True if the superblock has to be written.
    pub with_superblock: bool,
    /// The volume table.
    pub uuids: &'a [UuidEntry],
    /// The number of the journal entry: greater than that of any other on the device.
    pub seq: u64,
    /// Bucket of the ring for the entry.
    pub ring_index: u32,
    /// Unreadable and undecodable parts of the ring: index of the bucket, and bytes from its start.
    pub holes: &'a [(u32, Range<u64>)],
    /// True if something newer than the newest entry may be in one of them.
    pub hidden: bool,
    /// The program that ran the present set.
    pub last_run: LastRun,
    /// The action, for errors.
    pub doing: &'static str,
}

/// Writes a set. `places` are buckets that nothing needs before the last step; `entries` returns
/// the prio chain for the places that were used; `whole` is called before the journal entry is
/// written, and fails if `keys` were not all.
pub(crate) async fn write_set<D: Device>(
    target: &D,
    set: &NewSet<'_>,
    keys: impl Iterator<Item = Key>,
    places: impl Iterator<Item = Pointer>,
    entries: impl FnOnce(&[Pointer]) -> Vec<PrioEntry>,
    whole: impl FnOnce() -> Result<(), OfflineError>,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let geometry = &set.superblock.geometry();
    let mut used = Vec::new();
    let mut places = places.inspect(|pointer| used.push(*pointer));
    let uuids = places.next().ok_or_else(no_room)?;
    let chain: Vec<Pointer> = places.by_ref().take(geometry.prio_buckets() as usize).collect();
    if chain.len() < geometry.prio_buckets() as usize {
        return Err(no_room());
    }
    let name = (set.seq, set.superblock.uuid);
    let (root, root_level) = write_tree(geometry, target, name, keys, &mut places, watcher).await?;
    drop(places);
    whole()?;

    write_bytes(target, uuids, &encode_uuids(geometry, set.uuids), set.doing).await?;
    let entries = entries(&used);
    let each = geometry.prio_entries_per_bucket().max(1) as usize;
    for (index, (place, entries)) in chain.iter().zip(entries.chunks(each)).enumerate().rev() {
        let next =
            chain.get(index + 1).or(chain.first()).unwrap_or(place).bucket(geometry.bucket_sectors);
        write_bytes(target, *place, &encode_prio(geometry, 1, next, entries), set.doing).await?;
    }
    flush(target, On::Cache, set.doing).await?;
    // Clean data may be older than the backing device, which was not compared. The chain makes no
    // promise either.
    let stamp =
        Stamp { own_chain: false, drops: Some(Drops::Tool), own_policy: set.last_run.own_policy() };
    let entry = JournalEntry {
        seq: JournalSeq(set.seq),
        last_seq: JournalSeq(set.seq),
        uuid_bucket: Key {
            sectors: u16::try_from(geometry.metadata_bytes() / SECTOR_BYTES).unwrap_or(u16::MAX),
            ..Key::node(Inode(0), Sector(0), 0, uuids)
        },
        root,
        root_level,
        prio_bucket: chain
            .first()
            .map_or(BucketNr(0), |place| place.bucket(geometry.bucket_sectors)),
        keys: Vec::new(),
        padding: Padding::Bound(stamp),
    };
    if !set.hidden {
        fill_holes(target, set, None).await?;
    }
    write_entry(geometry, target, set.ring_index, &entry).await?;
    if set.hidden {
        fill_holes(target, set, Some(&entry)).await?;
    }
    if set.with_superblock {
        let bytes = Buf::from_bytes(&set.superblock.encode());
        let written = target.write(SUPERBLOCK_SECTOR, bytes.into(), Durability::Fua).await;
        written.map_err(|error| OfflineError::Io {
            on: On::Cache,
            doing: set.doing,
            error: error.to_string(),
        })?;
        flush(target, On::Cache, set.doing).await?;
    }
    Ok(())
}

/// Returns the bucket of the ring for an entry: one that is not needed, in which the driver finds
/// the entry as the newest. `any` returns one even if all of the ring is in use.
pub(crate) fn ring_index(view: &View, seq: u64, any: bool) -> Result<u32, OfflineError> {
    let journal = &view.journal;
    let ring = view.geometry.journal_buckets.max(1);
    let after = journal.newest().map_or(0, |newest| (newest.place.index + 1) % ring);
    let free = |index: u32| any || journal.newest().is_none() || !in_use(view, index);
    let found = |index: u32| {
        let mut places = journal.places.clone();
        places.resize(ring as usize, Vec::new());
        let entry = EntryPlace { index, offset: 0, bytes: 0, seq, last_seq: seq };
        places.get_mut(index as usize).is_some_and(|bucket| {
            bucket.retain(|old| old.offset > 0);
            bucket.insert(0, entry);
            true
        }) && driver_entries(&places).last() == Some(&(seq, seq))
    };
    let choices = || [0, after].into_iter().chain(0..ring).filter(|index| free(*index));
    let best = choices().find(|index| found(*index)).or_else(|| choices().next());
    best.ok_or_else(|| OfflineError::NoRoom("all of the journal is in use".to_owned()))
}

/// Overwrites unreadable and undecodable parts of the ring, so that the next reader does not find
/// them. If they may hide something newer, this happens after the new entry is `written`: until
/// then they are the only trace of it. Otherwise it happens before: an interrupted repair is as
/// certain when it is run again.
async fn fill_holes<D: Device>(
    target: &D,
    set: &NewSet<'_>,
    written: Option<&JournalEntry>,
) -> Result<(), OfflineError> {
    if set.holes.is_empty() {
        return Ok(());
    }
    let geometry = &set.superblock.geometry();
    let io = |error: ubcache_env::IoError| OfflineError::Io {
        on: On::Cache,
        doing: "overwriting unreadable parts of the journal",
        error: error.to_string(),
    };
    for (index, hole) in set.holes {
        // The new entry was written over the start of its bucket.
        let new = written.filter(|_| *index == set.ring_index);
        let new = new.map_or(0, |entry| encode_entry(geometry, entry).len() as u64);
        let start = hole.start.max(new);
        if start >= hole.end {
            continue;
        }
        let at = geometry.bucket_start(geometry.journal_bucket(*index)) + start / SECTOR_BYTES;
        let zeroes = Buf::zeroed((hole.end - start) as usize);
        target.write(at, zeroes.into(), Durability::Volatile).await.map_err(io)?;
    }
    target.flush().await.map_err(io)
}

async fn write_bytes<D: Device>(
    target: &D,
    at: Pointer,
    bytes: &[u8],
    doing: &'static str,
) -> Result<(), OfflineError> {
    let written =
        target.write(at.offset, Buf::from_bytes(bytes).into(), Durability::Volatile).await;
    written.map_err(|error| OfflineError::Io { on: On::Cache, doing, error: error.to_string() })
}
