//! Counting at start: every leaf is loaded once, and then every bucket is known.

use ubcache_env::Env;

use super::Index;
use super::extent::{FIRST, LAST};
use crate::errors::EngineError;
use crate::time_slices::in_slices;

impl<E: Env> Index<E> {
    /// At start: loads every leaf once, so that its extents are in the counts. Afterwards every
    /// bucket is known. False if the set ends before that.
    pub async fn count_leaves(&self, in_background: bool) -> Result<bool, EngineError> {
        if !self.count_every_leaf(in_background).await? {
            return Ok(false);
        }
        if self.allocator.buckets().counts_are_void() {
            if in_background {
                let detail = "a bucket has extents of two generations".to_owned();
                return Err(EngineError::Damaged { what: "index", detail });
            }
            self.context.env.mark("counted_again");
            self.forget_counts().await;
            self.count_every_leaf(false).await?;
        }
        self.replay_ends().await;
        self.allocator.counting_done().await;
        Ok(true)
    }

    /// Every leaf is as if it had never been in memory. Nothing has changed one yet.
    async fn forget_counts(&self) {
        self.allocator
            .for_all_buckets(1, |part| self.allocator.buckets_mut().forget_counts(part))
            .await;
        self.inodes.borrow_mut().values_mut().for_each(|known| known.dirty_sectors = 0);
        let leaves = self.tree.borrow().leaf_count();
        in_slices(&self.context.env, self.context.tuning.slice_steps, leaves, 1, |part| {
            for leaf in &self.tree.borrow().leaves()[part] {
                let mut state = leaf.state.borrow_mut();
                (state.counted, state.body) = (false, None);
            }
        })
        .await;
        self.tree.borrow_mut().loaded_extents = 0;
    }

    /// False if the set ends before all are counted.
    async fn count_every_leaf(&self, in_background: bool) -> Result<bool, EngineError> {
        let mut at = FIRST;
        while at != LAST {
            let leaf = self.leaf_after(at);
            if !leaf.state.borrow().counted {
                self.load_leaf(&leaf).await?;
                if leaf.state.borrow().retired {
                    continue;
                }
            }
            at = leaf.end;
            if in_background {
                // Writing may need buckets, and so wait for this.
                if let Some(leaf) = self.forget_leaves() {
                    self.node_writer.request(&leaf);
                }
                self.context.env.yield_now().await;
                // A stop does not wait for this, unless nodes that it writes need buckets.
                while self.context.is_ending() && self.allocator.nodes_wait() == 0 {
                    if self.context.is_ended() || self.context.failure().is_some() {
                        return Ok(false);
                    }
                    self.allocator.next_claim().await;
                }
            }
        }
        Ok(true)
    }
}
