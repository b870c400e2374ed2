//! The kept memory of the journal (V3): a copy of the records that are not on the device yet, which
//! outlives the process.
//!
//! ```text
//!  append of a record   the key goes behind all others, in the same step
//!  write of an entry    its checksum goes behind all others, then it is submitted
//!  … is durable         its keys go
//!  a start              the keys behind the newest entry on the device are the journal's again
//! ```
//!
//! A start writes down anew, behind what it has found, all of that that counts, in one append, and
//! gives up the older bytes then: so it may be killed at any moment. Both fit, because no more than
//! half of the memory is ever used otherwise.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::{Env, KeptMemory};
use ubcache_format::{Geometry, JournalSeq, Key};

use super::kept_log::{
    ANCHOR_BYTES, Anchor, BEGIN_BYTES, ENTRY_BYTES, KEY_BYTES, Records, Waiting, parse,
};
use super::read::Found;
use crate::rules::{Rule, Rules};

/// Room for anchors of entries that are written, and for giving up.
const HEADROOM: usize = 8 * ANCHOR_BYTES + BEGIN_BYTES + 8;

/// Content of the kept memory, as a start finds it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum KeptOutcome {
    /// It goes on from the newest entry of the journal on the device, and holds so many records
    /// behind that: no request that was answered is lost.
    Continued {
        /// Records that were not on the device.
        records: u64,
    },
    /// It was empty: this is the first start with it, or the host has restarted since.
    Fresh,
    /// It does not fit the journal on the device: somebody else has used the set, or the run that
    /// left it had failed. It was not used.
    Mismatch,
}

/// The kept memory at a start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct KeptState {
    /// Content that was found.
    pub outcome: KeptOutcome,
    /// A number that stays the same for as long as each start continues the one before. Requests
    /// that were answered under the same number are not lost. It says so even if a start after a
    /// mismatch was killed before it could report that.
    pub lineage: u64,
}

/// Bytes of kept memory with which no request ever waits for it. Of entries in use there are five
/// at most: one being written, three that wait, and the open one. Each has 32 KiB of records, half
/// as much again in the kept memory; and a start has them twice.
pub const KEPT_BYTES: usize = 1 << 20;

/// The journal's part in it.
#[derive(Debug)]
pub(crate) struct Kept {
    memory: Rc<dyn KeptMemory>,
    /// Used at most, but for the headroom.
    most: usize,
    starts: u64,
    lineage: u64,
    /// Bytes in it.
    used: Cell<usize>,
    places: RefCell<Places>,
}

/// Places are counted from the first byte that this run has put there.
#[derive(Default, Debug)]
struct Places {
    front: usize,
    /// Entries with keys, and entries with an anchor, each with its place.
    entries: VecDeque<(JournalSeq, usize)>,
    anchors: VecDeque<(JournalSeq, usize)>,
    buffer: Vec<u8>,
}

impl Kept {
    /// Least number of bytes with which a set can work.
    pub const BYTES_MIN: usize = 6 << 10;

    /// Takes over what an earlier run has left.
    pub fn open<E: Env>(
        env: &E,
        memory: Rc<dyn KeptMemory>,
        found: &Found,
        geometry: &Geometry,
        (starts, rules): (u64, Rules),
    ) -> (Kept, KeptState, Waiting) {
        let capacity = memory.capacity();
        assert!(capacity >= Kept::BYTES_MIN, "a kept memory has {} bytes", Kept::BYTES_MIN);
        let (newest, checksum) = found.newest_entry();
        let bytes = memory.read();
        let log = parse(&bytes).filter(|log| !log.given_up);
        let fitting = |anchor: &&Anchor| {
            (anchor.seq, anchor.checksum) == (newest, checksum)
                && (anchor.starts == starts || anchor.starts.wrapping_add(1) == starts)
        };
        let anchor = log.as_ref().and_then(|log| log.anchors.iter().find(fitting).copied());
        let log = log.filter(|_| anchor.is_some());
        let superseded = log.as_ref().map_or(bytes.len(), |log| log.superseded);
        let entries = log.into_iter().flat_map(|log| log.entries);
        let waiting: Waiting =
            entries.filter(|(seq, _)| *seq > newest).map(|(_, keys)| keys).collect();
        let sound = |key: &Key| key.check_journaled(geometry).is_ok();
        let sound = waiting.iter().flatten().all(sound);
        let (anchor, waiting) = if sound { (anchor, waiting) } else { (None, Waiting::new()) };
        let superseded = if sound { superseded } else { bytes.len() };
        let outcome = match anchor {
            Some(_) => {
                let records = waiting.iter().map(|keys| keys.len() as u64).sum();
                env.mark(if records > 0 { "kept_replayed" } else { "kept_nothing_waits" });
                KeptOutcome::Continued { records }
            }
            None if bytes.is_empty() => KeptOutcome::Fresh,
            None => {
                env.mark("kept_mismatch");
                KeptOutcome::Mismatch
            }
        };
        let lineage = anchor.map_or_else(|| env.random(), |anchor| anchor.lineage);
        let kept = Kept {
            memory,
            most: capacity / 2 - HEADROOM,
            starts,
            lineage,
            used: Cell::new(bytes.len()),
            places: RefCell::default(),
        };
        let mut copied: &[Vec<Key>] = &[];
        if rules.keeps(Rule::V3CopiedAtStart) {
            copied = &waiting;
        }
        kept.write_anew(superseded, (newest, checksum), copied);
        (kept, KeptState { outcome, lineage }, waiting)
    }

    /// Puts down what counts, and gives up all else.
    fn write_anew(&self, superseded: usize, newest: (JournalSeq, u64), waiting: &[Vec<Key>]) {
        self.memory.drop_front(superseded);
        let older = self.used.get() - superseded;
        let places = &mut *self.places.borrow_mut();
        let mut bytes = Vec::new();
        bytes.begin();
        places.anchors.push_back((newest.0, bytes.len()));
        bytes.anchor(self.anchor(newest));
        for (seq, keys) in (newest.0.0 + 1..).map(JournalSeq).zip(waiting) {
            places.entries.push_back((seq, bytes.len()));
            bytes.entry(seq);
            keys.iter().for_each(|key| bytes.key(key));
        }
        self.memory.append(&bytes);
        self.memory.drop_front(older);
        self.used.set(bytes.len());
    }

    fn anchor(&self, (seq, checksum): (JournalSeq, u64)) -> Anchor {
        Anchor { seq, checksum, starts: self.starts, lineage: self.lineage }
    }

    /// So many records have room.
    #[inline]
    pub fn has_room(&self, records: usize) -> bool {
        // They may fill an entry and begin the next one.
        self.used.get() + 2 * ENTRY_BYTES + records * KEY_BYTES <= self.most
    }

    fn append(&self, places: &Places) {
        self.memory.append(&places.buffer);
        self.used.set(self.used.get() + places.buffer.len());
    }

    /// The key has come to the entry.
    pub fn add(&self, seq: JournalSeq, key: &Key) {
        let places = &mut *self.places.borrow_mut();
        places.buffer.clear();
        if places.entries.back().is_none_or(|(last, _)| *last != seq) {
            places.entries.push_back((seq, places.front + self.used.get()));
            places.buffer.entry(seq);
        }
        places.buffer.key(key);
        self.append(places);
    }

    /// The entry is about to be submitted.
    pub fn submits(&self, seq: JournalSeq, checksum: u64) {
        let places = &mut *self.places.borrow_mut();
        places.buffer.clear();
        places.anchors.push_back((seq, places.front + self.used.get()));
        places.buffer.anchor(self.anchor((seq, checksum)));
        self.append(places);
    }

    /// The entry is on the device, durably.
    pub fn durable(&self, durable: JournalSeq) {
        let places = &mut *self.places.borrow_mut();
        while places.entries.front().is_some_and(|(seq, _)| *seq <= durable) {
            places.entries.pop_front();
        }
        while places.anchors.front().is_some_and(|(seq, _)| *seq < durable) {
            places.anchors.pop_front();
        }
        let needed = [places.entries.front(), places.anchors.front()].into_iter().flatten();
        let front = needed.map(|(_, place)| *place).min().expect("the anchor of the entry");
        let bytes = front - places.front;
        self.memory.drop_front(bytes);
        places.front = front;
        self.used.set(self.used.get() - bytes);
    }

    /// Gives its records up, as data that they name may be lost: no start may use them.
    pub fn give_up(&self) {
        give_up(&*self.memory);
        self.used.set(self.used.get() + 8);
    }
}

/// Gives the records up, if there are any: data that they name may be lost.
pub(crate) fn give_up(memory: &dyn KeptMemory) {
    let mut bytes = Vec::new();
    bytes.given_up();
    memory.append(&bytes);
}
