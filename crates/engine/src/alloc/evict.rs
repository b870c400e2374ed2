//! Giving buckets up (E1), and what is worth moving before that.

use std::collections::BTreeSet;
use std::ops::Range;

use ubcache_format::{BucketNr, Pointer};

use super::buckets::{Buckets, Role};
use super::victims::Victims;
use crate::mutants::Mutant;
use crate::settings::ReplacementPolicy;

/// The next victims are a part of all buckets, this one: twice of what is written between two passes of garbage
/// collection.
const UPCOMING_PART: usize = 8;

impl Buckets {
    pub(super) fn invalidate(&mut self, bucket: BucketNr) {
        let index = bucket.0 as usize;
        self.generations[index] = self.raised(self.generations[index]);
        (self.live[index], self.dirty[index]) = (0, 0);
        if self.mutation.is(Mutant::ReuseBeforeDurable) && !self.pins.is_pinned(bucket) {
            return self.set_free(bucket);
        }
        self.set_role(bucket, Role::Pending);
        self.pending.push(bucket);
    }

    fn may_take(&self, bucket: BucketNr) -> bool {
        let index = bucket.0 as usize;
        !self.pins.is_pinned(bucket)
            && !self.is_aged(bucket)
            && (self.dirty[index] == 0 || self.mutation.is(Mutant::EvictsDirty))
    }

    /// E1: gives up dead buckets first, then victims, until `goal` are free or pending. Their
    /// keys are stale from now on; the prio chain makes that durable. Says how many live sectors
    /// were dropped.
    pub fn evict(&mut self, goal: usize, mut random: impl FnMut() -> u64) -> u64 {
        self.settle_released();
        for _ in 0..self.dead.len() {
            if self.free.len() + self.pending.len() + self.discarding.len() >= goal {
                return 0;
            }
            let Some(bucket) = self.dead.pop_front() else { break };
            if self.may_take(bucket) {
                self.invalidate(bucket);
            } else {
                self.aged |= self.is_aged(bucket);
                self.dead.push_back(bucket);
            }
        }
        let mut dropped = 0;
        let counted = self.counted || self.mutation.is(Mutant::EvictsUncounted);
        while self.free.len() + self.pending.len() + self.discarding.len() < goal && counted {
            let mut victims = self.take_victims();
            let picked = victims.pick(
                &mut random,
                |bucket| self.may_take(BucketNr(bucket)),
                |bucket| self.live[bucket as usize],
            );
            if picked.is_none()
                && let Some(bucket) = victims.oldest()
            {
                self.aged |= self.is_aged(bucket);
            }
            self.victims = victims;
            let Some(bucket) = picked else { break };
            dropped += u64::from(self.live(bucket));
            self.invalidate(bucket);
        }
        dropped
    }

    /// The victims, which can be changed while the rest is looked at; to be put back.
    fn take_victims(&mut self) -> Victims {
        std::mem::replace(&mut self.victims, Victims::new(0, ReplacementPolicy::Fifo, |_| 0))
    }

    /// Chooses the next victims, with the policy that does so ahead; those that hold data which was used again.
    pub fn worth_saving(&mut self, random: impl FnMut() -> u64) -> BTreeSet<BucketNr> {
        // As many as will have to go while that part of the cache is filled.
        let available = self.free.len() + self.pending.len() + self.discarding.len() + self.dead.len();
        let count = (self.watermarks().1 + self.len() / UPCOMING_PART).saturating_sub(available);
        let mut victims = self.take_victims();
        let data = (0..self.role.len()).filter(|&index| matches!(self.role[index], Role::Open | Role::Data));
        victims.choose(
            count,
            self.geometry.bucket_sectors,
            data.map(|index| (BucketNr(index as u32), self.live[index])),
            random,
            |bucket| self.may_take(BucketNr(bucket)),
            |bucket| self.live[bucket as usize],
        );
        self.victims = victims;
        let bucket_sectors = self.geometry.bucket_sectors;
        self.victims.worth_saving(bucket_sectors, |bucket| self.reuse.sectors(BucketNr(bucket)))
    }

    /// These sectors were moved away: nothing of them is worth saving any more.
    pub fn moved_away(&mut self, pointer: Pointer, sectors: u64) {
        self.reuse.forget(pointer.offset, sectors);
    }

    /// Which of these sectors were used again, counted from the first.
    pub fn reused_parts(&self, pointer: Pointer, sectors: u64) -> Vec<Range<u64>> {
        self.reuse.parts(pointer.offset, sectors)
    }

    /// Closed data buckets that are at most `percent` full of live data and pinned by nobody,
    /// emptiest first: what moving garbage collection looks at.
    pub fn sparse(&self, percent: u64, count: usize) -> Vec<BucketNr> {
        let limit = u64::from(self.geometry.bucket_sectors) * percent / 100;
        let mut sparse: Vec<BucketNr> = (0..self.role.len() as u32)
            .map(BucketNr)
            .filter(|&bucket| {
                self.role(bucket) == Role::Data
                    && self.live(bucket) > 0
                    && u64::from(self.live(bucket)) <= limit
                    && !self.pins.is_pinned(bucket)
            })
            .collect();
        sparse.sort_by_key(|&bucket| (self.live(bucket), bucket));
        sparse.truncate(count);
        sparse
    }

    /// A mutant's: data buckets in which nothing is live, open ones included.
    pub fn seemingly_empty(&self) -> Vec<BucketNr> {
        let data = |role| matches!(role, Role::Open | Role::Data);
        let buckets = (0..self.role.len()).filter(|&index| data(self.role[index]) && self.live[index] == 0);
        buckets.map(|index| BucketNr(index as u32)).collect()
    }

    /// A mutant's: gives these up.
    pub fn give_up(&mut self, buckets: Vec<BucketNr>) {
        for bucket in buckets {
            if self.role(bucket) == Role::Data {
                self.invalidate(bucket);
            }
        }
    }
}
