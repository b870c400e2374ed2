//! The lock of a reactor's thread: other threads may look at what it owns while it waits.
//!
//! Without anything shared there is no lock. From the first [`OwnerLock::begin`] on the owner holds
//! it whenever it runs, and lets go of it while it is in the kernel, and between two tasks if
//! another thread asks. So what stands between two awaits of the owner stays one step, and what
//! another thread does under the lock is one step of its own.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::RawMutex;
use parking_lot::lock_api::{RawMutex as _, RawMutexFair as _};

/// Spins of a pause: about a microsecond.
const PAUSE_SPINS: u32 = 32;

/// See the module. The owner's calls are for its thread only.
pub(crate) struct OwnerLock {
    raw: RawMutex,
    /// Something is shared: the owner takes part.
    is_used: AtomicBool,
    /// Threads that wait for the lock.
    wanted: AtomicU32,
    /// The owner ends: others get nothing any more.
    is_ending: AtomicBool,
    /// The owner has let go of the lock for good.
    is_closed: AtomicBool,
    /// Another thread has panicked under the lock: what is shared may be half changed.
    is_broken: AtomicBool,
}

impl Default for OwnerLock {
    fn default() -> OwnerLock {
        OwnerLock {
            raw: RawMutex::INIT,
            is_used: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            is_ending: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
        }
    }
}

/// Lets go of the lock when it is dropped.
struct Held<'a> {
    lock: &'a OwnerLock,
    /// The thread was panicking already: what it does under the lock is part of its end.
    was_panicking: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.lock.is_broken.store(true, Ordering::Relaxed);
        }
        // SAFETY: whoever made this has locked it, on this thread.
        unsafe { self.lock.raw.unlock() };
    }
}

/// Takes the lock when it is dropped.
struct Left<'a>(&'a RawMutex);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.lock();
    }
}

impl OwnerLock {
    fn is_held_by_owner(&self) -> bool {
        self.is_used.load(Ordering::Relaxed) && !self.is_closed.load(Ordering::Relaxed)
    }

    /// Owner: from now on something is shared.
    pub(crate) fn begin(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.raw.lock();
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Owner: does something that touches nothing that is shared, without the lock.
    pub(crate) fn without<R>(&self, act: impl FnOnce() -> R) -> R {
        if !self.is_held_by_owner() {
            return act();
        }
        // SAFETY: the owner has locked it, in `begin` or after the last time it was without.
        unsafe { self.raw.unlock() };
        let left = Left(&self.raw);
        let result = act();
        drop(left);
        self.check();
        result
    }

    /// Owner: goes no further if what it shares was left half changed, unless it ends anyway.
    fn check(&self) {
        let is_broken = self.is_broken.load(Ordering::Relaxed);
        let ends = self.is_ending.load(Ordering::Relaxed) || std::thread::panicking();
        assert!(!is_broken || ends, "a lane has panicked inside the engine");
    }

    /// Owner: gives the lock away for a moment if another thread waits for it.
    #[inline]
    pub(crate) fn give_way(&self) {
        if self.wanted.load(Ordering::Relaxed) > 0 && self.is_held_by_owner() {
            // SAFETY: as in `without`.
            unsafe { self.raw.bump() };
            self.check();
        }
    }

    /// Owner: has nothing to do for a moment, and stays awake.
    #[inline]
    pub(crate) fn pause(&self) {
        if self.is_held_by_owner() {
            // Longer than another thread needs: one that has to sleep for the lock is woken late.
            self.without(|| (0..PAUSE_SPINS).for_each(|_| std::hint::spin_loop()));
        } else {
            std::hint::spin_loop();
        }
    }

    /// Owner: begins to end. Other threads get nothing any more: it may have panicked in the middle
    /// of a step.
    pub(crate) fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// Owner: has ended, and lets go of the lock.
    pub(crate) fn close(&self) {
        if self.is_held_by_owner() {
            self.is_closed.store(true, Ordering::Relaxed);
            // SAFETY: as in `without`.
            unsafe { self.raw.unlock() };
        }
    }

    /// Another thread: does something under the lock. `None`: the owner has ended, or ends.
    pub(crate) fn with<R>(&self, act: impl FnOnce() -> R) -> Option<R> {
        if !self.raw.try_lock() {
            self.wanted.fetch_add(1, Ordering::Relaxed);
            self.raw.lock();
            self.wanted.fetch_sub(1, Ordering::Relaxed);
        }
        let _held = Held { lock: self, was_panicking: std::thread::panicking() };
        let is_over = [&self.is_ending, &self.is_broken];
        let is_there = !is_over.into_iter().any(|it| it.load(Ordering::Relaxed));
        is_there.then(act)
    }
}
