//! Giving buckets up (E1), and what is worth moving before that.

use std::collections::BTreeSet;
use std::ops::Range;

use ubcache_env::Env;
use ubcache_format::{BucketNr, Pointer};

use super::allocator::Allocator;
use super::buckets::{Buckets, Role};
use crate::bucket_set::BucketSet;
use crate::replacement::look::Look;
use crate::replacement::policy::{DRAWN, Policy, Saving};
use crate::rules::Rule;
use crate::settings::ReplacementPolicy;

/// The next victims are a part of all buckets, this one: twice of what is written between two
/// passes of garbage collection.
const UPCOMING_PART: usize = 8;
/// A choice, which draws buckets all over the cache, takes as long as so many steps of a loop that
/// goes from one bucket to the next.
const CHOICE_STEPS: usize = 256;
/// So does a look at a bucket somewhere.
const LOOK_STEPS: usize = 16;

/// Buckets to be given up, as far as that has come.
pub(crate) struct Eviction {
    goal: usize,
    /// Dead buckets to look at.
    dead: usize,
    /// Live sectors that were dropped.
    pub dropped: u64,
}

/// The part of the buckets that are to be emptied.
pub(crate) struct Sparse {
    limit: u32,
    count: usize,
    found: BTreeSet<(u32, BucketNr)>,
}

impl Sparse {
    /// The emptiest first.
    pub fn buckets(self) -> impl Iterator<Item = BucketNr> {
        self.found.into_iter().map(|(_, bucket)| bucket)
    }
}

impl Buckets {
    pub(crate) fn invalidate(&mut self, bucket: BucketNr) {
        let index = bucket.0 as usize;
        self.generations[index] = self.raised(self.generations[index]);
        (self.live[index], self.dirty[index]) = (0, 0);
        #[cfg(feature = "mutants")]
        if !self.rules.keeps(Rule::J2GenerationDurableFirst) && !self.pins.is_pinned(bucket) {
            return self.set_free(bucket);
        }
        self.set_role(bucket, Role::Pending);
        if !self.seen && self.rules.keeps(Rule::G4GivenUpWaitsForCount) {
            // A leaf that was not counted yet may have a pointer of any age: see
            // `Buckets::ages_known`.
            return self.held.push(bucket);
        }
        self.pending.push_back(bucket);
        self.signal.found_bucket();
    }

    pub(super) fn may_take(&self, bucket: BucketNr) -> bool {
        let index = bucket.0 as usize;
        !self.pins.is_pinned(bucket)
            && !self.is_aged(bucket)
            && (self.dirty[index] == 0 || !self.rules.keeps(Rule::E1CleanOnly))
    }

    fn available(&self) -> usize {
        self.free_len() + self.pending.len() + self.discarding.len()
    }

    /// See [`Set::evict`].
    fn eviction(&self, goal: usize) -> Eviction {
        Eviction { goal, dead: self.dead.len(), dropped: 0 }
    }

    /// E1: gives up dead buckets first, then victims, until `goal` are free or pending, as far as
    /// that comes in so many steps. Their keys are stale from now on; the prio chain makes that
    /// durable. Says whether that is all.
    fn evict_some(
        &mut self,
        eviction: &mut Eviction,
        steps: usize,
        mut random: impl FnMut() -> u64,
    ) -> bool {
        let looks = (steps / LOOK_STEPS).max(1);
        let mut left = steps.saturating_sub(self.settle_released(looks) * LOOK_STEPS);
        while left > 0 && eviction.dead > 0 && self.available() < eviction.goal {
            let Some(bucket) = self.dead.pop_front() else { break };
            (left, eviction.dead) = (left.saturating_sub(LOOK_STEPS), eviction.dead - 1);
            self.work.add(1);
            if self.may_take(bucket) {
                self.invalidate(bucket);
            } else {
                self.aged |= self.is_aged(bucket);
                self.dead.push_back(bucket);
            }
        }
        let mut found = self.counted || !self.rules.keeps(Rule::E1CountedFirst);
        while left > 0 && found && self.available() < eviction.goal {
            left = left.saturating_sub(CHOICE_STEPS);
            self.work.add(DRAWN);
            let mut victims = self.take_victims();
            let picked = victims.pick(&mut random, self);
            if picked.is_none()
                && let Some(bucket) = victims.oldest()
            {
                self.aged |= self.is_aged(bucket);
            }
            self.put_victims(victims);
            match picked {
                Some(bucket) => {
                    eviction.dropped += u64::from(self.live(bucket));
                    self.invalidate(bucket);
                }
                None => found = false,
            }
        }
        left > 0 || !found || self.available() >= eviction.goal
    }

    /// The victims, which can be changed while the rest is looked at; to be put back.
    fn take_victims(&mut self) -> Policy {
        std::mem::replace(&mut self.victims, Policy::new(0, ReplacementPolicy::Fifo))
    }

    fn put_victims(&mut self, mut victims: Policy) {
        victims.take_stayed().into_iter().for_each(|bucket| self.reuse.forget_bucket(bucket));
        self.victims = victims;
    }

    /// Counts what there is in these buckets.
    fn census(&mut self, buckets: Range<usize>) {
        let data = buckets.filter(|&index| matches!(self.role[index], Role::Open | Role::Data));
        self.victims.census(data.map(|index| (BucketNr(index as u32), self.live[index])));
    }

    /// Chooses up to `most` of the next victims: as many will have to go while a part of the cache
    /// is filled. Says whether there are that many.
    fn choose(&mut self, most: usize, random: impl FnMut() -> u64) -> bool {
        self.work.add(DRAWN * most.min(self.len()));
        let available = self.available() + self.dead.len();
        let count =
            (self.watermarks().1 + self.end() as usize / UPCOMING_PART).saturating_sub(available);
        let mut victims = self.take_victims();
        let done = victims.choose(count, most, random, self);
        self.put_victims(victims);
        done
    }

    /// Looks at up to `most` of the next victims; says whether those are all.
    fn save(&mut self, saving: &mut Saving, steps: usize) -> bool {
        let most = (steps / (self.reuse.steps() + 2 * LOOK_STEPS)).max(1);
        self.work.add(most);
        let mut victims = self.take_victims();
        let done = victims.save(saving, most, self);
        self.put_victims(victims);
        done
    }

    /// These sectors were moved away: nothing of them is worth saving any more.
    pub fn moved_away(&mut self, pointer: Pointer, sectors: u64) {
        self.reuse.forget(pointer.offset, sectors);
    }

    /// Parts of these sectors that were used again, counted from the first.
    pub fn reused_parts(&self, pointer: Pointer, sectors: u64) -> Vec<Range<u64>> {
        self.reuse.parts(pointer.offset, sectors)
    }

    /// `count` closed data buckets that are at most `percent` full of live data, some of it dirty,
    /// and pinned by nobody, the emptiest: what moving garbage collection looks at.
    /// [`Buckets::look_for_sparse`] finds them.
    pub fn sparse(&self, percent: u64, count: usize) -> Sparse {
        let limit = u64::from(self.geometry.bucket_sectors) * percent / 100;
        Sparse { limit: limit as u32, count, found: BTreeSet::new() }
    }

    /// Looks for them among these.
    pub fn look_for_sparse(&self, sparse: &mut Sparse, buckets: Range<usize>) {
        for index in buckets {
            let (bucket, live) = (BucketNr(index as u32), self.live[index]);
            if self.role[index] == Role::Data
                && (1..=sparse.limit).contains(&live)
                && self.dirty[index] > 0
                && !self.pins.is_pinned(bucket)
            {
                sparse.found.insert((live, bucket));
                if sparse.found.len() > sparse.count {
                    sparse.found.pop_last();
                }
            }
        }
    }
}

impl Look for Buckets {
    fn may_take(&self, bucket: u32) -> bool {
        self.may_take(BucketNr(bucket))
    }

    fn live(&self, bucket: u32) -> u32 {
        self.live[bucket as usize]
    }

    fn reused(&self, bucket: u32) -> u64 {
        self.reuse.sectors(BucketNr(bucket))
    }

    fn bucket_sectors(&self) -> u32 {
        self.geometry.bucket_sectors
    }
}

impl<E: Env> Allocator<E> {
    /// E1: gives up dead buckets and victims until `goal` are free or on the way to it, or no more
    /// can be had. Says how many live sectors were dropped.
    pub async fn evict(&self, goal: usize) -> u64 {
        let steps = self.context.tuning.slice_steps;
        self.note_leader();
        let mut eviction = self.buckets.borrow().eviction(goal);
        loop {
            let random = || self.context.env.random();
            if self.buckets.borrow_mut().evict_some(&mut eviction, steps, random) {
                return eviction.dropped;
            }
            self.context.env.mark("evicted_in_slices");
            self.context.env.yield_now().await;
        }
    }

    /// Has the policy choose that the duel of policies names.
    fn note_leader(&self) {
        if self.buckets.borrow_mut().victims.lead(self.context.policy_duel.leader()) {
            self.context.env.mark("another_policy_leads");
        }
    }

    /// Chooses the next victims, with the policy that does so ahead; those that hold data which was
    /// used again.
    pub async fn choose_victims(&self) -> BucketSet {
        let buckets = &self.buckets;
        self.note_leader();
        let begun = buckets.borrow_mut().victims.census_begins();
        if begun {
            self.for_all_buckets(1, |part| buckets.borrow_mut().census(part)).await;
            let mut buckets = buckets.borrow_mut();
            let bucket_sectors = buckets.geometry.bucket_sectors;
            buckets.victims.census_ends(bucket_sectors);
        }
        let steps = self.slice_steps(Rule::S1VictimsInSlices);
        let most = (steps / CHOICE_STEPS).max(1);
        while !self.context.health.is_ending()
            && !buckets.borrow_mut().choose(most, || self.context.env.random())
        {
            self.context.env.mark("victims_chosen_in_slices");
            self.context.env.yield_now().await;
        }
        let bucket_sectors = self.context.geometry.bucket_sectors;
        let mut saving = buckets.borrow_mut().victims.saving_begins(bucket_sectors);
        if let Some(saving) = &mut saving {
            while !self.context.health.is_ending()
                && !buckets.borrow_mut().save(saving, self.context.tuning.slice_steps)
            {
                self.context.env.yield_now().await;
            }
        }
        buckets.borrow().victims.worth_saving(saving)
    }
}
