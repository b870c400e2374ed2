//! Making room in the ring: the leaves that lack the oldest records are written.

use ubcache_env::local::first;
use ubcache_env::{Env, Nanos};
use ubcache_format::JournalSeq;

use super::Index;
use super::leaf::Leaf;
use crate::errors::EngineError;

/// Pause after a leaf that could not be written.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_millis(100);
/// Leaves written at once.
const BATCH: usize = 32;

impl<E: Env> Index<E> {
    /// Leaves that need a new bucket are replaced together, so that their parents, and in small
    /// sets the root, are written once for all of them.
    ///
    /// Returns true if there was something to write.
    pub async fn write_leaves_up_to(&self, seq: JournalSeq) -> Result<bool, EngineError> {
        let mut written = false;
        while self.tree.borrow().has_leaves_pinned_up_to(seq) {
            // In a tight ring all at once, if there are buckets for that: one prio chain, one new
            // root.
            let tight = self.journal.is_tight();
            let (upto, batch) =
                if tight { (JournalSeq(u64::MAX), usize::MAX) } else { (seq, BATCH) };
            let leaves = self.tree.borrow().leaves_pinned_up_to(upto, batch);
            let (mut full, mut fits) = (Vec::new(), Vec::new());
            for leaf in leaves {
                self.load_for_replay(&leaf).await?;
                if self.has_room_for_append(&leaf) {
                    fits.push(leaf)
                } else {
                    full.push(vec![leaf])
                }
            }
            for leaf in fits {
                self.write_leaf(&leaf, true).await?;
            }
            if !full.is_empty() {
                if tight {
                    self.context.env.mark("journal_tight");
                }
                self.restructure(full, true).await?;
            }
            written = true;
        }
        Ok(written)
    }

    fn has_room_for_append(&self, leaf: &Leaf) -> bool {
        let mut state = leaf.state.borrow_mut();
        let Some(body) = state.body.as_mut() else { return true };
        let bytes = ubcache_format::bset_bytes(&self.context.geometry, &body.pending().keys);
        state.used_bytes + bytes <= u64::from(leaf.sectors) * ubcache_format::SECTOR_BYTES
    }

    /// The task that keeps the ring from filling up.
    pub async fn reclaim_task(&self) {
        loop {
            let wake = self.journal.space_wanted();
            let changed = self.journal.room_changed();
            let goal = self.journal.reclaim_goal();
            if self.context.is_ended() || self.context.failure().is_some() {
                return;
            }
            let Some(goal) = goal else {
                wake.await;
                continue;
            };
            self.context.env.mark("journal_reclaim");
            match self.make_room(goal).await {
                // Those who wait look again, and ask again.
                Ok(true) => self.journal.wake_all(),
                // Replay is not done, or the newest bucket is the one that is needed.
                Ok(false) => drop(first(wake, changed).await),
                Err(_) => {
                    self.journal.wake_all();
                    self.context.env.sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
    }

    /// Writes leaves, and an entry that needs fewer others. Returns true if anything was written.
    async fn make_room(&self, goal: JournalSeq) -> Result<bool, EngineError> {
        let written = self.write_leaves_up_to(goal).await?;
        // The leaves are written; an entry has to say so before the bucket is free. The one that
        // named a new root did already, and a second one would take the room that the next leaves
        // need.
        if !self.journal.is_short() || !self.journal.entry_makes_room() {
            return Ok(written);
        }
        self.journal.force().await?;
        Ok(true)
    }
}
