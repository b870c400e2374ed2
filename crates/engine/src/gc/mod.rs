//! Garbage collection: in passes over the leaves, a leaf at a time, never stopping anybody.
//!
//! Space is known without it: live and dirty sectors of every bucket are counted exactly. A pass
//! finds the oldest pointers into each bucket, rewrites leaves that are full of old ones, merges
//! small neighbours, drops the keys of dead volumes, and moves what is left in sparse buckets
//! together.
//!
//! | module | holds |
//! |---|---|
//! | [`ages`] | how old pointers are; interior nodes |
//! | [`mark`] | the pass over the leaves; counting at start |
//! | [`moving`] | moving live data out of sparse buckets |

use std::cell::{Cell, RefCell};

use ubcache_env::local::{Lock, Notify};

pub(crate) mod ages;
pub(crate) mod mark;
pub(crate) mod moving;

#[derive(Default, Debug)]
pub(crate) struct GcState {
    wake: Notify,
    requested: Cell<bool>,
    running: Lock,
    /// Bytes written to the cache device when the last pass began.
    began_at_bytes: Cell<u64>,
    /// Findings of a pass, until they hold for the device as well.
    ages: RefCell<Option<ages::Ages>>,
}

impl GcState {
    /// A pass is due.
    pub fn request(&self) {
        self.requested.set(true);
        self.wake.notify_all();
    }
    pub fn wake(&self) {
        self.wake.notify_all();
    }
    pub fn is_running(&self) -> bool {
        self.running.is_locked()
    }
}
