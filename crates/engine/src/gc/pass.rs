//! The pass over the leaves.

use std::collections::BTreeSet;
use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Env, Nanos, SectorRange};
use ubcache_format::{BucketNr, Generation};

use super::Gc;
use crate::bucket_set::BucketSet;
use crate::errors::EngineError;
use crate::index::extent::{Extent, FIRST, LAST, Position, removal_records};
use crate::index::leaf::Leaf;

/// A pass begins when this part of the cache was written since the last one.
const WRITTEN_PART: u64 = 16;
/// Interval at which that is looked at: a write does not stop to compare.
const LOOK_PERIOD: Nanos = Nanos::from_secs(10);
/// From a pass that failed to the next one.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_secs(1);
/// Up to this many neighbouring leaves are merged.
const MERGE_MAX: usize = 4;

impl<E: Env> Gc<E> {
    /// The task that runs passes when they are due.
    pub async fn run(&self) {
        while !self.context.is_ending() && self.context.failure().is_none() {
            let wake = self.wake.notified();
            if self.is_pass_due() && self.allocator.buckets().is_counted() {
                // An error here occurs again where it matters, and is reported there.
                if self.collect_garbage().await.is_err() {
                    self.context.env.sleep(PAUSE_AFTER_ERROR).await;
                }
                continue;
            }
            first(wake, self.context.env.sleep(LOOK_PERIOD)).await;
        }
    }

    /// Returns true if a pass was asked for, or enough was written since the last one.
    fn is_pass_due(&self) -> bool {
        let written = self.context.cache.counters().written_bytes - self.began_at_bytes.get();
        let buckets = u64::from(self.allocator.buckets().end());
        let part = buckets * self.context.geometry.bucket_bytes() / WRITTEN_PART;
        self.requested.get() || written > part
    }

    /// Data is evicted. With the policy that chooses its victims ahead, a pass that is due does not
    /// wait for the clock: what it would save could be gone by then.
    pub fn wake_for_victims(&self) {
        if self.allocator.buckets().protects() && self.is_pass_due() {
            self.wake();
        }
    }

    /// One pass.
    pub async fn collect_garbage(&self) -> Result<(), EngineError> {
        let _one = self.running.lock().await;
        self.requested.set(false);
        self.loose.set(0);
        self.began_at_bytes.set(self.context.cache.counters().written_bytes);
        self.context.env.mark("gc_pass");
        if self.has_writebacks() {
            self.context.env.mark("gc_during_writeback");
        }
        self.ages_hold();
        // Older than any pointer that comes into the index from now on. Those that are in it are
        // seen below.
        let mut oldest = self.allocator.buckets_mut().no_ages();
        self.allocator
            .for_all_buckets(1, |part| {
                oldest.extend_from_slice(self.allocator.buckets().generations(part))
            })
            .await;
        #[cfg(feature = "mutants")]
        let empty = self.allocator.buckets().seemingly_empty();
        let reused = self.allocator.choose_victims().await;
        let moving = Moving { sparse: self.choose_sparse().await, reused };
        if !moving.sparse.is_empty() {
            self.context.env.mark("moving_gc");
        }
        let mut at = FIRST;
        while at != LAST {
            if self.context.is_ending() {
                return Ok(());
            }
            let leaf = self.index.leaf_after(at);
            self.index.load_leaf(&leaf).await?;
            let Some(found) = self.look_at(&leaf, &mut oldest, &moving) else {
                self.context.env.mark("gc_leaf_gone");
                continue;
            };
            let end = leaf.end;
            self.drop_dead_keys(found.dead).await?;
            if !found.to_move.is_empty() {
                self.move_extents(found.to_move).await;
            }
            self.maintain(at, &leaf, found.old).await?;
            at = end;
            self.context.env.yield_now().await;
        }
        self.look_at_interior(&mut oldest).await?;
        self.write_interior_below().await?;
        #[cfg(feature = "mutants")]
        self.allocator.buckets_mut().give_up_once_empty(empty);
        self.found_ages(oldest).await
    }

    /// One step over a leaf; None if it is not in memory any more.
    fn look_at(
        &self,
        leaf: &Rc<Leaf>,
        oldest: &mut [Generation],
        moving: &Moving,
    ) -> Option<Found> {
        let body = leaf.body()?;
        let buckets = self.allocator.buckets();
        let mut found = Found::default();
        let mut stale = 0;
        for extent in body.iter() {
            let bucket = extent.pointer.bucket(self.context.geometry.bucket_sectors);
            let index = bucket.0 as usize;
            let generation = buckets.generation(bucket);
            let age = generation.distance_from(extent.pointer.generation);
            if age > generation.distance_from(oldest[index]) {
                oldest[index] = extent.pointer.generation;
            }
            if age > 0 {
                stale += usize::from(!buckets.may_return(extent.pointer));
                found.old |= age > self.context.tuning.generations.rewrite_age;
            } else if self.table.is_dead(extent.inode) {
                found.dead.push(extent);
            } else if moving.sparse.contains(&bucket) || (extent.dirty && buckets.is_left(bucket)) {
                found.to_move.push(extent);
            } else if moving.reused.contains(bucket) {
                for part in buckets.reused_parts(extent.pointer, extent.range.sectors()) {
                    self.context.env.mark("reused_data_saved");
                    let start = extent.range.start;
                    let part = SectorRange::from_bounds(start + part.start, start + part.end);
                    found.to_move.push(extent.cut(part));
                }
            }
        }
        found.old |= stale * 2 > body.len().max(8);
        // A12: it gets a bucket below the end.
        found.old |= buckets.is_beyond(buckets.bucket_of(leaf.pointer));
        Some(found)
    }

    async fn drop_dead_keys(&self, dead: Vec<Extent>) -> Result<(), EngineError> {
        for extent in dead {
            let records = removal_records(extent.range);
            let mut room = self.index.prepare_removal(extent.inode, extent.range, records).await?;
            if self.index.is_current(&extent) {
                self.context.env.mark("dead_volume_key_dropped");
                self.index.replace(&mut room, extent.inode, extent.range, None);
            }
        }
        Ok(())
    }

    /// Rewrites the leaf if it is full of old pointers; merges it with its neighbours if they fit
    /// into one.
    pub(super) async fn maintain(
        &self,
        low: Position,
        leaf: &Rc<Leaf>,
        old: bool,
    ) -> Result<(), EngineError> {
        let always = self.context.settings().gc_always_rewrite;
        let group = self.index.mergeable(low, leaf, MERGE_MAX);
        if group.len() > 1 {
            self.context.env.mark("leaves_merged");
            return self.index.restructure(vec![group], false).await;
        }
        if (old || always) && !leaf.is_retired() {
            return self.index.restructure(vec![vec![leaf.clone()]], false).await;
        }
        Ok(())
    }
}

/// Buckets out of which a pass moves data.
struct Moving {
    /// All of it.
    sparse: BTreeSet<BucketNr>,
    /// Data that was used again: the bucket will be evicted soon.
    reused: BucketSet,
}

/// Plan of a pass for a leaf.
#[derive(Default)]
struct Found {
    old: bool,
    dead: Vec<Extent>,
    to_move: Vec<Extent>,
}
