//! Replay of the journal into leaves (V1), at once or when a leaf is loaded.

use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::Env;
use ubcache_format::{JournalSeq, Key, ReplayRange};

use super::Index;
use super::leaf::Leaf;
use crate::alloc::bucket_pins::Pin;
use crate::bucket_set::BucketSet;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::time_slices::{Slice, in_slices};

/// Steps of putting a record where it belongs.
const RECORD_STEPS: usize = 8;

impl<E: Env> Index<E> {
    /// V1: applies the records of the replay range, oldest first. What belongs to a leaf that is
    /// not in memory waits for the leaf if `lazy`, which is for a set whose buckets are not
    /// counted: counting brings every leaf in.
    pub async fn replay(&self, range: &Rc<ReplayRange>, lazy: bool) -> Result<u64, EngineError> {
        let mut replayed = 0;
        let mut slice = Slice::new(self.context.tuning.slice_steps);
        *self.to_replay.borrow_mut() = lazy.then(|| range.clone());
        for (entry_index, entry) in range.entries.iter().enumerate() {
            self.journal.keep_from(Some(entry.seq));
            for (key_index, key) in entry.keys.iter().enumerate() {
                if key.is_placeholder() || self.replay_leaves_out(range, entry.seq, key) {
                    continue;
                }
                replayed += 1;
                slice.step(&self.context.env, RECORD_STEPS).await;
                if !lazy {
                    self.load_over(key.inode, key.range()).await?;
                }
                let leaves: SmallVec<[Rc<Leaf>; 2]> = self
                    .tree
                    .borrow()
                    .leaves_over(key.inode, key.range())
                    .iter()
                    .cloned()
                    .collect();
                for leaf in leaves {
                    if leaf.state.borrow().body.is_some() {
                        self.replay_into(&leaf, entry.seq, key)?;
                        continue;
                    }
                    let mut state = leaf.state.borrow_mut();
                    if state.pin.is_none() {
                        state.touched_at = self.context.env.now();
                    }
                    state.replay.push((entry_index as u32, key_index as u32));
                    self.tree.borrow_mut().pin(&leaf, &mut state, entry.seq);
                }
            }
        }
        self.journal.keep_from(None);
        Ok(replayed)
    }

    /// Replays the records that waited for a leaf that has just been loaded.
    pub(super) fn replay_into_loaded(&self, leaf: &Rc<Leaf>) -> Result<(), EngineError> {
        let waiting = std::mem::take(&mut leaf.state.borrow_mut().replay);
        if waiting.is_empty() {
            return Ok(());
        }
        self.context.env.mark("replayed_into_loaded_leaf");
        let range = self.to_replay.borrow().clone().expect("there is something to replay");
        for (entry, key) in waiting {
            let entry = &range.entries[entry as usize];
            self.replay_into(leaf, entry.seq, &entry.keys[key as usize])?;
        }
        Ok(())
    }

    /// Every leaf was in memory once.
    pub(super) async fn replay_ends(&self) {
        let leaves = self.tree.borrow().leaf_count();
        in_slices(&self.context.env, self.context.tuning.slice_steps, leaves, 8, |part| {
            let tree = self.tree.borrow();
            let mut leaves = tree.leaves().iter().skip(part.start).take(part.len());
            let is_done = leaves.all(|leaf| leaf.state.borrow().replay.is_empty());
            assert!(
                is_done,
                "what waits to be replayed is replayed before anything is taken for free"
            );
        })
        .await;
        *self.to_replay.borrow_mut() = None;
    }

    fn replay_into(&self, leaf: &Rc<Leaf>, seq: JournalSeq, key: &Key) -> Result<(), EngineError> {
        let new = key.pointer().map(|pointer| (pointer, key.dirty));
        if let Some((pointer, _)) = new {
            self.allocator.buckets().check_extent(pointer, key.sectors.into())?;
        }
        match new {
            None => self.context.env.mark("replayed_removal"),
            Some((pointer, _)) if !self.allocator.buckets().is_live(pointer) => {
                self.context.env.mark("replayed_stale_record");
            }
            Some(_) => {
                let state = leaf.state.borrow();
                let buckets = self.allocator.buckets();
                let part = leaf.clip(key.inode, key.range());
                let mut below =
                    state.body.iter().flat_map(|body| body.overlapping(key.inode, part));
                if below.any(|extent| buckets.is_live(extent.pointer)) {
                    self.context.env.mark("replayed_over_a_key");
                }
            }
        }
        self.replace_in_leaf(leaf, key.inode, key.range(), new, seq);
        Ok(())
    }

    /// Never, but for mutants.
    fn replay_leaves_out(&self, range: &ReplayRange, seq: JournalSeq, key: &Key) -> bool {
        let newest = range.newest().is_some_and(|newest| newest.seq == seq);
        (newest && !self.context.keeps(Rule::V1ReplaysNewest))
            || (key.pointer().is_none() && !self.context.keeps(Rule::V1ReplaysRemovals))
    }

    /// Every key of the range is sound, and its pointer may raise a generation. Newest first. The
    /// pins keep the buckets that the range names from being taken for free before it is replayed.
    pub async fn check_replay(&self, range: &ReplayRange) -> Result<Vec<Pin>, EngineError> {
        let mut pins = Vec::new();
        // One for each bucket: there may be millions of records.
        let mut pinned = BucketSet::new(self.context.geometry.buckets);
        let at = self.context.geometry.bucket_start(self.context.geometry.journal_bucket(0));
        let mut slice = Slice::new(self.context.tuning.slice_steps);
        for entry in range.entries.iter().rev() {
            for key in &entry.keys {
                slice.step(&self.context.env, 1).await;
                key.check_journaled(&self.context.geometry)
                    .map_err(EngineError::format("journal", at))?;
                if let Some(pointer) = key.pointer() {
                    let mut buckets = self.allocator.buckets_mut();
                    let pin = buckets.claim(pointer);
                    if pin.is_some()
                        && pinned.insert(pointer.bucket(self.context.geometry.bucket_sectors))
                    {
                        pins.extend(pin);
                    }
                }
            }
        }
        Ok(pins)
    }
}
