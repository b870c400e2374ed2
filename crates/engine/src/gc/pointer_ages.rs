//! Ages of pointers. A pointer that is left behind while its bucket is used again looks ahead of
//! the bucket after half of the circle, and a start believes it (docs/internals/coherence.md §7, G1
//! to G5).

use ubcache_env::Env;
use ubcache_format::Generation;

use super::{Ages, Gc};
use crate::errors::EngineError;
use crate::index::extent::{FIRST, Position};
use crate::rules::Rule;

impl<E: Env> Gc<E> {
    /// Looks at every interior node, one a step (G1), and writes those with old pointers anew (G2).
    pub(super) async fn look_at_interior(
        &self,
        oldest: &mut [Generation],
    ) -> Result<(), EngineError> {
        let (counts, anew) = (
            self.context.keeps(Rule::G1InteriorPointersCount),
            self.context.keeps(Rule::G2InteriorWrittenAnew),
        );
        self.rewrite_interior(|level, at| {
            let (end, old) = counts.then(|| self.look_at_node(level, at, oldest)).flatten()?;
            Some((end, old && anew))
        })
        .await
    }

    /// Goes through all interior nodes, level by level. `look` is given a level and a place, and
    /// says where the next node ends, and whether to write it anew; `None`: the level has no more.
    pub(super) async fn rewrite_interior(
        &self,
        mut look: impl FnMut(usize, Position) -> Option<(Position, bool)>,
    ) -> Result<(), EngineError> {
        let mut level = 1;
        while level <= usize::from(self.index.root_level()) {
            let mut at = FIRST;
            while let Some((end, anew)) = look(level, at) {
                if anew {
                    self.index.rewrite_interior(level, end).await?;
                }
                at = end;
                self.context.env.yield_now().await;
                if self.context.is_ending() {
                    return Ok(());
                }
            }
            level += 1;
        }
        Ok(())
    }

    /// The next node of the level: where it ends, and whether a pointer in it is old.
    fn look_at_node(
        &self,
        level: usize,
        at: Position,
        oldest: &mut [Generation],
    ) -> Option<(Position, bool)> {
        let buckets = self.allocator.buckets();
        let mut old = false;
        let end = self.index.former_pointers(level, at, |former| {
            self.context.env.work().add(former.len());
            for pointer in former {
                let bucket = buckets.bucket_of(*pointer);
                let known = &mut oldest[bucket.0 as usize];
                let age = buckets.age_of(bucket, pointer.generation);
                if age > buckets.age_of(bucket, *known) {
                    *known = pointer.generation;
                }
                old |= age > self.context.tuning.generations.rewrite_age;
            }
        })?;
        Some((end, old))
    }

    /// A pass is done. What it saw is what the device has once every leaf that was changed before
    /// is written (G3). Mostly that comes by itself; it is seen to where buckets wait, or the pass
    /// before this one waits still.
    pub(super) async fn found_ages(&self, oldest: Vec<Generation>) -> Result<(), EngineError> {
        let upto = self.journal.open_seq();
        let waits = self.ages.replace(Some(Ages { upto, oldest })).is_some();
        self.ages_hold();
        if self.ages.borrow().is_some() && (waits || self.allocator.buckets().has_aged()) {
            self.context.env.mark("leaves_written_for_age");
            // Records that come now are not among those that count.
            self.journal.force().await?;
            self.index.write_leaves_up_to(upto).await?;
            self.journal.force().await?;
            self.ages_hold();
        }
        Ok(())
    }

    /// The ages of the last pass count, if no start looks at a record that is older than the pass.
    pub(super) fn ages_hold(&self) {
        let needed_from = self.journal.needed_from();
        let done = self.ages.borrow_mut().take_if(|ages| ages.upto < needed_from);
        if let Some(Ages { oldest, .. }) = done {
            self.allocator.buckets_mut().set_oldest(oldest);
        }
    }
}
