//! Scrub: clean cached data is compared with the backing device, while clients go on (Q1).
//!
//! | module | holds |
//! |---|---|
//! | here | state and counts of a pass |
//! | [`pass`] | a pass: its start, its end, its rate |
//! | [`compare`] | one piece: both sides are read, and what differs is dropped |

use std::cell::{Cell, RefCell};

use ubcache_env::Nanos;
use ubcache_env::local::{Notified, Notify};

use crate::stats::scrub::{ScrubState, ScrubStatus};
use crate::writeback::limiter::RateLimiter;

mod compare;
mod pass;

/// The scrub of a volume.
#[derive(Default)]
pub(crate) struct Scrub {
    status: Cell<ScrubStatus>,
    began: Cell<Nanos>,
    is_to_stop: Cell<bool>,
    wake: Notify,
    ended: Notify,
    limiter: RefCell<RateLimiter>,
}

impl Scrub {
    /// The pass, at this moment.
    pub fn status(&self, now: Nanos) -> ScrubStatus {
        let status = self.status.get();
        match status.state {
            ScrubState::Running => ScrubStatus { elapsed: now.since(self.began.get()), ..status },
            _ => status,
        }
    }

    /// Returns true if a pass is under way.
    pub fn is_running(&self) -> bool {
        self.status.get().state == ScrubState::Running
    }

    /// Waits until no pass is under way.
    pub async fn ends(&self) {
        while self.is_running() {
            self.ended.notified().await;
        }
    }

    /// Ends a pass at its next piece.
    pub fn stop(&self) {
        self.is_to_stop.set(true);
        self.wake();
    }

    /// Something has changed that a pass has to look at: the rate, or the state of the volume.
    pub fn wake(&self) {
        self.wake.notify_all();
    }

    fn woken(&self) -> Notified<'_> {
        self.wake.notified()
    }

    fn begin(&self, now: Nanos, size_bytes: u64) {
        self.is_to_stop.set(false);
        self.began.set(now);
        self.limiter.borrow_mut().reset(now);
        let state = ScrubState::Running;
        self.status.set(ScrubStatus { state, size_bytes, ..ScrubStatus::default() });
    }

    fn end(&self, now: Nanos, state: ScrubState) {
        self.status.set(ScrubStatus { state, ..self.status(now) });
        self.ended.notify_all();
    }

    fn note(&self, change: impl FnOnce(&mut ScrubStatus)) {
        let mut status = self.status.get();
        change(&mut status);
        self.status.set(status);
    }
}
