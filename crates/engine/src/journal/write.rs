//! Appending records, group commit, waiting for durability.

use ubcache_env::local::first;
use ubcache_env::{Buf, Durability, Env, Nanos};
use ubcache_format::{
    JournalEntry, JournalSeq, Key, Padding, SECTOR_BYTES, encode_entry, entry_checksum,
};

use super::Journal;
use crate::errors::EngineError;
use crate::rules::Rule;

impl<E: Env> Journal<E> {
    /// Appends a record that was reserved. Says in which entry it is.
    pub(super) fn append(&self, key: Key) -> JournalSeq {
        let mut state = self.state.borrow_mut();
        let bytes = key.words() as u64 * 8;
        if state.open_bytes + bytes > state.ring.entry_record_bytes() {
            self.context.env.mark("journal_entry_full");
            let sealed = state.seal();
            state.sealed.push_back(sealed);
            self.wake.notify_all();
        }
        if let Some(kept) = &self.kept
            && self.keeps(Rule::V3KeptWithRecord)
        {
            kept.add(state.open_seq, &key);
        }
        state.open_keys.push(key);
        state.open_bytes += bytes;
        if state.opened_at.is_none() {
            state.opened_at = Some(self.context.env.now());
            self.wake.notify_all();
        }
        state.open_seq
    }

    /// The next entry is written soon; nobody waits for it.
    pub fn hurry(&self) {
        let mut state = self.state.borrow_mut();
        state.wanted = state.open_seq;
        self.wake.notify_all();
    }

    /// Waits until everything up to `seq` is durable.
    pub async fn wait(&self, seq: JournalSeq) -> Result<(), EngineError> {
        loop {
            if self.durable() >= seq {
                return Ok(());
            }
            if let Some(error) = self.failed() {
                return Err(error);
            }
            let progress = self.progress.notified();
            {
                let mut state = self.state.borrow_mut();
                state.wanted = state.wanted.max(seq);
            }
            self.wake.notify_all();
            progress.await;
        }
    }

    /// Writes an entry with the present header and every record so far, and waits for it.
    pub async fn force(&self) -> Result<(), EngineError> {
        self.wait(self.force_soon()).await
    }

    /// Has an entry written with the present header, and says which.
    pub fn force_soon(&self) -> JournalSeq {
        let seq = {
            let mut state = self.state.borrow_mut();
            state.wanted_header = state.open_seq;
            state.open_seq
        };
        self.wake.notify_all();
        seq
    }

    /// Makes every record so far durable; does nothing if there is none that is not.
    pub async fn flush(&self) -> Result<(), EngineError> {
        let newest = {
            let state = self.state.borrow();
            match state.open_keys.is_empty() {
                true => JournalSeq(state.open_seq.0 - 1),
                false => state.open_seq,
            }
        };
        self.wait(newest).await
    }

    fn due(&self) -> Due {
        let state = self.state.borrow();
        if state.wanted_header > state.durable {
            return Due::Now;
        }
        let next = state.sealed.front().map_or(&state.open_keys, |(_, keys)| keys);
        if !state.ring.takes_records(ubcache_format::entry_bytes(&self.context.geometry, next)) {
            // The leaves are written first, and that is recorded in the reserve.
            self.reclaim.notify_all();
            return Due::Idle;
        }
        if !state.sealed.is_empty() || state.wanted > state.durable {
            return Due::Now;
        }
        match state.opened_at {
            None => Due::Idle,
            Some(opened) => {
                let delay = Nanos::from_millis(self.context.settings().journal_delay_ms);
                let at = opened.after(delay);
                if at <= self.context.env.now() { Due::Now } else { Due::At(at) }
            }
        }
    }

    /// The task that writes entries.
    pub async fn write_entries(&self) {
        loop {
            if self.state.borrow().failed.is_some() {
                return;
            }
            let due = self.due();
            if self.context.health.is_ended() && !matches!(due, Due::Now) {
                // Whoever still wants something durable is told.
                self.close();
                return;
            }
            match due {
                Due::Now => {
                    if let Err(source) = self.write_entry().await {
                        self.context.env.mark("journal_write_failed");
                        self.context.health.note_error("writing the journal", &source);
                        self.state.borrow_mut().failed = Some(source.clone());
                        self.context
                            .health
                            .fail(format!("the journal could not be written: {source}"));
                        self.wake_all();
                    }
                }
                Due::At(at) => {
                    let wake = self.wake.notified();
                    first(wake, self.context.env.sleep_until(at)).await;
                }
                Due::Idle => self.wake.notified().await,
            }
        }
    }

    /// The oldest entry that is needed, as an entry with this number says if it is written now.
    fn last_seq_of(&self, seq: JournalSeq) -> JournalSeq {
        // FI8 (docs/reference/format.md): no entry is let go while a node lacks one of its records.
        let oldest_pin = self.pins.oldest();
        let floor = self.state.borrow().replay_floor;
        let oldest_pin = oldest_pin.filter(|_| self.keeps(Rule::J5EntryKept));
        [Some(seq), oldest_pin, floor].into_iter().flatten().min().expect("seq is there")
    }

    /// Returns true if an entry that is written now lets a bucket of the ring go.
    pub fn entry_makes_room(&self) -> bool {
        let last_seq = self.last_seq_of(self.open_seq());
        self.state.borrow().ring.lets_go(last_seq)
    }

    async fn write_entry(&self) -> Result<(), ubcache_env::IoError> {
        let (seq, keys) = {
            let mut state = self.state.borrow_mut();
            state.sealed.pop_front().unwrap_or_else(|| state.seal())
        };
        #[cfg(feature = "mutants")]
        self.keep_late(seq, &keys);
        let bytes = ubcache_format::entry_bytes(&self.context.geometry, &keys);
        let last_seq = self.last_seq_of(seq);
        let place = {
            let ring = &mut self.state.borrow_mut().ring;
            ring.leaves_a_block(bytes, last_seq).then(|| ring.place(bytes)).flatten()
        };
        let Some((index, offset)) = place else {
            // The reserve of the ring makes this all but impossible; what a start needs is never
            // overwritten, and the block with which it makes room is not taken from it (N5).
            self.context.env.mark("journal_stuck");
            return Err(ubcache_env::IoError::Os(28));
        };
        let entry = {
            let mut state = self.state.borrow_mut();
            let header = state.header.clone();
            let entry = JournalEntry {
                seq,
                last_seq,
                uuid_bucket: header.uuid_bucket,
                root: header.root,
                root_level: header.root_level,
                prio_bucket: header.prio_bucket,
                keys,
                padding: Padding::Bound(header.stamp),
            };
            let bytes = encode_entry(&self.context.geometry, &entry);
            state.give_back(entry.keys);
            bytes
        };
        // J1: what the records name, and what the header names, is durable first.
        if self.keeps(Rule::J1FlushBeforeEntry) {
            self.context.cache.flush().await?;
        }
        let at = self.context.geometry.bucket_start(self.context.geometry.journal_bucket(index))
            + offset / SECTOR_BYTES;
        if let Some(kept) = &self.kept {
            kept.submits(seq, entry_checksum(&entry));
        }
        #[cfg(feature = "mutants")]
        self.drop_kept_early(seq);
        self.context.cache.write(at, Buf::from_bytes(&entry).into(), Durability::Fua).await?;
        if let Some(kept) = &self.kept {
            kept.durable(seq);
        }
        {
            let mut state = self.state.borrow_mut();
            state.ring.written(entry.len() as u64, seq, last_seq);
            state.durable = seq;
        }
        self.progress.notify_all();
        self.room.notify_all();
        if self.state.borrow().ring.is_short() {
            self.reclaim.notify_all();
        }
        Ok(())
    }
}

enum Due {
    Now,
    At(Nanos),
    Idle,
}
