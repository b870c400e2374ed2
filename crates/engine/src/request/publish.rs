//! Putting clean copies into the index (C1, C2).

use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::local::first;
use ubcache_env::{Env, IntervalSet, Nanos, SectorRange};
use ubcache_format::Pointer;

use crate::errors::EngineError;
use crate::volume::CachedVolume;

/// A client that never flushes shall not have an empty cache after a power failure.
const FLUSH_PERIOD: Nanos = Nanos::from_secs(5);
/// From a flush that failed to the next one of our own.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_secs(1);
/// Copies looked at in one turn.
const BATCH: usize = 256;

impl<E: Env> CachedVolume<E> {
    /// The task that publishes what can't be lost any more, and flushes now and then so that it
    /// can't.
    pub(crate) async fn publisher_task(self: Rc<Self>) {
        let mut flushed_at = self.set.env.now();
        while !self.is_stopping() && !self.passthrough.get() {
            let wake = self.wake_publisher.notified();
            let published = self.publish_batch().await.unwrap_or(0);
            let now = self.set.env.now();
            let crowded = self.unpublished.borrow().len() * 4 > self.set.tuning.unpublished_max * 3;
            let due = now.since(flushed_at) >= FLUSH_PERIOD || crowded || self.set.allocator.starved.get();
            if due && !self.unflushed.borrow().is_empty() {
                flushed_at = now;
                self.set.env.mark("flush_of_our_own");
                // An error is counted. Not again at once: what makes it due is still there, and the device needs a
                // moment, or an operator.
                if self.flush_backing().await.is_err() && !self.is_stopping() {
                    first(self.wake_publisher.notified(), self.set.env.sleep(PAUSE_AFTER_ERROR)).await;
                }
            } else if published == 0 {
                first(wake, self.set.env.sleep(FLUSH_PERIOD)).await;
            }
        }
    }

    pub(crate) async fn publish_all(&self) {
        while self.publish_batch().await.is_ok_and(|published| published > 0) {}
    }

    /// Publishes copies whose range is not un-flushed. Says how many were looked at.
    async fn publish_batch(&self) -> Result<usize, EngineError> {
        let ready: Vec<(SectorRange, Pointer)> = {
            let unflushed = self.unflushed.borrow();
            self.unpublished
                .borrow()
                .iter()
                .flat_map(|(range, pointer)| {
                    unflushed
                        .flushed_parts(range)
                        .into_iter()
                        .map(move |part| (part, pointer.advance(part.start - range.start)))
                })
                .take(BATCH)
                .collect()
        };
        for &(range, pointer) in &ready {
            self.set.prepare_change(self.inode(), range).await?;
            self.publish(range, pointer);
        }
        Ok(ready.len())
    }

    /// One step: what is still the same copy and still not un-flushed goes into the index, where
    /// there is no key.
    fn publish(&self, range: SectorRange, pointer: Pointer) {
        let unchanged: SmallVec<[SectorRange; 2]> = self
            .unpublished
            .borrow()
            .overlapping(range)
            .filter(|(part, found)| *found == pointer.advance(part.start - range.start))
            .map(|(part, _)| part)
            .collect();
        if unchanged.is_empty() {
            self.set.env.mark("copy_gone_before_published");
        }
        for part in unchanged {
            for part in self.unflushed.borrow().flushed_parts(part) {
                let mut known = IntervalSet::default();
                for extent in self.set.live_extents(self.inode(), part) {
                    known.insert(extent.range);
                }
                self.set.env.mark("copy_published");
                for gap in known.gaps(part) {
                    let place = pointer.advance(gap.start - range.start);
                    // I3, I7: nothing is landing there, and nothing there can be lost.
                    assert!(!self.inflight.borrow().backing_write_over(gap), "a backing write is over {gap}");
                    assert!(!self.unflushed.borrow().overlaps(gap), "{gap} is un-flushed");
                    self.set.replace(self.inode(), gap, Some((place, false)));
                }
                self.unpublished.borrow_mut().remove(part);
            }
        }
    }
}
