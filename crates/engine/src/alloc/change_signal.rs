//! Signal that buckets have changed in a way that the allocator waits for: some could be given up,
//! or have lost their last pin, or the device is to be asked for room below them.

use std::cell::Cell;

use ubcache_env::local::{Notified, Notify};

/// So many buckets that lost their last pin wait to be looked at, at most.
const RELEASED_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct ChangeSignal {
    /// Somebody waits for a bucket that could be given up.
    wants_buckets: Cell<bool>,
    /// The signal is given when so many buckets have lost their last pin.
    released_enough: Cell<usize>,
    changed: Notify,
}

impl Default for ChangeSignal {
    fn default() -> ChangeSignal {
        ChangeSignal {
            wants_buckets: Cell::new(false),
            released_enough: Cell::new(RELEASED_MAX),
            changed: Notify::default(),
        }
    }
}

impl ChangeSignal {
    /// Returns at the next signal. `wants_buckets`: a bucket that could be given up gives one;
    /// `wants_pins`: so does each that loses its last pin.
    pub fn next(&self, wants_buckets: bool, wants_pins: bool) -> Notified<'_> {
        self.wants_buckets.set(self.wants_buckets.get() || wants_buckets);
        if wants_pins {
            self.released_enough.set(1);
        }
        self.changed.notified()
    }

    /// The allocator has something to do.
    pub fn give(&self) {
        self.wants_buckets.set(false);
        self.released_enough.set(RELEASED_MAX);
        self.changed.notify_all();
    }

    /// A bucket could be given up that could not before.
    #[inline]
    pub fn found_bucket(&self) {
        if self.wants_buckets.get() {
            self.give();
        }
    }

    /// So many buckets have lost their last pin since the allocator looked.
    #[inline]
    pub fn released(&self, count: usize) {
        if count >= self.released_enough.get() {
            self.give();
        }
    }
}
