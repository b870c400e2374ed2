//! The task that keeps free buckets ahead of demand, and waiting for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::{Either, Lock, Notify, first, join_all};
use ubcache_env::{Env, Nanos, SectorRange};

use super::buckets::Buckets;
use super::class::Class;
use super::prio::Chain;
use super::sectors::Pieces;
use crate::errors::EngineError;
use crate::set::Set;

/// Rounds of the allocator that a client's write waits for before it goes to the backing device
/// instead.
const PATIENCE: u32 = 3;

/// Buckets that are discarded together.
const DISCARDS_AT_ONCE: usize = 64;

pub(crate) struct Allocator {
    /// The prio chain on the device.
    pub chain: RefCell<Chain>,
    pub chain_lock: Lock,
    wake: Notify,
    /// A round is done, with or without success.
    round: Notify,
    /// Somebody waits although the watermark is not reached.
    hungry: Cell<bool>,
    /// Buckets that a restructuring waits for.
    pub nodes_wait: Cell<usize>,
    /// Nothing can be given up: writeback and flushes have to help.
    pub starved: Cell<bool>,
}

impl Allocator {
    pub fn new(chain: Chain) -> Allocator {
        Allocator {
            chain: RefCell::new(chain),
            chain_lock: Lock::default(),
            wake: Notify::default(),
            round: Notify::default(),
            hungry: Cell::new(false),
            nodes_wait: Cell::new(0),
            starved: Cell::new(false),
        }
    }

    /// Wakes the allocator if free buckets get few.
    pub fn check(&self, buckets: &Buckets) {
        if buckets.free_len() < buckets.watermarks().0 {
            self.wake.notify_all();
        }
    }

    pub fn wake_all(&self) {
        self.wake.notify_all();
        self.round.notify_all();
    }
}

impl<E: Env> Set<E> {
    /// Room for data, now or not at all.
    pub(crate) fn try_allocate(&self, class: Class, sectors: u64, unit: u64) -> Option<Pieces> {
        let mut buckets = self.buckets.borrow_mut();
        let pieces =
            self.open_buckets.borrow_mut().allocate(&mut buckets, &self.geometry, class, sectors, unit);
        self.allocator.check(&buckets);
        pieces
    }

    /// Room for data; waits for a few rounds of the allocator, never for ever.
    pub(crate) async fn allocate(&self, class: Class, sectors: u64, unit: u64) -> Option<Pieces> {
        for _ in 0..PATIENCE {
            if let Some(pieces) = self.try_allocate(class, sectors, unit) {
                return Some(pieces);
            }
            self.env.mark("allocation_waits");
            if self.wait_for_buckets("data").await.is_err() {
                return None;
            }
        }
        let last = self.try_allocate(class, sectors, unit);
        if last.is_none() {
            self.env.mark("allocation_given_up");
        }
        last
    }

    /// Waits for one round of the allocator.
    pub(crate) async fn wait_for_buckets(&self, what: &'static str) -> Result<(), EngineError> {
        let mut can_progress = self.can_progress();
        // A stop keeps no client waiting: what is not counted yet may be free.
        while !can_progress && self.is_ending() && !self.buckets.borrow().is_counted() {
            if self.is_ended() || self.failure().is_some() {
                break;
            }
            self.env.sleep(Nanos::from_millis(1)).await;
            can_progress = self.can_progress();
        }
        if let Some(reason) = self.failure() {
            return Err(EngineError::Failed(reason));
        }
        if self.is_ended() {
            return Err(EngineError::Stopping);
        }
        if !can_progress {
            self.starved();
            return Err(EngineError::NoSpace(what));
        }
        let round = self.allocator.round.notified();
        self.allocator.hungry.set(true);
        self.allocator.wake.notify_all();
        round.await;
        Ok(())
    }

    fn can_progress(&self) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        buckets.settle_released(self.tuning.slice_steps);
        buckets.can_progress()
    }

    /// Nothing can be given up. Unpublished copies pin buckets, dirty data fills others: both
    /// need a backing flush or writeback.
    fn starved(&self) {
        if !self.allocator.starved.replace(true) {
            self.env.mark("allocator_starved");
        }
        for volume in self.attached() {
            if self.journal.puts_chains_first() {
                // Publishing them needs the room in the journal that is being made.
                self.env.mark("copies_forgotten");
                volume.unpublished.borrow_mut().clear();
            }
            volume.wake_background();
        }
    }

    pub(crate) async fn allocator_task(self: Rc<Self>) {
        loop {
            if self.is_ended() || self.failure().is_some() {
                self.allocator.round.notify_all();
                return;
            }
            if self.is_room_due() {
                self.try_again().await;
                self.find_room().await;
            }
            let wake = self.allocator.wake.notified();
            let due = {
                let mut buckets = self.buckets.borrow_mut();
                buckets.settle_released(self.tuning.slice_steps);
                let short = buckets.free_len() < buckets.watermarks().0;
                (short || self.allocator.hungry.get()) && buckets.can_progress()
            };
            if !due {
                self.allocator.hungry.set(false);
                self.allocator.round.notify_all();
                // Pins are given back without a sound; look again now and then.
                let tick = self.env.sleep(Nanos::from_millis(500));
                if let Either::Right(()) = first(wake, tick).await
                    && self.buckets.borrow().free_len() >= self.buckets.borrow().watermarks().0
                {
                    self.allocator.starved.set(false);
                }
                continue;
            }
            drop(wake);
            self.allocator.hungry.set(false);
            // One chain for all of them.
            let goal = self.buckets.borrow().watermarks().1 + self.allocator.nodes_wait.get();
            if self.evict(goal).await > 0 {
                self.env.mark("evicted_clean_data");
            }
            let (pending, aged) = {
                let buckets = self.buckets.borrow();
                (buckets.pending_len(), buckets.aged)
            };
            if aged {
                self.env.mark("generations_aged");
                self.gc.request();
            }
            self.wake_gc_for_victims();
            if self.buckets.borrow().has_discarding() {
                self.discard_freed().await;
                self.allocator.round.notify_all();
                continue;
            }
            if pending == 0 {
                self.starved();
                self.allocator.round.notify_all();
                self.env.sleep(Nanos::from_millis(20)).await;
                continue;
            }
            if self.write_prios().await.is_err() {
                self.env.sleep(Nanos::from_millis(50)).await;
            }
            self.discard_freed().await;
            self.allocator.round.notify_all();
        }
    }

    /// Tells the device which buckets hold nothing any more; then they are free. An error changes
    /// nothing: a discard is advice.
    async fn discard_freed(&self) {
        let all = self.buckets.borrow_mut().take_discarding();
        for some in all.chunks(DISCARDS_AT_ONCE) {
            if self.buckets.borrow().is_urgent() || !self.cache.geometry().discard {
                self.env.mark("discard_skipped");
            } else {
                self.env.mark("bucket_discarded");
                let sectors = u64::from(self.geometry.bucket_sectors);
                let runs = some.chunk_by(|left, right| left.0 + 1 == right.0).map(|run| {
                    let at = self.geometry.bucket_start(run[0]);
                    self.cache.discard(SectorRange::new(at, sectors * run.len() as u64))
                });
                let failed = join_all(runs.collect::<Vec<_>>()).await.iter().any(Result::is_err);
                if failed {
                    self.env.mark("bucket_discard_failed");
                }
            }
            self.buckets.borrow_mut().discarded(some);
        }
    }
}
