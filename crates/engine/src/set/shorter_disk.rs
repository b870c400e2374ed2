//! Backing devices that have become shorter (A6), and keys that are dropped at a start.

use std::rc::Rc;

use ubcache_env::{Env, Sector};
use ubcache_format::Inode;

use super::Set;
use crate::errors::EngineError;
use crate::index::extent::removal_records;
use crate::rules::Rule;

impl<E: Env> Set<E> {
    /// Refuses a backing device that has become too short for dirty data of it, and drops the clean
    /// keys beyond its end, durably: should it become longer again, there is something else.
    pub(super) async fn fit_to_size(
        self: &Rc<Self>,
        inode: Inode,
        sectors: u64,
    ) -> Result<(), EngineError> {
        let end = Sector(sectors);
        let (mut dirty, mut last, mut any) = (0, end, false);
        let mut at = Some((inode, end));
        while let Some(from) = at {
            let extents;
            (extents, at) = self.index.extents_of_leaf(from).await?;
            for extent in extents {
                any = true;
                if extent.dirty && self.allocator.buckets().is_live(extent.pointer) {
                    dirty += extent.range.sectors();
                    last = extent.range.end;
                }
            }
        }
        if dirty > 0 {
            self.context.env.mark("dirty_beyond_end");
            return Err(EngineError::BeyondEnd { dirty, last, end });
        }
        if any && self.context.keeps(Rule::A6KeysBeyondEndGo) {
            self.context.env.mark("clean_beyond_end");
            self.drop_clean(inode, end).await?;
        }
        Ok(())
    }

    /// Drops the clean keys of a volume from a sector on, durably.
    pub(super) async fn drop_clean(
        self: &Rc<Self>,
        inode: Inode,
        from: Sector,
    ) -> Result<(), EngineError> {
        let mut at = Some((inode, from));
        while let Some(from) = at {
            let extents;
            (extents, at) = self.index.extents_of_leaf(from).await?;
            for extent in extents.iter().filter(|extent| !extent.dirty) {
                let records = removal_records(extent.range);
                let mut room = self.index.prepare_removal(inode, extent.range, records).await?;
                // Nobody writes yet; whatever is live and dirty stays in any case.
                if !self.index.has_dirty(inode, extent.range) {
                    self.index.replace(&mut room, inode, extent.range, None);
                }
            }
        }
        self.journal.flush().await
    }
}
