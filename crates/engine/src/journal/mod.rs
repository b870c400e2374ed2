//! The journal: records of index changes, committed in groups.
//!
//! A record is appended in the same step as the change it records. Entries are written one at a
//! time, in order, each after a flush of the cache device and with FUA (J1), so that an entry is
//! durable no earlier than everything that completed before it.
//!
//! | module | holds |
//! |---|---|
//! | [`ring`] | places of entries in the ring; the journal buckets that are still needed |
//! | [`pins`] | the oldest record that the index needs, and how many leaves need some |
//! | [`reservation`] | the right to append records: the ledger of the ring |
//! | [`header`] | the part of every entry that is no record |
//! | [`write`] | appending, group commit, waiting for durability, the writer task |
//! | [`kept`], [`kept_log`] | records that outlive the process before they are written (V3) |
//! | [`read`] | reading the journal at start |
//!
//! The journal knows no leaf and no bucket: the index sets its pins, and makes room when
//! [`Journal::space_wanted`] asks for it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::local::{Lock, Notify};
use ubcache_env::{Env, IoError, Nanos};
use ubcache_format::{BucketNr, JournalSeq, Key, Stamp};

use crate::context::Context;
use crate::errors::EngineError;
use crate::rules::Rule;
use kept::Kept;
use kept_log::Waiting;
use pins::EntryPins;

mod header;
pub(crate) mod kept;
pub(crate) mod kept_log;
pub(crate) mod pins;
pub(crate) mod read;
pub(crate) mod reservation;
pub(crate) mod ring;
pub(crate) mod write;

/// The part of every entry that is no record.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub uuid_bucket: Key,
    pub root: Key,
    pub root_level: u16,
    pub prio_bucket: BucketNr,
    pub stamp: Stamp,
}

#[derive(Debug)]
struct State {
    header: Header,
    ring: ring::Ring,
    /// The entry that records are appended to.
    open_seq: JournalSeq,
    open_keys: Vec<Key>,
    open_bytes: u64,
    /// Empty: memory for the keys of the next entry.
    spare_keys: Vec<Key>,
    opened_at: Option<Nanos>,
    /// Full entries that wait for their turn.
    sealed: VecDeque<(JournalSeq, Vec<Key>)>,
    /// Somebody waits for everything up to here.
    wanted: JournalSeq,
    /// The same, and it is about what the header says: it may use the reserve of the ring.
    wanted_header: JournalSeq,
    durable: JournalSeq,
    /// Entries for chains and new roots that somebody was granted and that are not written yet.
    granted: u64,
    /// Replay is not done up to here: entries from here on stay.
    replay_floor: Option<JournalSeq>,
    failed: Option<IoError>,
    /// The writer has ended.
    closed: bool,
}

/// An entry with more keys than this leaves no memory for another.
const SPARE_KEYS_MAX: usize = 1024;

impl State {
    /// Takes the records of the open entry and opens the next one.
    fn seal(&mut self) -> (JournalSeq, Vec<Key>) {
        let spare = std::mem::take(&mut self.spare_keys);
        let sealed = (self.open_seq, std::mem::replace(&mut self.open_keys, spare));
        self.open_seq = self.open_seq.next();
        self.open_bytes = 0;
        self.opened_at = None;
        sealed
    }

    /// An earlier run had this entry, open or waiting for its turn; the last of them is open again.
    fn reopen(&mut self, keys: Vec<Key>, now: Nanos) {
        if !self.open_keys.is_empty() {
            let sealed = self.seal();
            self.sealed.push_back(sealed);
        }
        self.open_bytes = keys.iter().map(|key| key.words() as u64 * 8).sum();
        self.open_keys = keys;
        self.opened_at = Some(now);
    }

    /// The records of an entry are not needed any more.
    fn give_back(&mut self, mut keys: Vec<Key>) {
        if keys.capacity() <= SPARE_KEYS_MAX {
            keys.clear();
            self.spare_keys = keys;
        }
    }
}

pub(crate) struct Journal<E: Env> {
    context: Context<E>,
    /// Entries that the index needs.
    pins: Rc<EntryPins>,
    state: RefCell<State>,
    /// Memory that outlives the process.
    kept: Option<Kept>,
    /// Records that somebody may append and has not yet.
    reserved: Cell<usize>,
    /// Held by the task that is the next to get room for records.
    queue: Lock,
    /// See [`Journal::put_chains_first`].
    chains_first: Cell<bool>,
    /// Something to do for the writer.
    wake: Notify,
    /// An entry became durable, or the journal failed.
    progress: Notify,
    /// The ring needs room.
    reclaim: Notify,
    /// The ring has more room, or other uses of it are allowed, or the journal failed.
    room: Notify,
}

impl<E: Env> Journal<E> {
    /// A journal whose next entry is `next`. `waiting`: records of that one and of later ones,
    /// which an earlier run could not write.
    pub fn new(
        context: Context<E>,
        pins: Rc<EntryPins>,
        header: Header,
        ring: ring::Ring,
        next: JournalSeq,
        (kept, waiting): (Option<Kept>, Waiting),
    ) -> Journal<E> {
        let durable = JournalSeq(next.0 - 1);
        let journal = Journal {
            context,
            pins,
            state: RefCell::new(State {
                header,
                ring,
                open_seq: next,
                open_keys: Vec::new(),
                open_bytes: 0,
                spare_keys: Vec::new(),
                opened_at: None,
                sealed: VecDeque::new(),
                wanted: durable,
                wanted_header: durable,
                durable,
                granted: 0,
                replay_floor: None,
                failed: None,
                closed: false,
            }),
            kept,
            reserved: Cell::new(0),
            queue: Lock::default(),
            chains_first: Cell::new(false),
            wake: Notify::default(),
            progress: Notify::default(),
            reclaim: Notify::default(),
            room: Notify::default(),
        };
        for keys in waiting {
            journal.state.borrow_mut().reopen(keys, journal.context.env.now());
        }
        journal
    }

    /// The set has failed, and what records name may be lost.
    pub fn give_up_kept(&self) {
        if let Some(kept) = &self.kept {
            self.context.env.mark("kept_given_up");
            kept.give_up();
        }
    }

    /// The set has failed: nothing more is written.
    pub fn fail(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.failed.get_or_insert(IoError::Gone);
        }
        self.wake_all();
    }

    /// Wakes everybody, so that they look whether the set has failed or ends.
    pub fn wake_all(&self) {
        self.wake.notify_all();
        self.progress.notify_all();
        self.reclaim.notify_all();
        self.room.notify_all();
    }

    /// The set has stopped: nothing more is written.
    fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.wake_all();
    }

    /// Error of those who want something written, if nothing is.
    fn failed(&self) -> Option<EngineError> {
        if self.state.borrow().closed {
            return Some(EngineError::Stopping);
        }
        let failed = self.state.borrow().failed.clone();
        failed.map(|source| EngineError::Io { what: "writing the journal", source })
    }

    /// The kept memory, if this rule of it is switched off.
    #[cfg(feature = "mutants")]
    pub(crate) fn kept_without(&self, rule: Rule) -> Option<&Kept> {
        self.kept.as_ref().filter(|_| !self.keeps(rule))
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.context.keeps(rule)
    }

    /// Everything up to here is durable.
    pub fn durable(&self) -> JournalSeq {
        self.state.borrow().durable
    }

    /// The entry that the next record goes to.
    pub fn open_seq(&self) -> JournalSeq {
        self.state.borrow().open_seq
    }

    /// The oldest entry that a start would read.
    pub fn needed_from(&self) -> JournalSeq {
        self.state.borrow().ring.needed_from()
    }

    /// Number of entries that a start would replay.
    pub fn active_entries(&self) -> u64 {
        self.state.borrow().ring.active()
    }

    /// Keeps entries from this one on: they are not replayed yet. `None`: all are.
    pub fn keep_from(&self, entry: Option<JournalSeq>) {
        self.state.borrow_mut().replay_floor = entry;
        self.room.notify_all();
    }
}
