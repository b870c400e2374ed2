//! Calls of lower parts to higher ones, which the set passes on: the cache device fails, buckets
//! are needed, garbage collection asks.

use std::rc::Rc;

use ubcache_env::Env;

use super::Set;
use crate::alloc::allocator::Calls;
use crate::events::VolumeChange;
use crate::rules::Rule;

impl<E: Env> Set<E> {
    /// Takes all of them from now on.
    pub(super) fn takes_calls(self: &Rc<Self>) {
        self.stops_when_failed();
        self.helps_the_allocator();
        self.tells_gc_of_writebacks();
        self.fails_with_its_flushes();
    }

    /// J3: from now on the set fails with the first flush of the cache device that does, whoever
    /// asked for it: the next one would succeed, and make names durable whose data is gone.
    fn fails_with_its_flushes(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        if self.context.keeps(Rule::J3FailsTheSet) {
            self.context.cache.when_flush_fails(move |error| {
                if let Some(set) = set.upgrade() {
                    set.context.env.mark("cache_flush_failed");
                    set.context.fail(format!("flushing the cache device: {error}"));
                }
            });
        }
    }

    /// The set stops changing its metadata when it fails. Volumes without dirty data go on without
    /// it (A4), the others serve what needs no cache.
    fn stops_when_failed(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        self.context.health.when_failed(move || {
            let Some(set) = set.upgrade() else { return };
            set.journal.give_up_kept();
            set.journal.fail();
            set.allocator.wake_all();
            set.state_changed.notify_all();
            set.flash_fails();
            for volume in set.attached() {
                let dirty = set.index.dirty_sectors(volume.inode());
                let change = match dirty {
                    0 => VolumeChange::CacheLost,
                    dirty => VolumeChange::Failed { dirty },
                };
                set.context.events.volume(volume.uuid(), change);
                volume.wake_background();
            }
        });
    }

    /// Volumes and garbage collection give up buckets when the allocator asks for it.
    fn helps_the_allocator(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        let call = move |call: fn(&Set<E>)| {
            let set = set.clone();
            Box::new(move || set.upgrade().iter().for_each(|set| call(set)))
        };
        let set = Rc::downgrade(self);
        let starved = move |chains_first| {
            for volume in set.upgrade().iter().flat_map(|set| set.attached()) {
                if chains_first {
                    // Publishing them needs the room in the journal that is being made.
                    volume.context.env.mark("copies_forgotten");
                    volume.coherence.drop_all_copies();
                }
                volume.wake_background();
            }
        };
        self.allocator.set_calls(Calls {
            starved: Box::new(starved),
            old_pointers: call(|set| set.gc.request()),
            evicted: call(|set| set.gc.wake_for_victims()),
        });
    }

    /// Garbage collection marks a pass beside writeback.
    fn tells_gc_of_writebacks(self: &Rc<Self>) {
        let set = Rc::downgrade(self);
        self.gc.ask_for_writebacks(move || {
            let set = set.upgrade();
            set.is_some_and(|set| {
                set.attached().iter().any(|one| one.coherence.inflight.has_writebacks())
            })
        });
    }
}
