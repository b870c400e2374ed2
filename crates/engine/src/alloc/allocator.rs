//! The task that keeps free buckets ahead of demand, and waiting for it.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::ops::Range;
use std::rc::Rc;

use ubcache_env::local::{Either, Lock, Notify, first, join_all};
use ubcache_env::{Env, Nanos, SectorRange};

use super::buckets::Buckets;
use super::change_signal::ChangeSignal;
use super::open_buckets::{OpenBuckets, Pieces};
use super::prio_chain_io::Chain;
use crate::context::Context;
use crate::errors::EngineError;
use crate::journal::Journal;
use crate::replacement::data_class::Class;
use crate::rules::Rule;
use crate::time_slices::in_slices;

/// Rounds of the allocator that a client's write waits for before it goes to the backing device
/// instead.
const PATIENCE: u32 = 3;

/// A round in vain lasts this long, for those who wait for a number of rounds.
const ROUND_IN_VAIN: Nanos = Nanos::from_millis(20);

/// Pause after a prio chain that could not be written.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_millis(50);

/// Help is asked for at least this long, from writeback and flushes.
const HELP_PERIOD: Nanos = Nanos::from_millis(500);

/// Buckets that are discarded together.
const DISCARDS_AT_ONCE: usize = 64;

/// Calls to those that use buckets, when the allocator needs them.
pub(crate) struct Calls {
    /// No bucket can be given up: copies and dirty data have to go. True: chains come first in the
    /// journal, so nothing may wait for room there.
    pub starved: Box<dyn Fn(bool)>,
    /// Buckets wait for pointers that only garbage collection removes.
    pub old_pointers: Box<dyn Fn()>,
    /// Buckets were given up: a pass that chooses the next ones may be due.
    pub evicted: Box<dyn Fn()>,
}

/// Owner of the buckets: hands them out, gives them up, keeps the prio chain.
pub(crate) struct Allocator<E: Env> {
    pub(super) context: Context<E>,
    pub(super) journal: Rc<Journal<E>>,
    pub(super) buckets: RefCell<Buckets>,
    pub(super) open: RefCell<OpenBuckets>,
    /// The prio chain on the device.
    pub(super) chain: RefCell<Chain>,
    pub(super) chain_lock: Lock,
    /// Buckets that a chain has entries for: more than there are before the set grows (A10).
    pub(super) chain_entries: Cell<u32>,
    pub(super) wake: Notify,
    /// A round is done, with or without success.
    round: Notify,
    /// Every bucket is known, or never will be.
    pub(super) counted: Notify,
    /// Nodes wait for buckets, or the set fails or ends.
    claimed: Notify,
    /// Buckets have changed.
    signal: Rc<ChangeSignal>,
    /// A task waits although the watermark is not reached.
    wanted: Cell<bool>,
    /// Nothing can be given up: writeback and flushes have to help.
    is_starved: Cell<bool>,
    calls: RefCell<Option<Rc<Calls>>>,
}

impl<E: Env> Allocator<E> {
    pub fn new(
        context: Context<E>,
        journal: Rc<Journal<E>>,
        buckets: Buckets,
        chain: Chain,
    ) -> Allocator<E> {
        let (signal, entries) = (buckets.signal.clone(), context.geometry.buckets);
        Allocator {
            context,
            journal,
            buckets: RefCell::new(buckets),
            open: RefCell::default(),
            chain: RefCell::new(chain),
            chain_lock: Lock::default(),
            chain_entries: Cell::new(entries),
            wake: Notify::default(),
            round: Notify::default(),
            counted: Notify::default(),
            claimed: Notify::default(),
            signal,
            wanted: Cell::new(false),
            is_starved: Cell::new(false),
            calls: RefCell::default(),
        }
    }

    /// Makes these calls from now on.
    pub fn set_calls(&self, calls: Calls) {
        *self.calls.borrow_mut() = Some(Rc::new(calls));
    }

    fn calls(&self) -> Option<Rc<Calls>> {
        self.calls.borrow().clone()
    }

    pub fn buckets(&self) -> Ref<'_, Buckets> {
        self.buckets.borrow()
    }

    pub fn buckets_mut(&self) -> RefMut<'_, Buckets> {
        self.buckets.borrow_mut()
    }

    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.context.keeps(rule)
    }

    pub(super) fn slice_steps(&self, in_slices: Rule) -> usize {
        if self.keeps(in_slices) { self.context.tuning.slice_steps } else { usize::MAX }
    }

    /// Does something for every bucket, at so many steps each, in slices.
    pub async fn for_all_buckets(&self, steps: usize, work: impl FnMut(Range<usize>)) {
        let count = self.context.geometry.buckets as usize;
        in_slices(&self.context.env, self.context.tuning.slice_steps, count, steps, work).await;
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
        self.counted.notify_all();
        self.claimed.notify_all();
    }

    /// Returns true if nothing can be given up: writeback and flushes have to help.
    pub fn is_starved(&self) -> bool {
        self.is_starved.get()
    }

    /// Number of buckets that nodes are waiting for.
    pub fn nodes_wait(&self) -> usize {
        self.buckets.borrow().for_nodes
    }

    /// Keeps so many buckets from data until the claim is dropped: nodes need them (N4).
    pub fn claim_for_nodes(&self, count: usize) -> NodeClaim<'_, E> {
        self.buckets.borrow_mut().for_nodes += count;
        self.claimed.notify_all();
        NodeClaim { allocator: self, count }
    }

    /// Returns when nodes wait for buckets, or the set may have failed or ended.
    pub fn next_claim(&self) -> impl Future<Output = ()> {
        self.claimed.notified()
    }

    /// Waits for a round, which should leave so many buckets free for nodes.
    pub async fn wait_for_nodes(
        &self,
        needed: usize,
        what: &'static str,
    ) -> Result<(), EngineError> {
        let _claim = self.claim_for_nodes(needed);
        self.wait_for_buckets(what).await
    }

    /// No more data goes into any open bucket.
    pub fn close_open_buckets(&self) {
        self.open.borrow_mut().close_all(&mut self.buckets.borrow_mut());
    }
}

impl<E: Env> Allocator<E> {
    /// Room for data, now or not at all.
    pub fn try_allocate(&self, class: Class, sectors: u64, unit: u64) -> Option<Pieces> {
        let mut buckets = self.buckets.borrow_mut();
        let pieces = self.open.borrow_mut().allocate(
            &mut buckets,
            &self.context.geometry,
            class,
            sectors,
            unit,
        );
        self.check(&buckets);
        pieces
    }

    /// Room for data; waits for a few rounds of the allocator, never for ever.
    pub async fn allocate(&self, class: Class, sectors: u64, unit: u64) -> Option<Pieces> {
        for _ in 0..PATIENCE {
            if let Some(pieces) = self.try_allocate(class, sectors, unit) {
                return Some(pieces);
            }
            self.context.env.mark("allocation_waits");
            if self.wait_for_buckets("data").await.is_err() {
                return None;
            }
        }
        let last = self.try_allocate(class, sectors, unit);
        if last.is_none() {
            self.context.env.mark("allocation_given_up");
        }
        last
    }

    /// Waits until every bucket is known.
    pub async fn until_counted(&self) -> Result<(), EngineError> {
        loop {
            let counted = self.counted.notified();
            if self.buckets.borrow().is_counted() {
                return Ok(());
            }
            if let Some(reason) = self.context.health.failure() {
                return Err(EngineError::Failed(reason));
            }
            if self.context.health.is_ended() {
                return Err(EngineError::Stopping);
            }
            counted.await;
        }
    }

    /// Waits for one round of the allocator.
    pub async fn wait_for_buckets(&self, what: &'static str) -> Result<(), EngineError> {
        let mut can_progress = self.can_progress();
        // A stop keeps no client waiting: what is not counted yet may be free.
        while !can_progress
            && self.context.health.is_ending()
            && !self.buckets.borrow().is_counted()
        {
            if self.context.health.is_ended() || self.context.health.failure().is_some() {
                break;
            }
            first(self.counted.notified(), self.signal.next(true, true)).await;
            can_progress = self.can_progress();
        }
        if let Some(reason) = self.context.health.failure() {
            return Err(EngineError::Failed(reason));
        }
        if self.context.health.is_ended() {
            return Err(EngineError::Stopping);
        }
        if !can_progress {
            self.starved();
            return Err(EngineError::NoSpace(what));
        }
        let round = self.round.notified();
        self.wanted.set(true);
        self.wake.notify_all();
        round.await;
        Ok(())
    }

    fn can_progress(&self) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        buckets.settle_released(self.context.tuning.slice_steps);
        buckets.can_progress()
    }

    /// Nothing can be given up. Unpublished copies pin buckets, dirty data fills others: both
    /// need a backing flush or writeback.
    fn starved(&self) {
        if !self.is_starved.replace(true) {
            self.context.env.mark("allocator_starved");
        }
        if let Some(calls) = self.calls() {
            (calls.starved)(self.journal.puts_chains_first());
        }
    }

    /// The task that keeps free buckets ahead of demand.
    pub async fn run(&self) {
        loop {
            if self.context.health.is_ended() || self.context.health.failure().is_some() {
                self.round.notify_all();
                return;
            }
            let wake = self.wake.notified();
            if self.is_space_due() {
                self.try_again().await;
                self.find_space().await;
            }
            let due = {
                let mut buckets = self.buckets.borrow_mut();
                buckets.settle_released(self.context.tuning.slice_steps);
                let short = buckets.free_len() < buckets.watermarks().0;
                (short || self.wanted.get()) && buckets.can_progress()
            };
            if !due {
                self.wanted.set(false);
                self.round.notify_all();
                self.rest(wake).await;
                continue;
            }
            drop(wake);
            self.wanted.set(false);
            // One chain for all of them.
            let goal = self.buckets.borrow().watermarks().1 + self.nodes_wait();
            if self.evict(goal).await > 0 {
                self.context.env.mark("evicted_clean_data");
            }
            let aged = self.buckets.borrow().aged;
            if aged {
                self.context.env.mark("generations_aged");
                if let Some(calls) = self.calls() {
                    (calls.old_pointers)();
                }
            }
            if let Some(calls) = self.calls() {
                (calls.evicted)();
            }
            // No chain frees a bucket whose generation is durable and that waits for its pin. One
            // after the other would be written until the pin goes, and each takes room in the ring
            // that its owner may be waiting for.
            let freed = self.buckets.borrow().freed();
            let behind = self.settle_pending().await;
            if self.buckets.borrow().has_discarding() {
                self.discard_freed().await;
                self.round.notify_all();
                continue;
            }
            if !behind {
                let in_vain = self.buckets.borrow().freed() == freed;
                if in_vain {
                    self.starved();
                }
                self.round.notify_all();
                if in_vain {
                    self.context.env.sleep(ROUND_IN_VAIN).await;
                }
                continue;
            }
            if self.write_prios().await.is_err() {
                self.context.env.sleep(PAUSE_AFTER_ERROR).await;
            }
            self.discard_freed().await;
            self.round.notify_all();
        }
    }

    /// Waits until there may be something to do.
    async fn rest(&self, wake: impl Future<Output = ()>) {
        if self.is_space_due() {
            // More free buckets are to be asked about.
            return self.context.env.yield_now().await;
        }
        let (is_short, pending, try_at) = {
            let buckets = self.buckets.borrow();
            let is_short = buckets.free_len() < buckets.watermarks().0;
            (is_short, buckets.pending_len() > 0, buckets.next_try())
        };
        let event = first(wake, self.signal.next(is_short, is_short && pending));
        if self.is_starved() {
            if let Either::Right(()) = first(event, self.context.env.sleep(HELP_PERIOD)).await
                && self.buckets.borrow().free_len() >= self.buckets.borrow().watermarks().0
            {
                self.is_starved.set(false);
            }
        } else if let Some(at) = try_at {
            first(event, self.context.env.sleep_until(at)).await;
        } else {
            event.await;
        }
    }

    /// Tells the device which buckets hold nothing any more; then they are free. An error changes
    /// nothing: a discard is advice.
    async fn discard_freed(&self) {
        let all = self.buckets.borrow_mut().take_discarding();
        for some in all.chunks(DISCARDS_AT_ONCE) {
            if self.buckets.borrow().is_urgent() || !self.context.cache.limits().discard {
                self.context.env.mark("discard_skipped");
            } else {
                self.context.env.mark("bucket_discarded");
                let sectors = u64::from(self.context.geometry.bucket_sectors);
                let runs = some.chunk_by(|left, right| left.0 + 1 == right.0).map(|run| {
                    let at = self.context.geometry.bucket_start(run[0]);
                    self.context.cache.discard(SectorRange::new(at, sectors * run.len() as u64))
                });
                let failed = join_all(runs.collect::<Vec<_>>()).await.iter().any(Result::is_err);
                if failed {
                    self.context.env.mark("bucket_discard_failed");
                }
            }
            self.buckets.borrow_mut().discarded(some);
        }
    }
}

/// Buckets that data leaves to nodes: see [`Allocator::claim_for_nodes`].
pub(crate) struct NodeClaim<'a, E: Env> {
    allocator: &'a Allocator<E>,
    count: usize,
}

impl<E: Env> Drop for NodeClaim<'_, E> {
    fn drop(&mut self) {
        self.allocator.buckets.borrow_mut().for_nodes -= self.count;
    }
}
