//! The buckets that may be evicted, as the replacement policy has them.
//!
//! The policies of bcache keep one [`VictimList`]. The scan-resistant one keeps two, as segmented LRU does (Karedla et
//! al., 1994): a bucket is filled on probation; data that was used again while it was there is moved to protected
//! buckets before its bucket goes (see [`gc::moving`](crate::gc::moving)). The older half of what is cached, probation,
//! is where a scan comes in and goes out, and it never sees the other half.

use std::collections::BTreeSet;

use ubcache_format::{BucketNr, Replacement};

use super::victim::VictimList;
use crate::settings::ReplacementPolicy;

/// Members of both lists, and which bucket belongs to which.
#[derive(Debug)]
pub(crate) struct Victims {
    policy: ReplacementPolicy,
    probation: VictimList,
    protected: VictimList,
    /// Holds data that was used again. Only with the scan-resistant policy.
    is_protected: Vec<bool>,
}

impl Victims {
    pub fn new(buckets: u32, policy: ReplacementPolicy) -> Victims {
        let mut victims = Victims {
            policy,
            probation: VictimList::new(buckets, policy.stored()),
            protected: VictimList::new(0, Replacement::Lru),
            is_protected: Vec::new(),
        };
        victims.set_policy(policy);
        victims
    }

    /// Whether data that was used again has buckets of its own.
    pub fn protects(&self) -> bool {
        self.policy == ReplacementPolicy::ScanResistant
    }

    /// What was protected is the most recent without protection.
    pub fn set_policy(&mut self, policy: ReplacementPolicy) {
        self.policy = policy;
        self.probation.set_policy(policy.stored());
        let buckets = self.probation.capacity();
        if self.protects() && self.is_protected.is_empty() {
            self.protected = VictimList::new(buckets, Replacement::Lru);
            self.is_protected = vec![false; buckets as usize];
        } else if !self.protects() && !self.is_protected.is_empty() {
            for bucket in std::mem::take(&mut self.protected).iter_oldest() {
                self.probation.insert(bucket);
            }
            self.is_protected = Vec::new();
        }
    }

    /// Says to which list the bucket, which is a member of none, belongs from now on.
    pub fn set_protected(&mut self, bucket: BucketNr, protected: bool) {
        if let Some(is) = self.is_protected.get_mut(bucket.0 as usize) {
            *is = protected;
        }
    }

    fn list_of(&mut self, bucket: BucketNr) -> &mut VictimList {
        match self.is_protected.get(bucket.0 as usize) {
            Some(true) => &mut self.protected,
            _ => &mut self.probation,
        }
    }

    pub fn len(&self) -> u32 {
        self.probation.len() + self.protected.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes it the most recent of its list, if it is no member yet.
    pub fn insert(&mut self, bucket: BucketNr) {
        let list = self.list_of(bucket);
        if !list.contains(bucket.0) {
            list.insert(bucket.0);
        }
    }

    pub fn remove(&mut self, bucket: BucketNr) {
        self.list_of(bucket).remove(bucket.0);
    }

    pub fn touch(&mut self, bucket: BucketNr) {
        self.list_of(bucket).touch(bucket.0);
    }

    /// Chooses a victim, see [`VictimList::pick`].
    pub fn pick(
        &mut self,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
    ) -> Option<BucketNr> {
        let mut lists = [&mut self.probation, &mut self.protected];
        if !from_probation(lists[0].len(), lists[1].len()) {
            lists.reverse();
        }
        lists.into_iter().find_map(|list| list.pick(&mut random, &may_take)).map(BucketNr)
    }

    /// A member that no pick would take soon, if no other can be taken.
    pub fn oldest(&self) -> Option<BucketNr> {
        self.probation.iter_oldest().chain(self.protected.iter_oldest()).next().map(BucketNr)
    }

    /// The next `count` victims, if nothing is used meanwhile. None with a policy that does not care.
    pub fn upcoming(&self, count: usize) -> BTreeSet<BucketNr> {
        if !self.protects() {
            return BTreeSet::new();
        }
        let (mut probation, mut protected) = (self.probation.iter_oldest(), self.protected.iter_oldest());
        let (mut first, mut second) = (self.probation.len(), self.protected.len());
        let next = || {
            let (list, left): (&mut dyn Iterator<Item = u32>, _) = match from_probation(first, second) {
                true => (&mut probation, &mut first),
                false => (&mut protected, &mut second),
            };
            *left = left.saturating_sub(1);
            list.next().map(BucketNr)
        };
        std::iter::from_fn(next).take(count).collect()
    }
}

/// Which list a victim comes from: neither may grow beyond half of the members.
fn from_probation(probation: u32, protected: u32) -> bool {
    protected == 0 || probation >= protected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn victims(policy: ReplacementPolicy, probation: &[u32], protected: &[u32]) -> Victims {
        let mut victims = Victims::new(100, policy);
        for (buckets, is) in [(probation, false), (protected, true)] {
            for &bucket in buckets {
                victims.set_protected(BucketNr(bucket), is);
                victims.insert(BucketNr(bucket));
            }
        }
        victims
    }

    fn all(mut victims: Victims) -> Vec<u32> {
        std::iter::from_fn(|| victims.pick(|| 0, |_| true)).map(|bucket| bucket.0).collect()
    }

    #[test]
    fn probation_goes_first_and_neither_list_beyond_half() {
        let make = || victims(ReplacementPolicy::ScanResistant, &[1, 2, 3, 4], &[5, 6]);
        assert_eq!(all(make()), [1, 2, 3, 5, 4, 6]);
        let upcoming: Vec<u32> = make().upcoming(4).into_iter().map(|bucket| bucket.0).collect();
        assert_eq!(upcoming, [1, 2, 3, 5]);
        let mut used = make();
        used.touch(BucketNr(5));
        used.touch(BucketNr(1));
        assert_eq!(all(used), [2, 3, 4, 6, 1, 5]);
        assert_eq!(make().pick(|| 0, |bucket| bucket > 4), Some(BucketNr(5)), "none on probation may go");
    }

    #[test]
    fn the_other_policies_know_no_protection() {
        let mut lru = victims(ReplacementPolicy::Lru, &[1, 2], &[3, 4]);
        assert!(lru.upcoming(9).is_empty());
        lru.touch(BucketNr(1));
        assert_eq!(all(lru), [2, 3, 4, 1]);
    }

    #[test]
    fn a_change_of_policy_keeps_all_members() {
        let mut victims = victims(ReplacementPolicy::ScanResistant, &[1, 2], &[3, 4]);
        victims.set_policy(ReplacementPolicy::Fifo);
        assert_eq!(victims.len(), 4);
        victims.set_policy(ReplacementPolicy::ScanResistant);
        assert_eq!(all(victims), [1, 2, 3, 4]);
    }
}
