//! Putting clean copies into the index (C1, C2).

use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Env, IntervalSet, Nanos, SectorRange};
use ubcache_format::Pointer;

use crate::alloc::bucket_pins::Pin;
use crate::errors::EngineError;
use crate::journal::reservation::Reservation;
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// A client that never flushes shall not have an empty cache after a power failure.
const FLUSH_PERIOD: Nanos = Nanos::from_secs(5);
/// From a flush that failed to the next one of our own.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_secs(1);
/// Keys that one step puts into the index: mostly it is one.
const PUBLISHED_AT_ONCE: usize = 2;
/// Copies looked at in one turn.
const BATCH: usize = 256;

/// Returns true if a flush is due: three quarters of the permitted copies wait.
fn above_high_water(copies: usize, most: usize) -> bool {
    copies * 4 > most * 3
}

impl<E: Env> CachedVolume<E> {
    /// Another copy may wait for its key (S2).
    pub(super) fn has_room_for_copies(&self) -> bool {
        self.coherence.copies_len() < self.context.tuning.unpublished_max
            || !self.context.keeps(Rule::S2CopiesBounded)
    }

    /// The task that publishes what can't be lost any more, and flushes now and then so that it
    /// can't.
    pub(crate) async fn publisher_task(self: Rc<Self>) {
        let mut flushed_at = self.context.env.now();
        while !self.is_stopping() && self.lifecycle.uses_cache() {
            let wake = self.wake_publisher.notified();
            let published = self.publish_batch().await.unwrap_or(0);
            let now = self.context.env.now();
            self.advance_periods(now);
            let crowded =
                above_high_water(self.coherence.copies_len(), self.context.tuning.unpublished_max);
            let due =
                now.since(flushed_at) >= FLUSH_PERIOD || crowded || self.allocator.is_starved();
            if due && !self.coherence.is_flushed() {
                flushed_at = now;
                self.context.env.mark("flush_of_our_own");
                // An error is counted. Not again at once: what makes it due is still there, and the
                // device needs a moment, or an operator.
                if self.flush_backing().await.is_err() && !self.is_stopping() {
                    first(
                        self.wake_publisher.notified(),
                        self.context.env.sleep(PAUSE_AFTER_ERROR),
                    )
                    .await;
                }
            } else if published == 0 {
                let rest = flushed_at.after(FLUSH_PERIOD).since(now);
                let pause = if rest == Nanos(0) { FLUSH_PERIOD } else { rest };
                first(wake, self.context.env.sleep(pause)).await;
            } else if published == BATCH {
                // There may be thousands more.
                self.context.env.yield_now().await;
            }
        }
    }

    pub(crate) async fn publish_all(&self) {
        self.coherence.copies_may_be_ready();
        while self.publish_batch().await.is_ok_and(|looked_at| looked_at > 0) {}
    }

    /// Publishes some of the copies that may be ready, as far as their ranges are not un-flushed.
    /// Says how many were looked at.
    async fn publish_batch(&self) -> Result<usize, EngineError> {
        let some = self.coherence.next_copies(BATCH);
        for &range in &some {
            if self.coherence.may_lose_all(range) {
                continue;
            }
            loop {
                let prepared =
                    self.index.prepare_change(self.inode(), range, PUBLISHED_AT_ONCE).await;
                if let Err(EngineError::NoSpace(_)) = prepared {
                    // N4: the copy is lost, and with it what pins its bucket.
                    self.coherence.drop_copies(range);
                    break;
                }
                let room = prepared.inspect_err(|_| self.coherence.copies_may_be_ready())?;
                if self.publish(range, room) {
                    break;
                }
            }
        }
        Ok(some.len())
    }

    /// A copy of what the backing device has: it is served from now on, and published when its
    /// range is not un-flushed. What a failed flush may have cost is not kept (F5).
    pub(crate) fn add_copy(&self, range: SectorRange, pointer: Pointer, pin: Pin) {
        let kept = self.coherence.keep_copy(range, pointer, pin);
        if !kept.whole {
            self.context.env.mark("suspect_copy_not_kept");
        }
        if !kept.waits || above_high_water(kept.copies, self.context.tuning.unpublished_max) {
            self.wake_publisher.notify_all();
        }
    }

    /// One step: copies in the range that are not un-flushed go into the index, where there is no
    /// key. False: there are more of them than room for their records.
    fn publish(&self, range: SectorRange, mut room: Reservation<'_, E>) -> bool {
        let copies = self.coherence.copies_over(range);
        if copies.is_empty() {
            self.context.env.mark("copy_gone_before_published");
        }
        for (range, pointer) in copies {
            for part in self.coherence.flushed_parts(range) {
                let mut known = IntervalSet::default();
                for extent in self.index.live_extents(self.inode(), part) {
                    known.insert(extent.range);
                }
                self.context.env.mark("copy_published");
                for gap in known.gaps(part) {
                    if room.left() == 0 {
                        return false;
                    }
                    let place = pointer.advance(gap.start - range.start);
                    // I3, I7: nothing is landing there, and nothing there can be lost.
                    assert!(
                        !self.coherence.inflight.backing_write_over(gap),
                        "a backing write is over {gap}"
                    );
                    assert!(!self.coherence.may_lose(gap), "{gap} is un-flushed");
                    assert!(!self.coherence.is_suspect(gap), "{gap} may be lost");
                    self.index.replace(&mut room, self.inode(), gap, Some((place, false)));
                }
                self.coherence.drop_copies(part);
            }
        }
        true
    }
}
