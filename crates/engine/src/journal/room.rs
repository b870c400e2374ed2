//! The ledger of room in the ring: who changes the index reserves the records first.
//!
//! ```text
//! blocks of the ring:  in use │ waiting records │ reserved │ spare │ the reserve
//! ```
//!
//! A [`Room`] is the right to append a number of records. It is given when the records that wait, those that others
//! have reserved and these leave the reserve alone, and it goes back when it is dropped. There is no other way to
//! append a record, and one more than was reserved is a bug that stops the program: what it took would be the room of
//! those who make room, and the set would fail with a journal that is full.
//!
//! A step that may need many records is cut: [`Set::step_records`] says how many there are room for at once, in the
//! smallest ring as well, and between two steps comes another reservation.
//!
//! **Nobody waits for ever.** The reserve is a constant of the ring (docs/format.md §6.4), for entries that have to be
//! written so that older ones can be let go: for a prio chain, a new root, a later last_seq.
//!
//! - Who waits for room holds none: a reservation is used in the step that it was made in, and no step awaits. So
//!   nobody waits for somebody who waits.
//! - Making room takes no record. Leaves that lack the oldest records are appended to, or replaced; replacing takes
//!   buckets, and with them a chain and a root at most, which [`Granted`] sets aside one block each for, in the reserve.
//! - Records that wait are written without the reserve, for they were reserved. When an entry does take some of it, it
//!   lets older ones go: its last_seq is that of the leaves written before.
//! - A reservation is never larger than the ring without its reserve, so there is room for it when the others are done.
//!
//! [`Granted`]: super::write::Granted

use ubcache_env::{Env, SectorRange};
use ubcache_format::{JournalSeq, Key};

use crate::errors::EngineError;
use crate::set::Set;

/// A step appends no more records than this, however large the ring is: a poll has an end.
pub(crate) const STEP_RECORDS_MAX: usize = 64;
/// Bytes of the largest record.
pub(super) const RECORD_BYTES: u64 = 24;

/// The right to append records; see the module.
#[must_use = "what is reserved and not used keeps others waiting"]
pub(crate) struct Room<'a, E: Env> {
    set: &'a Set<E>,
    left: usize,
}

impl<E: Env> Room<'_, E> {
    /// Records that may be appended yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Appends a record in the step that changes the index. Says in which entry it is.
    pub fn append(&mut self, key: Key) -> JournalSeq {
        assert!(self.left > 0, "a step appends no more records than it reserved");
        self.left -= 1;
        let reserved = &self.set.journal.reserved;
        reserved.set(reserved.get() - 1);
        self.set.journal_append(key)
    }
}

impl<E: Env> Drop for Room<'_, E> {
    fn drop(&mut self) {
        if self.left > 0 {
            let reserved = &self.set.journal.reserved;
            reserved.set(reserved.get() - self.left);
        }
    }
}

impl<E: Env> Set<E> {
    /// Room for so many records, now or not at all.
    pub(crate) fn try_reserve(&self, records: usize) -> Option<Room<'_, E>> {
        if !self.journal_takes(records) {
            return None;
        }
        self.journal.reserved.set(self.journal.reserved.get() + records);
        Some(Room { set: self, left: records })
    }

    /// Waits for room for so many records.
    pub(crate) async fn reserve(&self, records: usize) -> Result<Room<'_, E>, EngineError> {
        let mut waited = false;
        loop {
            if let Some(error) = self.journal_failed() {
                return Err(error);
            }
            if let Some(room) = self.try_reserve(records) {
                return Ok(room);
            }
            let held = self.journal.reserved.get();
            assert_eq!(held, 0, "nobody keeps what is reserved while others wait for it");
            if !waited {
                self.env.mark("journal_full");
                waited = true;
            }
            self.journal_room_wanted().await;
        }
    }

    /// Number of records that one step may reserve.
    pub(crate) fn step_records(&self) -> usize {
        self.journal.state.borrow().ring.step_records()
    }
}

/// Number of records that it takes to remove every key of a range.
pub(crate) fn removal_records(range: SectorRange) -> usize {
    range.sectors().div_ceil(crate::index::leaf::HOLE_SECTORS_MAX) as usize
}
