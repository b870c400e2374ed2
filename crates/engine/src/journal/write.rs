//! Appending records, group commit, waiting for durability.

use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Buf, Durability, Env, Nanos};
use ubcache_format::{JournalEntry, JournalSeq, Key, Padding, SECTOR_BYTES, encode_entry};

use super::room::RECORD_BYTES;
use crate::errors::EngineError;
use crate::mutants::Mutant;
use crate::set::Set;

impl<E: Env> Set<E> {
    /// Everything up to here is durable.
    pub(crate) fn journal_durable(&self) -> JournalSeq {
        self.journal.state.borrow().durable
    }

    pub(super) fn journal_failed(&self) -> Option<EngineError> {
        if self.journal.state.borrow().closed {
            return Some(EngineError::Stopping);
        }
        let failed = self.journal.state.borrow().failed.clone();
        failed.map(|source| EngineError::Io { what: "writing the journal", source })
    }

    /// Waits until there may be more room in the ring than now.
    pub(super) async fn journal_room_wanted(&self) {
        let progress = self.journal.progress.notified();
        self.journal.reclaim.notify_all();
        progress.await;
    }

    /// So many records may be reserved beside those that wait and those that others have reserved.
    pub(super) fn journal_takes(&self, records: usize) -> bool {
        let state = self.journal.state.borrow();
        if state.closed || state.failed.is_some() {
            return false;
        }
        let pinned = self.tree.borrow().pinned_leaves();
        let sealed = match state.sealed.is_empty() {
            true => 0,
            false => state.sealed.iter().map(|(_, keys)| keys.len()).sum(),
        };
        let records = sealed + self.journal.reserved.get() + records;
        state.ring.has_room(records as u64 * RECORD_BYTES + state.open_bytes)
            && state.sealed.len() < 2
            && pinned <= state.ring.pinned_leaves_max()
    }

    /// Appends a record that was reserved. Says in which entry it is.
    pub(super) fn journal_append(&self, key: Key) -> JournalSeq {
        let mut state = self.journal.state.borrow_mut();
        let bytes = key.words() as u64 * 8;
        if state.open_bytes + bytes > state.ring.entry_record_bytes() {
            self.env.mark("journal_entry_full");
            let sealed = state.seal();
            state.sealed.push_back(sealed);
            self.journal.wake.notify_all();
        }
        state.open_keys.push(key);
        state.open_bytes += bytes;
        if state.opened_at.is_none() {
            state.opened_at = Some(self.env.now());
            self.journal.wake.notify_all();
        }
        state.open_seq
    }

    /// The next entry names another root.
    pub(crate) fn journal_set_root(&self, level: u16, root: Key) {
        let mut state = self.journal.state.borrow_mut();
        state.header.root = root;
        state.header.root_level = level;
    }

    /// The next entry is written soon; nobody waits for it.
    pub(crate) fn journal_hurry(&self) {
        let mut state = self.journal.state.borrow_mut();
        state.wanted = state.open_seq;
        self.journal.wake.notify_all();
    }

    /// Waits until everything up to `seq` is durable.
    pub(crate) async fn journal_wait(&self, seq: JournalSeq) -> Result<(), EngineError> {
        loop {
            if self.journal_durable() >= seq {
                return Ok(());
            }
            if let Some(error) = self.journal_failed() {
                return Err(error);
            }
            let progress = self.journal.progress.notified();
            {
                let mut state = self.journal.state.borrow_mut();
                state.wanted = state.wanted.max(seq);
            }
            self.journal.wake.notify_all();
            progress.await;
        }
    }

    /// Writes an entry with the present header and every record so far, and waits for it.
    pub(crate) async fn journal_force(&self) -> Result<(), EngineError> {
        self.journal_wait(self.journal_force_soon()).await
    }

    /// Has an entry written with the present header, and says which.
    pub(crate) fn journal_force_soon(&self) -> JournalSeq {
        let seq = {
            let mut state = self.journal.state.borrow_mut();
            state.wanted_header = state.open_seq;
            state.open_seq
        };
        self.journal.wake.notify_all();
        seq
    }

    /// Makes every record so far durable; does nothing if there is none that is not.
    pub(crate) async fn journal_flush(&self) -> Result<(), EngineError> {
        let newest = {
            let state = self.journal.state.borrow();
            match state.open_keys.is_empty() {
                true => JournalSeq(state.open_seq.0 - 1),
                false => state.open_seq,
            }
        };
        self.journal_wait(newest).await
    }

    /// Waits until an entry for a new prio chain leaves enough of the ring to those who make room.
    /// If these wait for free buckets themselves, the chain comes first.
    pub(crate) async fn journal_room_for_chain(&self) -> Result<Granted<'_, E>, EngineError> {
        loop {
            if let Some(granted) = self.journal_grant(self.allocator.makes_room.get()) {
                return Ok(granted);
            }
            self.journal_progress().await?;
        }
    }

    /// The right to write an entry for a prio chain or a new root, if the ring can spare one. The
    /// block is set aside until the grant is dropped.
    pub(crate) fn journal_grant(&self, makes_room: bool) -> Option<Granted<'_, E>> {
        let mut state = self.journal.state.borrow_mut();
        if !makes_room && !state.ring.takes_chains(state.granted) {
            return None;
        }
        state.granted += 1;
        Some(Granted(self))
    }

    /// Waits a moment for the journal to get room.
    pub(crate) async fn journal_progress(&self) -> Result<(), EngineError> {
        if let Some(error) = self.journal_failed() {
            return Err(error);
        }
        self.env.mark("waits_for_journal_room");
        let progress = self.journal.progress.notified();
        self.journal.reclaim.notify_all();
        first(progress, self.env.sleep(Nanos::from_millis(10))).await;
        Ok(())
    }

    fn journal_due(&self) -> Due {
        let state = self.journal.state.borrow();
        if state.wanted_header > state.durable {
            return Due::Now;
        }
        let next = state.sealed.front().map_or(&state.open_keys, |(_, keys)| keys);
        if !state.ring.takes_records(ubcache_format::entry_bytes(&self.geometry, next)) {
            // The leaves are written first, and that is recorded in the reserve.
            self.journal.reclaim.notify_all();
            return Due::Idle;
        }
        if !state.sealed.is_empty() || state.wanted > state.durable {
            return Due::Now;
        }
        match state.opened_at {
            None => Due::Idle,
            Some(opened) => {
                let delay = Nanos::from_millis(self.settings.borrow().journal_delay_ms);
                let at = opened.after(delay);
                if at <= self.env.now() { Due::Now } else { Due::At(at) }
            }
        }
    }

    /// The task that writes entries.
    pub(crate) async fn journal_task(self: Rc<Self>) {
        loop {
            if self.journal.state.borrow().failed.is_some() {
                return;
            }
            let due = self.journal_due();
            if self.is_ended() && !matches!(due, Due::Now) {
                // Whoever still wants something durable is told.
                self.journal.close();
                return;
            }
            match due {
                Due::Now => {
                    if let Err(source) = self.write_entry().await {
                        self.env.mark("journal_write_failed");
                        self.note_cache_error("writing the journal", &source);
                        self.journal.state.borrow_mut().failed = Some(source.clone());
                        self.fail(format!("the journal could not be written: {source}"));
                        self.journal.wake_all();
                    }
                }
                Due::At(at) => {
                    let wake = self.journal.wake.notified();
                    first(wake, self.env.sleep_until(at)).await;
                }
                Due::Idle => self.journal.wake.notified().await,
            }
        }
    }

    async fn write_entry(&self) -> Result<(), ubcache_env::IoError> {
        let (seq, keys) = {
            let mut state = self.journal.state.borrow_mut();
            state.sealed.pop_front().unwrap_or_else(|| state.seal())
        };
        let bytes = ubcache_format::entry_bytes(&self.geometry, &keys);
        let last_seq = {
            // I8: no entry is let go while a node lacks one of its records.
            let oldest_pin = self.tree.borrow().oldest_pin();
            let floor = self.journal.state.borrow().replay_floor;
            let oldest_pin = oldest_pin.filter(|_| !self.mutant(Mutant::JournalLetsGoEarly));
            [Some(seq), oldest_pin, floor].into_iter().flatten().min().expect("seq is there")
        };
        let place = self.journal.state.borrow_mut().ring.place(bytes);
        let Some((index, offset)) = place else {
            // The reserve of the ring makes this all but impossible; what a start needs is never
            // overwritten.
            self.env.mark("journal_stuck");
            return Err(ubcache_env::IoError::Os(28));
        };
        let entry = {
            let mut state = self.journal.state.borrow_mut();
            let header = state.header.clone();
            let entry = JournalEntry {
                seq,
                last_seq,
                uuid_bucket: header.uuid_bucket,
                root: header.root,
                root_level: header.root_level,
                prio_bucket: header.prio_bucket,
                keys,
                padding: Padding::Bound(header.mark),
            };
            let bytes = encode_entry(&self.geometry, &entry);
            state.give_back(entry.keys);
            bytes
        };
        // J1: what the records name, and what the header names, is durable first.
        if !self.mutant(Mutant::JournalWithoutPreflush) {
            self.cache.flush().await?;
        }
        let at = self.geometry.bucket_start(self.geometry.journal_bucket(index)) + offset / SECTOR_BYTES;
        self.cache.write(at, Buf::from_bytes(&entry).into(), Durability::Fua).await?;
        {
            let mut state = self.journal.state.borrow_mut();
            state.ring.written(entry.len() as u64, seq, last_seq);
            state.durable = seq;
        }
        self.journal.progress.notify_all();
        if self.journal.state.borrow().ring.is_short() {
            self.journal.reclaim.notify_all();
        }
        Ok(())
    }
}

/// A block of the ring set aside: see [`Set::journal_grant`].
pub(crate) struct Granted<'a, E: Env>(&'a Set<E>);

impl<E: Env> Drop for Granted<'_, E> {
    fn drop(&mut self) {
        self.0.journal.state.borrow_mut().granted -= 1;
    }
}

enum Due {
    Now,
    At(Nanos),
    Idle,
}
