//! Reading the journal at start, and applying what the nodes may lack.

use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::Env;
use ubcache_env::local::join_all;
use ubcache_format::{
    Geometry, JournalEntry, JournalSeq, Key, ReplayRange, Superblock, entry_bytes, scan_bucket_strictly,
    select_replay, torn_entry,
};

use crate::alloc::pins::Pin;
use crate::errors::EngineError;
use crate::index::leaf::Leaf;
use crate::meter::Meter;
use crate::mutants::Mutant;
use crate::set::Set;

/// Reads all journal buckets and picks the entries that count. Changes nothing.
pub(crate) async fn read_journal<E: Env>(
    device: &Meter<E>,
    geometry: &Geometry,
    superblock: &Superblock,
) -> Result<Found, EngineError> {
    const AT_ONCE: u32 = 8;
    let mut scanned = Vec::new();
    let mut torn = None;
    let sectors = u64::from(geometry.bucket_sectors);
    let mut next = 0;
    while next < geometry.journal_buckets {
        let end = (next + AT_ONCE).min(geometry.journal_buckets);
        let reads = (next..end)
            .map(|index| device.read(geometry.bucket_start(geometry.journal_bucket(index)), sectors));
        for buf in join_all(reads).await {
            let buf = buf.map_err(EngineError::io("reading the journal"))?;
            let at = geometry.bucket_start(geometry.journal_bucket(scanned.len() as u32));
            let entries =
                scan_bucket_strictly(geometry, buf.as_slice()).map_err(EngineError::format("journal", at))?;
            let rest = buf.as_slice().get(end_of(geometry, entries.last()) as usize..).unwrap_or(&[]);
            torn = torn.max(torn_entry(geometry, rest));
            scanned.push(entries);
        }
        next = end;
    }
    let at = geometry.bucket_start(geometry.journal_bucket(0));
    let newest = scanned.iter().flatten().max_by_key(|(_, entry)| entry.seq);
    let used_bytes = end_of(geometry, newest);
    let torn_tail = torn > newest.map(|(_, entry)| entry.seq);
    let range =
        select_replay(geometry, scanned, superblock.discard()).map_err(EngineError::format("journal", at))?;
    Ok(Found { range: Rc::new(range), used_bytes, torn_tail })
}

/// Where the next entry would begin in the bucket, in bytes.
fn end_of(geometry: &Geometry, last: Option<&(u32, JournalEntry)>) -> u64 {
    last.map_or(0, |(offset, entry)| u64::from(*offset) + entry_bytes(geometry, &entry.keys))
}

/// The journal as it was found.
pub(crate) struct Found {
    pub range: Rc<ReplayRange>,
    /// Bytes of the newest entry's bucket up to the end of that entry.
    used_bytes: u64,
    /// The write of an entry after the newest one was cut off. Nothing depends on it: it was never durable.
    pub torn_tail: bool,
}

impl<E: Env> Set<E> {
    /// V1: applies the records of the replay range, oldest first. What belongs to a leaf that is not in memory waits for
    /// the leaf if `lazy`, which is for a set whose buckets are not counted: counting brings every leaf in.
    pub(crate) async fn replay(&self, range: &Rc<ReplayRange>, lazy: bool) -> Result<u64, EngineError> {
        let mut replayed = 0;
        *self.to_replay.borrow_mut() = lazy.then(|| range.clone());
        for (entry_index, entry) in range.entries.iter().enumerate() {
            self.journal.state.borrow_mut().replay_floor = Some(entry.seq);
            for (key_index, key) in entry.keys.iter().enumerate() {
                if key.is_placeholder() || self.replay_leaves_out(range, entry.seq, key) {
                    continue;
                }
                replayed += 1;
                if !lazy {
                    self.load_over(key.inode, key.range()).await?;
                }
                let leaves: SmallVec<[Rc<Leaf>; 2]> =
                    self.tree.borrow().leaves_over(key.inode, key.range()).iter().cloned().collect();
                for leaf in leaves {
                    if leaf.state.borrow().body.is_some() {
                        self.replay_into(&leaf, entry.seq, key);
                        continue;
                    }
                    let mut state = leaf.state.borrow_mut();
                    if state.pin.is_none() {
                        state.touched_at = self.env.now();
                    }
                    state.replay.push((entry_index as u32, key_index as u32));
                    self.tree.borrow_mut().pin(&leaf, &mut state, entry.seq);
                }
            }
        }
        self.journal.state.borrow_mut().replay_floor = None;
        Ok(replayed)
    }

    /// What waited for a leaf that has just been loaded.
    pub(crate) fn replay_into_loaded(&self, leaf: &Rc<Leaf>) {
        let waiting = std::mem::take(&mut leaf.state.borrow_mut().replay);
        if waiting.is_empty() {
            return;
        }
        self.env.mark("replayed_into_loaded_leaf");
        let range = self.to_replay.borrow().clone().expect("there is something to replay");
        for (entry, key) in waiting {
            let entry = &range.entries[entry as usize];
            self.replay_into(leaf, entry.seq, &entry.keys[key as usize]);
        }
    }

    /// Every leaf was in memory once.
    pub(crate) fn replay_ends(&self) {
        let is_done = self.tree.borrow().leaves().iter().all(|leaf| leaf.state.borrow().replay.is_empty());
        assert!(is_done, "what waits to be replayed is replayed before anything is taken for free");
        *self.to_replay.borrow_mut() = None;
    }

    fn replay_into(&self, leaf: &Rc<Leaf>, seq: JournalSeq, key: &Key) {
        let new = key.pointer().map(|pointer| (pointer, key.dirty));
        match new {
            None => self.env.mark("replayed_removal"),
            Some((pointer, _)) if !self.buckets.borrow().is_live(pointer) => {
                self.env.mark("replayed_stale_record");
            }
            Some(_) => {
                let state = leaf.state.borrow();
                let buckets = self.buckets.borrow();
                let part = leaf.clip(key.inode, key.range());
                let mut below = state.body.iter().flat_map(|body| body.overlapping(key.inode, part));
                if below.any(|extent| buckets.is_live(extent.pointer)) {
                    self.env.mark("replayed_over_a_key");
                }
            }
        }
        self.replace_in_leaf(leaf, key.inode, key.range(), new, seq);
    }

    /// Never, but for mutants.
    fn replay_leaves_out(&self, range: &ReplayRange, seq: JournalSeq, key: &Key) -> bool {
        let newest = range.newest().is_some_and(|newest| newest.seq == seq);
        (newest && self.mutant(Mutant::ReplaySkipsLastEntry))
            || (key.pointer().is_none() && self.mutant(Mutant::ReplaySkipsRemovals))
    }

    /// Every key of the range is sound, and its pointer may raise a generation. Newest first. The
    /// pins keep the buckets that the range names from being taken for free before it is replayed.
    pub(crate) fn check_replay(&self, range: &ReplayRange) -> Result<Vec<Pin>, EngineError> {
        let mut pins = Vec::new();
        // One for each bucket: there may be millions of records.
        let mut pinned = vec![false; self.geometry.buckets as usize];
        let at = self.geometry.bucket_start(self.geometry.journal_bucket(0));
        for entry in range.entries.iter().rev() {
            for key in &entry.keys {
                key.check_journaled(&self.geometry).map_err(EngineError::format("journal", at))?;
                if let Some(pointer) = key.pointer() {
                    let mut buckets = self.buckets.borrow_mut();
                    let pin = buckets.claim(pointer);
                    let bucket = pointer.bucket(self.geometry.bucket_sectors).0 as usize;
                    if pin.is_some() && !std::mem::replace(&mut pinned[bucket], true) {
                        pins.extend(pin);
                    }
                }
            }
        }
        Ok(pins)
    }
}

/// The ring as it is after replay, and the number of the next entry.
pub(crate) fn ring_after(found: &Found, geometry: &Geometry) -> (super::ring::Ring, JournalSeq) {
    let range = &found.range;
    let newest = range.newest().expect("a replay range has an entry");
    let ring = super::ring::Ring::after(
        range.newest_bucket_index as usize,
        found.used_bytes,
        range.bucket_max_seq.clone(),
        newest.last_seq,
        geometry,
    );
    (ring, newest.seq.next())
}
