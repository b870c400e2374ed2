//! Taking over a set that somebody else left (docs/internals/coherence.md §7, "Handing over"): the
//! Linux driver, or a tool that laid it down again.
//!
//! Data that the driver left as clean may differ from the backing device. Nothing on the device
//! says if the driver stopped in order, so all of it goes, before the first request is served. So
//! do dirty keys whose buckets were given away, which the driver leaves behind when it is killed:
//! only the generations of the buckets say that they are void, and a repair without the prio chain
//! would believe them. Until that is done, the stamp of every entry says that it is not.

use ubcache_env::Env;
use ubcache_format::SECTOR_BYTES;

use super::Set;
use super::former_owner::{FormerRun, TakenOver};
use crate::errors::EngineError;
use crate::index::extent::{Extent, FIRST, LAST, removal_records};

impl<E: Env> Set<E> {
    /// Drops every clean key, unless they are to be kept, and every dirty one that is stale. Every
    /// extent must have been counted, no volume be attached.
    pub(crate) async fn take_over(
        &self,
        from: FormerRun,
        keep_clean: bool,
    ) -> Result<(), EngineError> {
        self.context.env.mark("taken_over");
        assert!(
            self.allocator.buckets().is_counted(),
            "a set of somebody else is counted before it is served"
        );
        let mut dropped_bytes = None;
        if !keep_clean {
            let mut sectors = 0;
            self.allocator
                .for_all_buckets(1, |part| sectors += self.allocator.buckets().clean_sectors(part))
                .await;
            dropped_bytes = Some(sectors * SECTOR_BYTES);
            // Whole buckets first: that takes no records.
            self.allocator.evict(usize::MAX).await;
            self.allocator.write_prios().await?;
        }
        self.taken_over.set(Some(TakenOver { from, dropped_bytes }));
        // Clean data that shares a bucket with dirty data goes key by key.
        let mut at = FIRST;
        while at != LAST {
            let leaf = self.index.leaf_after(at);
            self.index.load_leaf(&leaf).await?;
            let void: Vec<_> = {
                // Replaced or forgotten since: look the place up again.
                let Some(body) = leaf.body() else { continue };
                let buckets = self.allocator.buckets();
                let goes = |extent: &Extent| match buckets.is_live(extent.pointer) {
                    true => !extent.dirty && !keep_clean,
                    false => extent.dirty,
                };
                body.iter().filter(goes).collect()
            };
            for extent in void {
                let records = removal_records(extent.range);
                let mut room =
                    self.index.prepare_removal(extent.inode, extent.range, records).await?;
                // Nobody writes yet; whatever is live and dirty stays in any case.
                if !self.index.has_dirty(extent.inode, extent.range) {
                    self.index.replace(&mut room, extent.inode, extent.range, None);
                }
            }
            at = leaf.end;
            self.context.env.yield_now().await;
        }
        // Durable, and then an entry that says so.
        self.journal.flush().await?;
        self.journal.take_over_is_done();
        self.journal.force().await
    }
}
