//! The journal: records of index changes, committed in groups.
//!
//! A record is appended in the same step as the change it records. Entries are written one at a
//! time, in order, each after a flush of the cache device and with FUA (J1), so that an entry is
//! durable no earlier than everything that completed before it.
//!
//! | module | holds |
//! |---|---|
//! | [`ring`] | where the next entry goes; which journal buckets are still needed |
//! | [`room`] | the right to append records: the ledger of the ring |
//! | [`write`] | appending, group commit, waiting for durability, the writer task |
//! | [`reclaim`] | the task that writes old leaves so that the ring gets room |
//! | [`replay`] | reading the journal at start |

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ubcache_env::Nanos;
use ubcache_env::local::Notify;
use ubcache_format::{BucketNr, JournalSeq, Key, Mark};

pub(crate) mod reclaim;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod room;
pub(crate) mod write;

/// The part of every entry that is no record.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub uuid_bucket: Key,
    pub root: Key,
    pub root_level: u16,
    pub prio_bucket: BucketNr,
    pub mark: Mark,
}

#[derive(Debug)]
pub(crate) struct State {
    pub header: Header,
    pub ring: ring::Ring,
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
    pub replay_floor: Option<JournalSeq>,
    failed: Option<ubcache_env::IoError>,
    /// The writer has ended.
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Journal {
    pub state: RefCell<State>,
    /// Records that somebody may append and has not yet.
    reserved: Cell<usize>,
    /// Something to do for the writer.
    wake: Notify,
    /// An entry became durable, or the journal failed.
    progress: Notify,
    /// The ring needs room.
    reclaim: Notify,
}

/// An entry with more keys than this leaves no memory for another.
const SPARE_KEYS_MAX: usize = 1024;

impl State {
    /// The entry that the next record goes to.
    pub fn open_seq(&self) -> JournalSeq {
        self.open_seq
    }

    /// Takes the records of the open entry and opens the next one.
    fn seal(&mut self) -> (JournalSeq, Vec<Key>) {
        let spare = std::mem::take(&mut self.spare_keys);
        let sealed = (self.open_seq, std::mem::replace(&mut self.open_keys, spare));
        self.open_seq = self.open_seq.next();
        self.open_bytes = 0;
        self.opened_at = None;
        sealed
    }

    /// The records of an entry are not needed any more.
    fn give_back(&mut self, mut keys: Vec<Key>) {
        if keys.capacity() <= SPARE_KEYS_MAX {
            keys.clear();
            self.spare_keys = keys;
        }
    }
}

impl Journal {
    /// A journal whose next entry is `next`.
    pub fn new(header: Header, ring: ring::Ring, next: JournalSeq) -> Journal {
        let durable = JournalSeq(next.0 - 1);
        Journal {
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
            reserved: Cell::new(0),
            wake: Notify::default(),
            progress: Notify::default(),
            reclaim: Notify::default(),
        }
    }

    /// The set has failed: nothing more is written.
    pub fn fail(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.failed.get_or_insert(ubcache_env::IoError::Gone);
        }
        self.wake_all();
    }

    /// The set has stopped: nothing more is written.
    pub fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.wake_all();
    }

    /// Wakes everybody, so that they look whether the set has failed or ends.
    pub fn wake_all(&self) {
        self.wake.notify_all();
        self.progress.notify_all();
        self.reclaim.notify_all();
    }
}
