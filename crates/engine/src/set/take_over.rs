//! Taking over a set that the Linux driver ran last (docs/coherence.md §7, "Handing over").
//!
//! What the driver left as clean may differ from the backing device. Nothing on the device says
//! whether the driver stopped in order, so all of it goes, before the first request is served.
//! So do dirty keys whose buckets were given away, which the driver leaves behind when it is killed:
//! only the generations of the buckets say that they are void, and a repair without the prio chain
//! would believe them. Until that is done, the mark of every entry says that it is not.

use ubcache_env::Env;
use ubcache_format::SECTOR_BYTES;

use super::Set;
use crate::errors::EngineError;
use crate::index::leaf::{Extent, FIRST, LAST};

impl<E: Env> Set<E> {
    /// Drops every clean key, unless they are to be kept, and every dirty one that is stale. Every extent must have
    /// been counted, no volume be attached.
    pub(crate) async fn take_over(&self, keep_clean: bool) -> Result<(), EngineError> {
        self.env.mark("taken_over");
        assert!(self.buckets.borrow().is_counted(), "a set of the driver is counted before it is served");
        if !keep_clean {
            let mut sectors = 0;
            self.for_all_buckets(1, |part| sectors += self.buckets.borrow().clean_sectors(part)).await;
            self.taken_over_bytes.set(Some(sectors * SECTOR_BYTES));
            // Whole buckets first: that takes no records.
            self.evict(usize::MAX).await;
            self.write_prios().await?;
        }
        // What shares a bucket with dirty data, key by key.
        let mut at = FIRST;
        while at != LAST {
            let leaf = self.tree.borrow().leaf_after(at).cloned().expect("the last leaf ends at the end");
            self.load_leaf(&leaf).await?;
            let void: Vec<_> = {
                let state = leaf.state.borrow();
                // Replaced or forgotten since: look the place up again.
                let Some(body) = state.body.as_ref().filter(|_| !state.retired) else { continue };
                let buckets = self.buckets.borrow();
                let goes = |extent: &Extent| match buckets.is_live(extent.pointer) {
                    true => !extent.dirty && !keep_clean,
                    false => extent.dirty,
                };
                body.iter().filter(goes).collect()
            };
            for extent in void {
                self.prepare_change(extent.inode, extent.range).await?;
                // Nobody writes yet; whatever is live and dirty stays in any case.
                if !self.has_dirty(extent.inode, extent.range) {
                    self.replace(extent.inode, extent.range, None);
                }
            }
            at = leaf.end;
            self.env.yield_now().await;
        }
        // Durable, and then an entry that says so.
        self.journal_flush().await?;
        self.journal.state.borrow_mut().header.mark.taking_over = false;
        self.journal_force().await
    }
}
