//! The way of a bucket that is given up: its generation becomes durable with a prio chain, the
//! device may be asked to discard it, and it is free, or kept for the next start.

use std::ops::Range;

use ubcache_format::{BucketNr, Generation, INITIAL_PRIORITY, PrioEntry, PrioSet};

use super::buckets::{Buckets, PRIORITY_METADATA, PRIORITY_RESTART, Purpose, Role};
use crate::rules::Rule;

impl Buckets {
    /// A bucket that was taken and then not used, and to which nothing durable points.
    pub fn give_back(&mut self, bucket: BucketNr) {
        self.set_free(bucket);
    }

    /// A metadata bucket is not referred to by anything durable any more.
    pub fn retire_metadata(&mut self, bucket: BucketNr) {
        assert_eq!(self.role(bucket), Role::Metadata, "only metadata is retired");
        self.invalidate(bucket);
    }

    /// A prio chain is going to be written. Until [`Buckets::chain_durable`] the present restart
    /// buckets stay as they are.
    pub fn chain_begins(&mut self) {
        let wanted = self.restart_missing();
        // In a cache that is full a chain is written when few buckets are free. Then some of what
        // there is for data is kept, as more becomes free with this very chain.
        let above = |number: usize| self.free_len().saturating_sub(number);
        let spare = above(self.watermarks().0).max(above(self.reserve(Purpose::Data)) / 2);
        for _ in 0..wanted.min(spare) {
            // Beyond the reserve of metadata those that have room, so that the next start has some.
            let spared = self.free_with_space.len() > self.reserve(Purpose::Data);
            let (first, second) = match spared {
                true => (&mut self.free_with_space, &mut self.free),
                false => (&mut self.free, &mut self.free_with_space),
            };
            let Some(bucket) = first.pop_back().or_else(|| second.pop_back()) else { break };
            self.set_role(bucket, Role::Restart);
            self.restart.push(bucket);
        }
        self.written.clear();
        self.written.reserve_exact(self.role.len());
    }

    /// Puts the next buckets into the chain. Each entry stands for itself: all that matters is that
    /// the journal entry that names the chain comes after everything that gave a bucket up before
    /// its entry was put into the chain (J2).
    pub fn put_chain_entries(&mut self, buckets: Range<usize>, set: &mut PrioSet) {
        let (start, end) = (buckets.start.min(self.role.len()), buckets.end.min(self.role.len()));
        assert_eq!(self.written.len(), start, "the chain describes all buckets in order");
        for index in start..end {
            set.push(PrioEntry {
                priority: match self.role[index] {
                    Role::Metadata => PRIORITY_METADATA,
                    Role::Restart => PRIORITY_RESTART,
                    Role::Data | Role::Open | Role::Dead => {
                        self.recency.priority(BucketNr(index as u32))
                    }
                    _ => INITIAL_PRIORITY,
                },
                generation: self.generations[index],
            });
        }
        self.written.extend_from_slice(&self.generations[start..end]);
        // A10: buckets of the next run, which nothing has ever been in.
        for _ in end..buckets.end {
            set.push(PrioEntry { priority: INITIAL_PRIORITY, generation: Generation(0) });
        }
    }

    /// The prio chain is durable, and named: its generations are. Each bucket that waits for that
    /// has to be looked at ([`Buckets::settle_pending`]).
    pub fn chain_durable(&mut self) {
        assert_eq!(self.written.len(), self.role.len(), "the chain describes all buckets");
        // The memory is used again: to give it back to the system takes a while.
        std::mem::swap(&mut self.durable, &mut self.written);
        assert!(self.restart.iter().all(|&bucket| self.role(bucket) == Role::Restart));
    }

    /// Looks at the next few buckets that were given up: they can be used if their generation is
    /// durable. Says whether one was given up after its entry was put into the newest chain.
    pub fn settle_pending(&mut self, count: usize) -> bool {
        let mut behind = false;
        for _ in 0..count {
            let Some(bucket) = self.pending.pop_front() else { break };
            let index = bucket.0 as usize;
            // No pointer leads beyond the end when the cache is smaller (A12).
            let beyond = self.is_beyond(bucket);
            let keeps = self.rules.keeps(Rule::G4AgedBucketWaits) && !beyond;
            let aged = keeps && self.is_aged(bucket);
            let durable = self.durable[index] == self.generations[index];
            behind |= !durable;
            #[cfg(feature = "mutants")]
            if !self.rules.keeps(Rule::J2LaterWaitsForNextChain)
                && !durable
                && !self.pins.is_pinned(bucket)
            {
                self.set_role(bucket, Role::Free);
                self.free.push_front(bucket);
                continue;
            }
            if !durable || self.pins.is_pinned(bucket) {
                self.pending.push_back(bucket);
            } else if aged {
                self.aged = true;
                self.held.push(bucket);
                *self.holds.entry(bucket).or_default() += 1;
                continue;
            } else if self.discard && !beyond && !self.has_space(bucket) {
                // Room that metadata had is kept for metadata.
                self.set_role(bucket, Role::Discarding);
                self.discarding.push(bucket);
            } else {
                self.set_free(bucket);
            }
            if durable && !self.holds.is_empty() {
                self.holds.remove(&bucket);
            }
        }
        behind
    }

    /// Buckets to discard, in order. They are free when [`Buckets::discarded`] is told so.
    pub fn take_discarding(&mut self) -> Vec<BucketNr> {
        let mut taken = std::mem::take(&mut self.discarding);
        taken.sort();
        taken
    }

    /// Returns true if buckets wait to be discarded.
    pub fn has_discarding(&self) -> bool {
        !self.discarding.is_empty()
    }

    /// These buckets have been discarded, or there was no time for that.
    pub fn discarded(&mut self, buckets: &[BucketNr]) {
        for &bucket in buckets {
            assert_eq!(
                self.role(bucket),
                Role::Discarding,
                "nobody else uses a bucket that is discarded"
            );
            self.forget_space(bucket);
            self.set_free(bucket);
        }
    }

    /// A bucket of the former prio chain or volume table: nothing points to it by generation.
    pub fn free_former_chain(&mut self, bucket: BucketNr) {
        assert_eq!(self.role(bucket), Role::Metadata, "the chain is metadata");
        self.set_free(bucket);
    }
}
