//! Buckets beyond the end of a cache that becomes smaller (A12): they are given out no more, and
//! what is in them goes.
//!
//! ```text
//!  free, promised, put aside ──────────────┐
//!  dead, clean data ──▶ given up           ├──▶ evacuated
//!  dirty data ──moved──▶ dead   └─chain────┤
//!  nodes, table, chain ──written anew──────┘
//! ```

use std::collections::VecDeque;
use std::ops::Range;

use ubcache_env::Env;
use ubcache_format::BucketNr;

use super::allocator::Allocator;
use super::buckets::{Buckets, Role};
use super::pace::Pace;
use crate::errors::EngineError;
use crate::time_slices::in_slices;

/// A look at a bucket somewhere takes as long as so many steps of a loop over neighbours.
const LOOK_STEPS: usize = 16;

/// Needs of a smaller cache, and its room, in buckets.
#[derive(Copy, Clone, Default, Debug)]
pub(crate) struct Fit {
    /// For what moves there from beyond the end, and for what is kept free.
    pub needed: u64,
    /// Free, given up, dead or clean.
    pub spare: u64,
}

/// Content beyond the end.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Beyond {
    /// Buckets that are not evacuated.
    pub buckets: u64,
    /// Sectors of dirty data in them.
    pub dirty: u64,
    /// Buckets with metadata.
    pub metadata: u64,
    /// Buckets that wait for a pass of garbage collection (G4).
    pub aged: u64,
}

impl Buckets {
    /// The number of buckets that the cache has, or will have when it is smaller.
    #[inline]
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Returns true if the bucket is given out no more.
    #[inline]
    pub fn is_beyond(&self, bucket: BucketNr) -> bool {
        bucket.0 >= self.end
    }

    /// Number of buckets beyond the end that are not evacuated. Those that are being opened again
    /// count as evacuated before the end.
    #[inline]
    pub fn left_beyond(&self) -> usize {
        (self.geometry.buckets - self.end).saturating_sub(self.evacuated) as usize
    }

    /// Changes how dirty data beyond the end is moved.
    pub fn set_pace(&mut self, pace: Pace) {
        self.evacuation.pace = pace;
    }

    /// Returns true if dirty data in the bucket is to be moved, as it is beyond the end.
    pub fn is_left(&self, bucket: BucketNr) -> bool {
        self.is_beyond(bucket) && self.evacuation.pace != Pace::Ended
    }

    /// Returns true if data that is moved may wait for room, without which the cache can't become
    /// smaller.
    pub fn waits_for_room(&self) -> bool {
        self.left_beyond() > 0 && self.evacuation.pace == Pace::Waits
    }

    /// Nothing is in the bucket, durably. Returns true if it is beyond the end, and so evacuated.
    pub(super) fn evacuates(&mut self, bucket: BucketNr) -> bool {
        let beyond = self.is_beyond(bucket);
        if beyond {
            self.space.lacks.remove(&bucket);
            self.set_role(bucket, Role::Evacuated);
        }
        beyond
    }

    /// Free buckets are used from the last on.
    pub fn take_last_first(&mut self) {
        self.last_first = true;
    }

    fn set_end(&mut self, end: u32) {
        self.end = end;
        self.watermarks = self.watermarks_of(end);
    }

    /// Looks at the next few buckets of a list, of which those beyond the end are evacuated.
    fn sieve(&mut self, list: fn(&mut Buckets) -> &mut VecDeque<BucketNr>, count: usize) {
        for _ in 0..count {
            let Some(bucket) = list(self).pop_front() else { return };
            if !self.evacuates(bucket) {
                list(self).push_back(bucket);
            }
        }
    }

    /// No bucket beyond the end is free any more. A chain that promises one to the next start does
    /// no harm: nothing is put into it before a newer one is durable.
    fn keep_no_promise(&mut self) {
        let restart = std::mem::take(&mut self.restart);
        self.work.add(restart.len());
        for bucket in restart {
            if self.evacuates(bucket) {
                self.evacuation.promised.insert(bucket);
            } else {
                self.restart.push(bucket);
            }
        }
        // They wait for nothing any more (see [`Buckets::settle_pending`]).
        self.work.add(self.held.len());
        self.pending.extend(self.held.drain(..));
    }

    fn give_up_dead(&mut self, count: usize) {
        for _ in 0..count {
            let Some(bucket) = self.dead.pop_front() else { return };
            if self.is_beyond(bucket) && self.may_take(bucket) {
                self.invalidate(bucket);
            } else {
                self.dead.push_back(bucket);
            }
        }
    }

    fn give_up_clean(&mut self, buckets: Range<usize>) {
        for index in buckets {
            let bucket = BucketNr(index as u32);
            if self.role[index] == Role::Data && self.may_take(bucket) {
                self.invalidate(bucket);
            }
        }
    }

    fn count_free(&self, buckets: Range<usize>) -> usize {
        buckets.filter(|&index| self.role[index] == Role::Free).count()
    }

    /// Gives up clean buckets among these until `missing` are given up.
    fn give_up_some(&mut self, buckets: Range<usize>, missing: &mut usize) {
        for index in buckets {
            let bucket = BucketNr(index as u32);
            let clean = self.role[index] == Role::Data && self.may_take(bucket);
            if *missing > 0 && clean {
                self.invalidate(bucket);
                *missing -= 1;
            }
        }
    }

    fn look_beyond(&mut self, buckets: Range<usize>, found: &mut Beyond) {
        for index in buckets {
            let (role, bucket) = (self.role[index], BucketNr(index as u32));
            let aged = matches!(role, Role::Data | Role::Dead) && self.is_aged(bucket);
            self.aged |= aged;
            found.buckets += u64::from(role != Role::Evacuated);
            found.dirty += u64::from(self.dirty[index]);
            found.metadata += u64::from(role == Role::Metadata);
            found.aged += u64::from(aged);
        }
    }

    fn look_below(&self, buckets: Range<usize>, fit: &mut Fit) {
        fit.spare += buckets
            .filter(|&index| match self.role[index] {
                Role::Free | Role::Restart | Role::Pending | Role::Discarding | Role::Dead => true,
                Role::Data => self.dirty[index] == 0,
                Role::Unknown | Role::Metadata | Role::Open | Role::Aside | Role::Evacuated => {
                    false
                }
            })
            .count() as u64;
    }

    fn open_again(&mut self, buckets: Range<usize>) {
        for index in buckets {
            let bucket = BucketNr(index as u32);
            let evacuated = self.role[index] == Role::Evacuated;
            if evacuated && !self.evacuation.promised.contains(&bucket) {
                self.set_free(bucket);
            }
        }
    }
}

impl<E: Env> Allocator<E> {
    async fn for_buckets(&self, buckets: Range<u32>, mut work: impl FnMut(Range<usize>)) {
        let (first, count) = (buckets.start as usize, buckets.len());
        let steps = self.context.tuning.slice_steps;
        in_slices(&self.context.env, steps, count, 1, |part| {
            work(first + part.start..first + part.end)
        })
        .await;
    }

    /// Looks if a cache with so many buckets has room for what this one can't give up.
    pub async fn fit(&self, end: u32) -> Fit {
        let (mut fit, mut beyond) = (Fit::default(), Beyond::default());
        let first = self.context.geometry.first_bucket + self.context.geometry.journal_buckets;
        let buckets = &self.buckets;
        let all = buckets.borrow().end();
        self.for_buckets(first.min(end)..end, |part| buckets.borrow().look_below(part, &mut fit))
            .await;
        self.for_buckets(end.min(all)..all, |part| {
            buckets.borrow_mut().look_beyond(part, &mut beyond)
        })
        .await;
        let buckets = buckets.borrow();
        let data = beyond.dirty.div_ceil(u64::from(buckets.bucket_sectors()));
        let kept_free = buckets.watermarks_of(end).1 + buckets.restart_reserve();
        fit.needed = beyond.metadata + data + kept_free as u64;
        fit
    }

    async fn free_before(&self, end: u32) -> usize {
        let mut free = 0;
        self.for_buckets(0..end, |part| free += self.buckets.borrow().count_free(part)).await;
        free
    }

    /// A12: sees to it that enough buckets before the end are free for nodes and the next chains:
    /// when no other is given out, nothing becomes free without a chain. Returns the number of
    /// those that are missing.
    pub async fn free_below(&self, end: u32) -> Result<u64, EngineError> {
        let needed = self.buckets.borrow().watermarks_of(end).0;
        let mut missing = needed.saturating_sub(self.free_before(end).await);
        if missing == 0 {
            return Ok(0);
        }
        self.for_buckets(0..end, |part| {
            self.buckets.borrow_mut().give_up_some(part, &mut missing);
        })
        .await;
        match self.write_prios().await {
            Ok(()) | Err(EngineError::NoSpace(_)) => {}
            Err(error) => return Err(error),
        }
        // Two chains at a time, and nodes.
        let least = 4 * self.context.geometry.prio_buckets() as usize + 14;
        Ok(least.saturating_sub(self.free_before(end).await) as u64)
    }

    /// A12: gives out no bucket from this one on any more.
    pub async fn close_beyond(&self, end: u32) {
        let buckets = &self.buckets;
        {
            let mut buckets = buckets.borrow_mut();
            buckets.set_end(end);
            self.open.borrow_mut().leave_beyond(&mut buckets);
        }
        let lists: [fn(&mut Buckets) -> &mut VecDeque<BucketNr>; 3] = [
            |buckets| &mut buckets.free,
            |buckets| &mut buckets.free_with_space,
            |buckets| &mut buckets.space.aside,
        ];
        for list in lists {
            let count = list(&mut buckets.borrow_mut()).len();
            let steps = self.context.tuning.slice_steps;
            in_slices(&self.context.env, steps, count, LOOK_STEPS, |part| {
                buckets.borrow_mut().sieve(list, part.len());
            })
            .await;
        }
        let mut buckets = buckets.borrow_mut();
        buckets.keep_no_promise();
        // Buckets that were taken while the lists were gone through.
        self.open.borrow_mut().leave_beyond(&mut buckets);
        self.wake.notify_all();
    }

    /// Gives up what is clean beyond the end.
    pub async fn give_up_beyond(&self) {
        let buckets = &self.buckets;
        let (end, dead) = (buckets.borrow().end(), buckets.borrow().dead.len());
        let steps = self.context.tuning.slice_steps;
        in_slices(&self.context.env, steps, dead, LOOK_STEPS, |part| {
            buckets.borrow_mut().give_up_dead(part.len());
        })
        .await;
        let all = self.context.geometry.buckets;
        self.for_buckets(end..all, |part| buckets.borrow_mut().give_up_clean(part)).await;
    }

    /// Makes durable what was given up beyond the end, and the chain leaves it.
    pub async fn settle_beyond(&self) -> Result<(), EngineError> {
        let chain_leaves = {
            let (chain, buckets) = (self.chain.borrow(), self.buckets.borrow());
            chain.buckets.iter().any(|&bucket| buckets.is_beyond(bucket))
        };
        match self.settle_pending().await || chain_leaves {
            true => self.write_prios().await,
            false => Ok(()),
        }
    }

    /// Counts what is beyond the end.
    pub async fn look_beyond(&self) -> Beyond {
        let mut found = Beyond::default();
        let (end, all) = (self.buckets.borrow().end(), self.context.geometry.buckets);
        self.for_buckets(end..all, |part| {
            self.buckets.borrow_mut().look_beyond(part, &mut found);
        })
        .await;
        found
    }

    /// The cache keeps its size after all: buckets up to this one are given out again.
    /// `has_new_chain`: no chain on the device promises one of them to the next start. Without it
    /// those that one may promise stay out of use.
    pub async fn open_beyond(&self, end: u32, has_new_chain: bool) {
        let former = self.buckets.borrow().end();
        {
            let mut buckets = self.buckets.borrow_mut();
            buckets.set_end(end);
            buckets.set_pace(Pace::Waits);
            if has_new_chain {
                buckets.evacuation.promised.clear();
            }
        }
        self.for_buckets(former..end, |part| self.buckets.borrow_mut().open_again(part)).await;
        self.wake.notify_all();
    }
}
