//! Nodes without pointers beyond the end of a cache that becomes smaller (A12). A key that is stale
//! is refused by a start, and by the driver, if it points to a bucket that there is not.

use std::cell::Cell;

use ubcache_env::Env;
use ubcache_format::Pointer;

use super::Gc;
use crate::errors::EngineError;
use crate::index::extent::{LAST, Position};

impl<E: Env> Gc<E> {
    /// Writes every interior node anew that is beyond the end, or has a pointer there in its log.
    pub(super) async fn write_interior_below(&self) -> Result<(), EngineError> {
        let is_beyond = |pointer: Pointer| {
            let buckets = self.allocator.buckets();
            buckets.is_beyond(buckets.bucket_of(pointer))
        };
        let shrinks = self.allocator.buckets().end() < self.context.geometry.buckets;
        self.rewrite_interior(|level, at| {
            let found = shrinks.then(|| self.index.interior_with(level, at, is_beyond)).flatten();
            if found.is_some_and(|(_, beyond)| beyond) {
                self.context.env.mark("interior_moved_below");
            }
            found
        })
        .await
    }

    /// Everything beyond the end is evacuated. Writes all nodes anew whose logs may have pointers
    /// there, and waits until a start reads no record that has one. `at`: the leaves before it are
    /// written anew already.
    ///
    /// # Errors
    /// `go_on` returns one; a device fails; there is no bucket for a node, and it may be tried
    /// again.
    pub async fn forget_beyond(
        &self,
        at: &Cell<Position>,
        go_on: impl Fn() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let _one = self.running.lock().await;
        let upto = self.journal.open_seq();
        // Nodes that are replaced from here on lose stale keys: their generations are durable.
        self.index.replacements_end().await;
        while at.get() != LAST {
            go_on()?;
            let leaf = self.index.leaf_after(at.get());
            self.index.load_leaf(&leaf).await?;
            if leaf.body().is_none() {
                self.context.env.mark("gc_leaf_gone");
                continue;
            }
            self.maintain(at.get(), &leaf, true).await?;
            if leaf.is_retired() {
                // Whoever replaced it; it may have been merged with those behind it.
                at.set(leaf.end.max(self.index.leaf_after(at.get()).end));
            }
            self.context.env.yield_now().await;
        }
        self.write_interior_below().await?;
        self.journal.force().await?;
        while self.journal.needed_from() <= upto {
            go_on()?;
            self.index.write_leaves_up_to(upto).await?;
            self.journal.force().await?;
        }
        Ok(())
    }
}
