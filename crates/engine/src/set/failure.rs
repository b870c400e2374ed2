//! When the cache device fails.

use std::rc::Rc;

use ubcache_env::{Env, IoError};

use super::Set;
use crate::mutants::Mutant;

impl<E: Env> Set<E> {
    /// J3: from now on the set fails with the first flush of the cache device that does, whoever asked for it: the next one
    /// would succeed, and make names durable whose data is gone.
    pub(crate) fn fails_with_its_flushes(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        if self.mutant(Mutant::FailedCacheFlushGoesOn) {
            return;
        }
        self.cache.when_flush_fails(move |error| {
            if let Some(set) = set.upgrade() {
                set.env.mark("cache_flush_failed");
                set.fail(format!("flushing the cache device: {error}"));
            }
        });
    }

    /// Reason of the set's failure, if it has failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Counts an error of the cache device; at the limit the set fails.
    /// Having no memory is nobody's error, and having no space is one of metadata only.
    pub(crate) fn note_cache_error(&self, what: &'static str, error: &IoError) {
        if matches!(error, IoError::NoMemory) {
            return;
        }
        if error.is_no_space() && !self.mutant(Mutant::NoSpaceCounts) {
            // Data would have been refused (N1). Metadata has nowhere else to go.
            return self.fail(format!("{what}: {error}"));
        }
        self.cache_errors.set(self.cache_errors.get() + 1);
        let limit = self.settings.borrow().io_error_limit;
        if matches!(error, IoError::Gone) || (limit > 0 && self.cache_errors.get() >= limit) {
            self.fail(format!("{what}: {error}"));
        }
    }

    /// The set can't change its metadata any more. Volumes without dirty data go on without it
    /// (A4), the others serve what needs no cache.
    pub(crate) fn fail(&self, reason: String) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.env.mark("set_failed");
        *self.failed.borrow_mut() = Some(reason);
        self.journal.fail();
        self.allocator.wake_all();
        for volume in self.attached() {
            volume.wake_background();
        }
    }
}
