//! The ledger of room in the ring: who changes the index reserves the records first.
//!
//! ```text
//! blocks of the ring:  in use │ waiting records │ reserved │ spare │ the reserve
//! ```
//!
//! A [`Reservation`] is the right to append a number of records. It is given when the records that
//! wait, those that others have reserved and these leave the reserve alone, and it goes back when
//! it is dropped. There is no other way to append a record, and one more than was reserved is a bug
//! that stops the program: what it took would be the room of those who make room, and the set would
//! fail with a journal that is full.
//!
//! A step that may need many records is cut: [`Journal::step_records`] says how many there are room
//! for at once, in the smallest ring as well, and between two steps comes another reservation.
//!
//! **Nobody waits for ever.** The reserve is a constant of the ring (docs/reference/format.md
//! §6.4), for entries that have to be written so that older ones can be let go: for a prio chain, a
//! new root, a later last_seq.
//!
//! - Who waits for room holds none: a reservation is used in the step that it was made in, and no
//!   step awaits. So nobody waits for somebody who waits.
//! - Making room takes no record. Leaves that lack the oldest records are appended to, or replaced;
//!   replacing takes buckets, and with them a chain and a root at most, which [`Granted`] sets
//!   aside one block each for, in the reserve.
//! - Records that wait are written without the reserve, for they were reserved. When an entry does
//!   take some of it, it lets older ones go: its last_seq is that of the leaves written before.
//! - Who waits stands in a queue, in order of request, and only its first member is woken by an
//!   entry: work for each request does not grow with the number that wait. Whoever comes while
//!   somebody waits stands behind, so that a large request is not overtaken for ever by small ones.
//! - A reservation is never larger than the ring without its reserve, so there is room for it when
//!   the others are done.

use ubcache_env::Env;
use ubcache_env::local::first;
use ubcache_format::{JournalSeq, Key};

use super::Journal;
use super::ring::RECORD_BYTES;
use crate::errors::EngineError;

/// The right to append records; see the module.
#[must_use = "what is reserved and not used keeps others waiting"]
pub(crate) struct Reservation<'a, E: Env> {
    journal: &'a Journal<E>,
    left: usize,
}

impl<E: Env> Reservation<'_, E> {
    /// Records that may be appended yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Appends a record in the step that changes the index. Says in which entry it is.
    pub fn append(&mut self, key: Key) -> JournalSeq {
        assert!(self.left > 0, "a step appends no more records than it reserved");
        self.left -= 1;
        let reserved = &self.journal.reserved;
        reserved.set(reserved.get() - 1);
        self.journal.append(key)
    }
}

impl<E: Env> Drop for Reservation<'_, E> {
    fn drop(&mut self) {
        if self.left > 0 {
            let reserved = &self.journal.reserved;
            reserved.set(reserved.get() - self.left);
        }
    }
}

impl<E: Env> Journal<E> {
    /// Room for so many records, now or not at all; not before those who wait for some.
    pub fn try_reserve(&self, records: usize) -> Option<Reservation<'_, E>> {
        if self.queue.is_locked() { None } else { self.take_room(records) }
    }

    fn take_room(&self, records: usize) -> Option<Reservation<'_, E>> {
        if !self.takes(records) {
            return None;
        }
        if !self.has_kept_room(records) {
            self.context.env.mark("kept_full");
            // The entry that is written next gives some back.
            self.hurry();
            return None;
        }
        self.reserved.set(self.reserved.get() + records);
        Some(Reservation { journal: self, left: records })
    }

    /// The kept memory takes so many records beside those that others have reserved.
    #[inline]
    fn has_kept_room(&self, records: usize) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.has_room(self.reserved.get() + records))
    }

    /// Waits for room for so many records, in order of request.
    pub async fn reserve(&self, records: usize) -> Result<Reservation<'_, E>, EngineError> {
        if let Some(room) = self.try_reserve(records) {
            return Ok(room);
        }
        // Only the first in the queue is woken by progress: thousands of requests can wait here,
        // and an entry has room for a few of them.
        let _turn = self.queue.lock().await;
        let mut waited = false;
        loop {
            if let Some(error) = self.failed() {
                return Err(error);
            }
            if let Some(room) = self.take_room(records) {
                return Ok(room);
            }
            if !waited {
                self.context.env.mark("journal_full");
                waited = true;
            }
            let held = self.reserved.get();
            assert_eq!(held, 0, "nobody keeps what is reserved while others wait for it");
            self.more_room().await;
        }
    }

    /// Number of records that one step may reserve.
    pub fn step_records(&self) -> usize {
        self.state.borrow().ring.step_records()
    }

    /// Waits until there may be more room in the ring than now.
    async fn more_room(&self) {
        let more = self.room_changed();
        self.reclaim.notify_all();
        more.await;
    }

    /// Returns when the ring may have more room than now, or may be able to get some.
    pub fn room_changed(&self) -> impl Future<Output = ()> {
        let changed = first(self.room.notified(), self.pins.fewer());
        async {
            changed.await;
        }
    }

    /// So many records may be reserved beside those that wait and those that others have reserved.
    fn takes(&self, records: usize) -> bool {
        let state = self.state.borrow();
        if state.closed || state.failed.is_some() {
            return false;
        }
        let pinned = self.pins.leaves();
        let sealed = match state.sealed.is_empty() {
            true => 0,
            false => state.sealed.iter().map(|(_, keys)| keys.len()).sum(),
        };
        let records = sealed + self.reserved.get() + records;
        state.ring.has_space(records as u64 * RECORD_BYTES + state.open_bytes)
            && state.sealed.len() < 2
            && pinned <= state.ring.pinned_leaves_max()
    }

    /// Waits until an entry for a new prio chain leaves enough of the ring to those who make room.
    /// If these wait for free buckets themselves, the chain comes first.
    pub async fn room_for_chain(&self) -> Result<Granted<'_, E>, EngineError> {
        loop {
            if let Some(granted) = self.grant(self.chains_first.get()) {
                return Ok(granted);
            }
            self.wait_for_room().await?;
        }
    }

    /// The right to write an entry for a prio chain or a new root, if the ring can spare one. The
    /// block is set aside until the grant is dropped.
    pub fn grant(&self, makes_room: bool) -> Option<Granted<'_, E>> {
        let mut state = self.state.borrow_mut();
        if !makes_room && !state.ring.takes_chains(state.granted) {
            return None;
        }
        state.granted += 1;
        Some(Granted(self))
    }

    /// Those who make room wait for buckets, and with them for a chain: until this is taken back, a
    /// chain does not wait for room, which nobody else would make. Its block is in the reserve.
    pub fn put_chains_first(&self, first: bool) {
        self.chains_first.set(first);
        if first {
            self.room.notify_all();
        }
    }

    /// Returns true if chains come first: see [`Journal::put_chains_first`].
    pub fn puts_chains_first(&self) -> bool {
        self.chains_first.get()
    }

    /// Waits until a grant that was refused may be given.
    pub async fn wait_for_room(&self) -> Result<(), EngineError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        self.context.env.mark("waits_for_journal_room");
        self.more_room().await;
        Ok(())
    }

    /// Returns when the ring needs room, or a stop or failure may have come.
    pub fn space_wanted(&self) -> impl Future<Output = ()> {
        self.reclaim.notified()
    }

    /// Writing the leaves that lack records up to this entry makes the room that is needed now.
    pub fn reclaim_goal(&self) -> Option<JournalSeq> {
        let state = self.state.borrow();
        if self.pins.leaves() * 2 > state.ring.pinned_leaves_max() {
            return Some(JournalSeq(u64::MAX));
        }
        if state.ring.is_short() { state.ring.oldest_needed() } else { None }
    }

    /// It is time to make room.
    pub fn is_short(&self) -> bool {
        self.state.borrow().ring.is_short()
    }

    /// There is so little room that it has to be made with few entries: each batch of leaves that
    /// are replaced may cost a prio chain and a root, two blocks, and the reserve has some six.
    pub fn is_tight(&self) -> bool {
        self.state.borrow().ring.is_tight()
    }

    /// An entry for a chain has room beside those that were granted already, and behind those that
    /// wait for their turn.
    pub fn takes_chain(&self) -> bool {
        let state = self.state.borrow();
        let blocks = |keys: &Vec<Key>| {
            let geometry = &self.context.geometry;
            ubcache_format::entry_bytes(geometry, keys) / geometry.block_bytes()
        };
        let waiting: u64 = state.sealed.iter().map(|(_, keys)| blocks(keys)).sum();
        state.ring.takes_chains(state.granted + waiting + blocks(&state.open_keys) - 1)
    }
}

/// A block of the ring set aside: see [`Journal::grant`].
pub(crate) struct Granted<'a, E: Env>(&'a Journal<E>);

impl<E: Env> Drop for Granted<'_, E> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().granted -= 1;
        self.0.room.notify_all();
    }
}
