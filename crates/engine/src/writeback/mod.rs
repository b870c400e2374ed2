//! Background writeback: dirty data to the backing device, in its order, at a controlled rate.
//!
//! | module | holds |
//! |---|---|
//! | [`controller`] | how fast: bcache's PI controller |
//! | [`idle`] | detection of an idle set |
//! | [`limiter`] | sleeps that keep a rate |
//! | [`batch`] | one batch: rules B1–B5 |
//! | [`outcome`] | what became of batches |
//! | [`batches`] | several at a time, where the backing device is far |
//! | [`task`] | when and what: scanning, pacing, marking the volume clean |

use std::cell::{Cell, RefCell};

use controller::{RateController, RateDebug};
use idle::IdleCounter;
use limiter::RateLimiter;
use outcome::Batches;
use ubcache_env::Nanos;
use ubcache_env::local::{Notified, Notify};

use crate::stats::WritebackActivity;

pub(crate) mod batch;
mod batches;
pub mod controller;
mod idle;
pub(crate) mod limiter;
mod outcome;
pub(crate) mod task;

/// Pace of a volume's writeback, a place to wake its task, and one to wait for it.
pub(crate) struct Writeback {
    wake: Notify,
    progress: Notify,
    unreadable: Cell<u64>,
    ends_drains: Cell<bool>,
    controller: RefCell<RateController>,
    limiter: RefCell<RateLimiter>,
    idle: RefCell<IdleCounter>,
    activity: Cell<WritebackActivity>,
    batches: Batches,
}

impl Writeback {
    pub fn new() -> Writeback {
        Writeback {
            wake: Notify::default(),
            progress: Notify::default(),
            unreadable: Cell::default(),
            ends_drains: Cell::default(),
            controller: RefCell::new(RateController::new()),
            limiter: RefCell::new(RateLimiter::new()),
            idle: RefCell::new(IdleCounter::new()),
            activity: Cell::default(),
            batches: Batches::default(),
        }
    }

    /// There is something to do.
    pub fn wake(&self) {
        self.wake.notify_all();
    }

    /// The cache does not return dirty data, or a leaf of the index with keys of it. Lack of memory
    /// passes.
    pub fn cannot_read(&self, for_lack_of_memory: bool) {
        if !for_lack_of_memory {
            self.unreadable.set(self.unreadable.get() + 1);
            self.progresses();
        }
    }

    /// Number of times that this happened.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.get()
    }

    /// The volume is being released with its dirty data: nobody waits for the end of it.
    pub fn end_drains(&self) {
        self.ends_drains.set(true);
        self.progresses();
    }

    /// See [`Writeback::end_drains`].
    pub fn ends_drains(&self) -> bool {
        self.ends_drains.get()
    }

    /// A batch has ended, a device has failed, or the task may be ending.
    pub fn progresses(&self) {
        self.progress.notify_all();
    }

    /// Waits for that.
    pub fn progress(&self) -> Notified<'_> {
        self.progress.notified()
    }

    /// A request begins: the volume is not idle.
    #[inline]
    pub fn request(&self) {
        self.idle.borrow_mut().request();
        self.controller.borrow_mut().leave_idle();
    }

    /// Activity of the task.
    pub fn activity(&self) -> WritebackActivity {
        self.activity.get()
    }

    /// Rate in sectors per second.
    pub fn rate(&self) -> u64 {
        self.controller.borrow().rate()
    }

    /// Sets the rate, until the controller changes it.
    pub fn set_rate(&self, rate: u64) {
        self.controller.borrow_mut().set_rate(rate);
    }

    /// Text of the attribute `writeback_rate_debug`: rate and target of the last update, and the
    /// dirty data of now, in sectors.
    pub fn debug(&self, now: Nanos, dirty: u64) -> String {
        let next = self.limiter.borrow().next_ms(now);
        RateDebug { dirty, ..self.controller.borrow().debug() }.text(next)
    }
}
