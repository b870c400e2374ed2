//! Background writeback: dirty data to the backing device, in its order, at a controlled rate.
//!
//! | module | holds |
//! |---|---|
//! | [`controller`] | how fast: bcache's PI controller and rate limiter |
//! | [`flusher`] | one batch: rules B1–B5 |
//! | [`task`] | when and what: scanning, pacing, marking the volume clean |

use std::cell::RefCell;

use controller::{IdleCounter, RateController, RateLimiter};
use ubcache_env::local::Notify;

pub mod controller;
pub(crate) mod flusher;
pub(crate) mod task;

/// Pace of a volume's writeback, a place to wake its task, and one to wait for it.
pub(crate) struct Writeback {
    pub wake: Notify,
    /// A batch has ended, the backing device has failed, or the task may be ending.
    pub progress: Notify,
    pub controller: RefCell<RateController>,
    pub limiter: RefCell<RateLimiter>,
    pub idle: RefCell<IdleCounter>,
}

impl Writeback {
    pub fn new() -> Writeback {
        Writeback {
            wake: Notify::default(),
            progress: Notify::default(),
            controller: RefCell::new(RateController::new()),
            limiter: RefCell::new(RateLimiter::new()),
            idle: RefCell::new(IdleCounter::new()),
        }
    }
}
