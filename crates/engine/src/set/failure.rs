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

    /// The set stops changing its metadata when it fails. Volumes without dirty data go on without it
    /// (A4), the others serve what needs no cache.
    pub(crate) fn stops_when_failed(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        self.health.when_failed(move || {
            let Some(set) = set.upgrade() else { return };
            set.journal.fail();
            set.allocator.wake_all();
            for volume in set.attached() {
                volume.wake_background();
            }
        });
    }

    /// Reason of the set's failure, if it has failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.health.failure()
    }

    /// Counts an error of the cache device; at the limit the set fails.
    pub(crate) fn note_cache_error(&self, what: &'static str, error: &IoError) {
        self.health.note_error(what, error);
    }

    pub(crate) fn fail(&self, reason: String) {
        self.health.fail(reason);
    }
}
