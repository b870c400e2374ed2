//! When to write back, what, and how fast.

use std::pin::pin;
use std::rc::Rc;

use ubcache_env::local::{Either, first};
use ubcache_env::{Env, Nanos};

use super::controller::{ControllerInput, RATE_IDLE, target};
use super::outcome::Cleaned;
use crate::index::scan::DirtyScan;
use crate::stats::WritebackActivity;
use crate::volume::{Attached, CachedVolume};

/// From this rate on, in sectors a second, a batch has as many extents as it may.
const FULL_BATCH_RATE: u64 = 16384;
/// A batch has at most this many extents.
const BATCH_EXTENTS_MAX: usize = 512;
/// Not at once again after an error: the device needs a moment, or an operator.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_secs(1);
/// Dirty data that the scan did not see came behind it. A client that writes there all the time
/// does not make it run without a pause.
const PAUSE_AFTER_NOTHING: Nanos = Nanos::from_millis(100);

impl<E: Env> CachedVolume<E> {
    /// The writeback task of the volume.
    pub(crate) async fn writeback_task(self: Rc<Self>) {
        let mut cursor = self.scan_start();
        let mut updated_at = self.context.env.now();
        // Dirty extents that the present scan has seen.
        let mut seen = 0;
        while !self.ends() {
            let wake = self.writeback.wake.notified();
            let (running, update_seconds) = {
                let settings = self.settings();
                let running = settings.writeback_running || self.lifecycle.is_draining();
                (running, settings.writeback_rate_update_seconds)
            };
            let period = Nanos::from_secs(update_seconds);
            if self.context.env.now().since(updated_at) >= period {
                updated_at = self.context.env.now();
                self.update_rate();
            }
            let dirty = self.index.dirty_sectors(self.inode());
            let activity = match dirty {
                0 => WritebackActivity::Idle,
                _ if !running => WritebackActivity::Off,
                _ => WritebackActivity::Running,
            };
            self.writeback.activity.set(activity);
            if !running || dirty == 0 {
                if running {
                    self.mark_clean_if_so().await;
                }
                first(wake, self.context.env.sleep(period)).await;
                continue;
            }
            let rate = self.rate();
            let sectors_max = rate.clamp(8, self.context.tuning.batch_sectors_max);
            let extents_max = if rate >= FULL_BATCH_RATE { BATCH_EXTENTS_MAX } else { 64 };
            let DirtyScan { extents, next, unreadable } =
                self.index.dirty_extents(self.inode(), cursor, sectors_max, extents_max).await;
            seen += extents.len();
            let (mut cleaned, paced) = match extents.is_empty() {
                true => (Cleaned::default(), 0),
                false => self.start_batch(extents).await,
            };
            if paced > 0 {
                let now = self.context.env.now();
                let wait = self.writeback.limiter.borrow_mut().delay(now, paced, rate);
                if wait.0 > 0 && !self.is_urgent() {
                    self.rest(wait).await;
                }
            }
            if next.is_none() {
                cleaned = cleaned.with(self.end_batches().await);
            }
            if let Some(error) = &unreadable {
                self.writeback.cannot_read(error.is_no_memory());
            }
            if cleaned.failed > 0 || unreadable.is_some() {
                self.writeback.activity.set(WritebackActivity::Failing);
                self.rest(PAUSE_AFTER_ERROR).await;
            }
            match next {
                Some(next) => cursor = next,
                None => {
                    // The whole volume was seen.
                    cursor = self.scan_start();
                    self.mark_clean_if_so().await;
                    if let Some(busy) = cleaned.busy {
                        self.rest_until(self.coherence.inflight.lets_writeback_in(busy)).await;
                    } else if seen == 0 && unreadable.is_none() {
                        self.rest(PAUSE_AFTER_NOTHING).await;
                    } else if !self.is_urgent() {
                        if cleaned.failed == 0 && unreadable.is_none() {
                            self.writeback.activity.set(WritebackActivity::Waiting);
                        }
                        self.rest_between_scans().await;
                    }
                    seen = 0;
                    let now = self.context.env.now();
                    self.writeback.limiter.borrow_mut().reset(now);
                }
            }
        }
        self.end_batches().await;
    }

    /// Waits for the delay between two scans, with the same exceptions as [`Self::rest`]. A delay
    /// that is made shorter meanwhile counts at once.
    async fn rest_between_scans(&self) {
        let began = self.context.env.now();
        loop {
            let wake = self.writeback.wake.notified();
            let over = began.after(Nanos::from_secs(self.settings().writeback_delay));
            let now = self.context.env.now();
            if now >= over || self.ends() || self.is_urgent() {
                return;
            }
            first(wake, self.context.env.sleep(over.since(now))).await;
        }
    }

    /// The task has nothing to do any more.
    pub(super) fn ends(&self) -> bool {
        self.is_stopping() || !self.lifecycle.uses_cache() || self.context.failure().is_some()
    }

    /// Sleeps, but not through the end of the volume, a full cache, or a drain.
    async fn rest(&self, span: Nanos) {
        self.rest_until(self.context.env.sleep(span)).await;
    }

    /// Waits for this, with the same exceptions.
    async fn rest_until(&self, over: impl Future<Output = ()>) {
        let mut over = pin!(over);
        loop {
            let wake = self.writeback.wake.notified();
            if self.ends() || matches!(first(wake, over.as_mut()).await, Either::Right(())) {
                return;
            }
            if self.is_urgent() {
                return;
            }
        }
    }

    /// No pacing: a drain was asked for, or nothing else can make room.
    fn is_urgent(&self) -> bool {
        self.settings().writeback_percent == 0
            || self.lifecycle.is_draining()
            || self.allocator.is_starved()
    }

    fn rate(&self) -> u64 {
        if self.is_urgent() { RATE_IDLE } else { self.writeback.rate() }
    }

    fn update_rate(&self) {
        let dirty = self.index.dirty_sectors(self.inode());
        let settings = self.settings();
        if dirty == 0 || settings.writeback_percent == 0 {
            return;
        }
        let Attached { volumes, sectors: all, flash_dirty } = (self.attached)();
        let own = self.backing.limits().sectors;
        let buckets = self.allocator.buckets();
        let cache = u64::from(buckets.end()) * u64::from(buckets.bucket_sectors());
        let may_idle = self.context.settings().idle_max_writeback_rate && !self.gc.is_running();
        let idle = may_idle && self.writeback.idle.borrow_mut().tick(volumes);
        let input = ControllerInput {
            now: self.context.env.now(),
            next_io: self.writeback.limiter.borrow().next(),
            idle,
            dirty,
            target: target(cache, flash_dirty, settings.writeback_percent, own, all),
            in_use_percent: buckets.in_use_percent(),
            used_buckets: buckets.unavailable(),
            bucket_sectors: u64::from(self.context.geometry.bucket_sectors),
            percent: settings.writeback_percent,
            update_seconds: settings.writeback_rate_update_seconds,
            p_term_inverse: settings.writeback_rate_p_term_inverse,
            i_term_inverse: settings.writeback_rate_i_term_inverse,
            rate_minimum: settings.writeback_rate_minimum,
            consider_fragment: settings.writeback_consider_fragment,
            fp_term_low: settings.writeback_rate_fp_term_low,
            fp_term_mid: settings.writeback_rate_fp_term_mid,
            fp_term_high: settings.writeback_rate_fp_term_high,
        };
        self.writeback.controller.borrow_mut().update(&input);
    }
}
