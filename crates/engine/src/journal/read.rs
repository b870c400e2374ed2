//! Reading the journal at start.

use std::rc::Rc;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Env, Sector};
use ubcache_format::{
    EntryHead, Geometry, JournalEntry, JournalSeq, LastRun, ReplayRange, Superblock, parse_entry,
    scan_heads_strictly, select_replay, torn_entry,
};

use super::kept_log::Waiting;
use super::ring::Ring;
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;

/// Bytes of the journal that are read at a time; a bucket at least.
const BYTES_AT_ONCE: u64 = 2 << 20;

/// Reads all journal buckets and picks the entries that count. Changes nothing. In memory, at a
/// time: the buckets with entries that the newest one so far needs.
pub(crate) async fn read_journal<E: Env>(
    env: &E,
    device: &CountedDevice<E>,
    geometry: &Geometry,
    superblock: &Superblock,
) -> Result<Found, EngineError> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut torn = None;
    // The greatest number, and what that entry needs.
    let mut newest: Option<(JournalSeq, JournalSeq)> = None;
    let at_once = (BYTES_AT_ONCE / geometry.bucket_bytes()).max(1) as u32;
    let mut next = 0;
    while next < geometry.journal_buckets {
        let end = next.saturating_add(at_once).min(geometry.journal_buckets);
        for buf in join_all((next..end).map(|index| read_bucket(device, geometry, index))).await {
            let (buf, index) = (buf?, buckets.len() as u32);
            let heads = scan_heads_strictly(geometry, buf.as_slice())
                .map_err(EngineError::format("journal", start_of(geometry, index)))?;
            let rest = buf.as_slice().get(end_of(heads.last()) as usize..).unwrap_or(&[]);
            torn = torn.max(torn_entry(geometry, rest));
            newest = newest.max(heads.iter().map(|(_, head)| (head.seq, head.last_seq)).max());
            buckets.push(Bucket { heads, bytes: Some(buf) });
            env.yield_now().await;
        }
        let needed = newest.map(|(seq, last_seq)| last_seq.min(seq));
        let kept = buckets.iter_mut().filter(|bucket| bucket.bytes.is_some());
        kept.filter(|bucket| !bucket.is_needed(needed)).for_each(|bucket| bucket.bytes = None);
        next = end;
        env.yield_now().await;
    }
    let last = buckets.iter().flat_map(|bucket| &bucket.heads).max_by_key(|(_, head)| head.seq);
    let (used_bytes, torn_tail) = (end_of(last), torn > last.map(|(_, head)| head.seq));
    let needed = last.map(|(_, head)| head.last_seq.min(head.seq));
    let newest = last.map(|(_, head)| head.seq);
    let checksum = last.map_or(0, |(_, head)| head.checksum);
    let mut before = None;
    let mut scanned = Vec::with_capacity(buckets.len());
    for (bucket, index) in buckets.into_iter().zip(0_u32..) {
        before = before.or(bucket.entry_before(geometry, newest));
        scanned.push(bucket.take_apart(device, geometry, index, needed).await?);
        env.yield_now().await;
    }
    let range = select_replay(geometry, scanned, superblock.discard())
        .map_err(EngineError::format("journal", start_of(geometry, 0)))?;
    let newest = range.newest().expect("a replay range has an entry");
    let last_run = LastRun::of(newest, before.as_ref());
    Ok(Found { range: Rc::new(range), used_bytes, torn_tail, last_run, checksum })
}

/// A journal bucket that was read.
struct Bucket {
    /// Offsets in bytes, and what is there.
    heads: Vec<(u32, EntryHead)>,
    /// `None`: nothing in it seemed to be needed.
    bytes: Option<Buf>,
}

impl Bucket {
    fn is_needed(&self, needed: Option<JournalSeq>) -> bool {
        self.heads.iter().any(|(_, head)| Some(head.seq) >= needed)
    }

    /// The entry that ends where the one with this number begins, if that is in the bucket.
    fn entry_before(&self, geometry: &Geometry, seq: Option<JournalSeq>) -> Option<JournalEntry> {
        let at = self.heads.iter().position(|(_, head)| Some(head.seq) == seq)?;
        let (offset, _) = self.heads[at.checked_sub(1)?];
        let bytes = self.bytes.as_ref()?.as_slice().get(offset as usize..)?;
        parse_entry(geometry, bytes).ok().map(|(entry, _)| entry)
    }

    /// Its entries from the number `needed` on, with their offsets in bytes.
    async fn take_apart<E: Env>(
        self,
        device: &CountedDevice<E>,
        geometry: &Geometry,
        index: u32,
        needed: Option<JournalSeq>,
    ) -> Result<Vec<(u32, JournalEntry)>, EngineError> {
        if !self.is_needed(needed) {
            return Ok(Vec::new());
        }
        let bytes = match self.bytes {
            Some(bytes) => bytes,
            // Only if what is needed goes down from one entry to the next.
            None => read_bucket(device, geometry, index).await?,
        };
        let heads = self.heads.into_iter().filter(|(_, head)| Some(head.seq) >= needed);
        let entries = heads.map(|(offset, head)| {
            let at = offset as usize..offset as usize + head.bytes;
            let (entry, _) = parse_entry(geometry, &bytes.as_slice()[at])
                .map_err(EngineError::format("journal", start_of(geometry, index)))?;
            Ok((offset, entry))
        });
        entries.collect()
    }
}

async fn read_bucket<E: Env>(
    device: &CountedDevice<E>,
    geometry: &Geometry,
    index: u32,
) -> Result<Buf, EngineError> {
    let read = device.read(start_of(geometry, index), u64::from(geometry.bucket_sectors));
    read.await.map_err(EngineError::io("reading the journal"))
}

/// First sector of a bucket of the journal.
fn start_of(geometry: &Geometry, index: u32) -> Sector {
    geometry.bucket_start(geometry.journal_bucket(index))
}

/// Offset in the bucket, in bytes, where the next entry would begin.
fn end_of(last: Option<&(u32, EntryHead)>) -> u64 {
    last.map_or(0, |(offset, head)| u64::from(*offset) + head.bytes as u64)
}

/// The journal as it was found.
pub(crate) struct Found {
    pub range: Rc<ReplayRange>,
    /// Checksum of the newest entry on the device.
    checksum: u64,
    /// Bytes of the newest entry's bucket up to the end of that entry.
    used_bytes: u64,
    /// The write of an entry after the newest one was cut off. Nothing depends on it: it was never
    /// durable.
    pub torn_tail: bool,
    /// Program that ran the set last.
    pub last_run: LastRun,
}

impl Found {
    /// Number and checksum of the newest entry on the device.
    pub fn newest_entry(&self) -> (JournalSeq, u64) {
        let newest = self.range.newest().expect("a replay range has an entry");
        (newest.seq, self.checksum)
    }

    /// More entries are to be replayed, behind the newest one on the device. They say of the set
    /// what that one says.
    pub fn add_entries(&mut self, waiting: &Waiting) {
        if waiting.is_empty() {
            return;
        }
        let mut range = (*self.range).clone();
        let mut last = range.newest().expect("a replay range has an entry").clone();
        for keys in waiting {
            last = JournalEntry { seq: last.seq.next(), keys: keys.clone(), ..last };
            range.entries.push(last.clone());
        }
        self.range = Rc::new(range);
    }
}

/// The ring as it is after replay, and the number of the next entry.
pub(crate) fn ring_after(found: &Found, geometry: &Geometry) -> (Ring, JournalSeq) {
    let range = &found.range;
    let newest = range.newest().expect("a replay range has an entry");
    let ring = Ring::after(
        range.newest_bucket_index as usize,
        found.used_bytes,
        range.bucket_max_seq.clone(),
        newest.last_seq,
        geometry,
    );
    (ring, newest.seq.next())
}
