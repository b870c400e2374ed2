//! Batches of writeback that are under way beside each other.
//!
//! Reading a batch from the cache, its flush and its records take time in which the backing device
//! gets nothing to write. On a device of this machine that is little. Behind a network it is a
//! round trip for each, so several batches are under way there. Each keeps B1 to B5 for itself, and
//! no two of them are over one sector (T4).

use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Distance, Env, Priority};
use ubcache_format::SECTOR_BYTES;

use super::batch::Below;
use super::outcome::Cleaned;
use crate::index::extent::Extent;
use crate::volume::CachedVolume;

/// Batches of a volume at a time, over a remote device.
const REMOTE_BATCHES: usize = 4;

impl<E: Env> CachedVolume<E> {
    /// Writes a batch back, or begins to where others may be under way beside it. Returns what has
    /// been cleaned since the last call, and what is to be paced for.
    pub(super) async fn start_batch(self: &Rc<Self>, extents: Vec<Extent>) -> (Cleaned, u64) {
        let batches = &self.writeback.batches;
        if self.backing.shape().distance == Distance::Local {
            let cleaned = self.clean_batch(extents).await;
            return (cleaned, cleaned.sectors);
        }
        while batches.running.get() >= REMOTE_BATCHES {
            batches.ended.notified().await;
        }
        // A pause waits until nothing is in flight, which batches that overlap would put off.
        while self.is_paused() && !self.ends() {
            self.context.env.mark("writeback_waits_for_pause");
            first(self.writeback.wake.notified(), self.opens()).await;
        }
        if self.ends() {
            return (Cleaned::default(), 0);
        }
        if batches.running.get() > 0 {
            self.context.env.mark("writeback_batches_beside");
        }
        // Nobody waits for its end before the next one begins, so it is paced for now.
        let sectors = extents.iter().map(|extent| extent.range.sectors()).sum();
        batches.running.set(batches.running.get() + 1);
        let me = self.clone();
        self.context.env.spawn(Priority::Background, async move {
            let cleaned = me.clean_batch(extents).await;
            me.writeback.batches.ends(cleaned);
        });
        (batches.outcome.take(), sectors)
    }

    /// Waits until no batch is under way. Returns what has been cleaned since the last call.
    pub(super) async fn end_batches(&self) -> Cleaned {
        let batches = &self.writeback.batches;
        while batches.running.get() > 0 {
            batches.ended.notified().await;
        }
        batches.outcome.take()
    }

    async fn clean_batch(&self, extents: Vec<Extent>) -> Cleaned {
        let cleaned = self.write_back(extents, Below::Written).await;
        let bytes = cleaned.sectors * SECTOR_BYTES;
        self.count(|counters| counters.written_back_bytes += bytes);
        cleaned
    }
}
