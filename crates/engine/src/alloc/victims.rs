//! The buckets that may be evicted, as the replacement policy has them.
//!
//! The policies of bcache keep one [`VictimList`]. The scan-resistant one draws a few members and takes the one that is
//! worth least, by its live sectors and what [`Worth`] says of its kind. It chooses a while before room is needed: until
//! then what was used again is moved out of the chosen ones (see [`gc::moving`](crate::gc::moving)).

use std::collections::BTreeSet;

use ubcache_format::BucketNr;

use super::leaving::Leaving;
use super::sectors::Class;
use super::victim::VictimList;
use super::worth::Worth;
use crate::settings::ReplacementPolicy;

/// Members among which a victim is chosen. More forget what has little worth more strictly, and learn less of what
/// would become of it.
const DRAWN: usize = 16;
/// So much is moved at most, of what was written to the cache.
const MOVED_PERCENT: u64 = 15;

/// The members, and what the scan-resistant policy knows of them.
#[derive(Debug)]
pub(crate) struct Victims {
    policy: ReplacementPolicy,
    members: VictimList,
    scan_resistant: Option<Chosen>,
}

/// What only the scan-resistant policy has.
#[derive(Debug)]
struct Chosen {
    worth: Worth,
    /// Members no more: they go next, in this order.
    leaving: Leaving,
    /// Buckets filled between the last two choices.
    filled: u32,
}

impl Victims {
    /// No members. `age` is that of [`Worth::new`].
    pub fn new(buckets: u32, policy: ReplacementPolicy, age: impl Fn(BucketNr) -> u32) -> Victims {
        let members = VictimList::new(buckets, policy.order());
        let mut victims = Victims { policy, members, scan_resistant: None };
        victims.set_policy(policy, age);
        victims
    }

    /// Whether it matters what was used again.
    pub fn protects(&self) -> bool {
        self.policy == ReplacementPolicy::ScanResistant
    }

    /// All members stay.
    pub fn set_policy(&mut self, policy: ReplacementPolicy, age: impl Fn(BucketNr) -> u32) {
        self.policy = policy;
        self.members.set_policy(policy.order());
        let buckets = self.members.capacity();
        if !self.protects() {
            let former = self.scan_resistant.take();
            for bucket in former.iter().flat_map(|former| former.leaving.iter()) {
                if !self.members.contains(bucket.0) {
                    self.members.insert(bucket.0);
                }
            }
        } else if self.scan_resistant.is_none() {
            let (worth, leaving) = (Worth::new(buckets, age), Leaving::new(buckets));
            self.scan_resistant = Some(Chosen { worth, leaving, filled: 0 });
        }
    }

    /// The bucket, which is no member, was taken for data of this class.
    pub fn fill(&mut self, bucket: BucketNr, class: usize) {
        if let Some(chosen) = &mut self.scan_resistant {
            chosen.worth.fill(bucket, class);
        }
    }

    pub fn len(&self) -> u32 {
        self.members.len() + self.scan_resistant.as_ref().map_or(0, |chosen| chosen.leaving.len() as u32)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes it the most recent member, if it is none yet.
    pub fn insert(&mut self, bucket: BucketNr) {
        let leaves = self.scan_resistant.as_ref().is_some_and(|chosen| chosen.leaving.contains(bucket));
        if !leaves && !self.members.contains(bucket.0) {
            self.members.insert(bucket.0);
        }
    }

    pub fn remove(&mut self, bucket: BucketNr) {
        self.members.remove(bucket.0);
        if let Some(chosen) = &mut self.scan_resistant {
            chosen.leaving.remove(bucket);
        }
    }

    /// So many sectors of the bucket, which need not be a member, were used again.
    pub fn touch(&mut self, bucket: BucketNr, sectors: u64) {
        match &mut self.scan_resistant {
            Some(chosen) => chosen.worth.hit(bucket, sectors),
            None => self.members.touch(bucket.0),
        }
    }

    /// Chooses a victim, see [`VictimList::pick`]. `live` says how many live sectors a bucket has.
    pub fn pick(
        &mut self,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) -> Option<BucketNr> {
        if let Some(chosen) = &mut self.scan_resistant {
            let victim = chosen.leaving.pick(&may_take);
            let victim = victim.or_else(|| chosen.choose(&mut self.members, &mut random, &may_take, live));
            if victim.is_some() {
                return victim;
            }
        }
        self.members.pick(random, may_take).map(BucketNr)
    }

    /// A member that no pick would take soon, if no other can be taken.
    pub fn oldest(&self) -> Option<BucketNr> {
        let leaving = self.scan_resistant.iter().flat_map(|chosen| chosen.leaving.iter());
        self.members.iter_oldest().map(BucketNr).chain(leaving).next()
    }

    /// Learns from what there is, the buckets of `data` with their live sectors, and chooses until `count` leave.
    /// Nothing with a policy that does not care.
    pub fn choose(
        &mut self,
        count: usize,
        bucket_sectors: u32,
        data: impl Iterator<Item = (BucketNr, u32)>,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) {
        let Some(chosen) = &mut self.scan_resistant else { return };
        chosen.filled = chosen.worth.filled_since();
        chosen.worth.census(bucket_sectors, data);
        chosen.leaving.tidy();
        while chosen.leaving.len() < count {
            let next = chosen.choose(&mut self.members, &mut random, &may_take, &live);
            let Some(next) = next else { break };
            chosen.leaving.push(next);
        }
    }

    /// Out of which of the chosen buckets data is moved that was used again; `reused` says how many sectors of a bucket.
    /// None if what was moved before turned out to be worth less than what leaves.
    pub fn worth_saving(&self, bucket_sectors: u32, reused: impl Fn(u32) -> u64) -> BTreeSet<BucketNr> {
        let Some(chosen) = &self.scan_resistant else { return BTreeSet::new() };
        let leaving = || chosen.leaving.iter();
        let all: u128 = leaving().map(|bucket| u128::from(chosen.worth.of(bucket))).sum();
        let moved = chosen.worth.of_new(Class::MovedClean as usize);
        if u128::from(moved) * (chosen.leaving.len() as u128) < all {
            return BTreeSet::new();
        }
        let mut room = u64::from(chosen.filled) * u64::from(bucket_sectors) * MOVED_PERCENT / 100;
        let mut saving = BTreeSet::new();
        for bucket in leaving() {
            let sectors = reused(bucket.0);
            if sectors > room {
                break;
            }
            room -= sectors;
            if sectors > 0 {
                saving.insert(bucket);
            }
        }
        saving
    }
}

impl Chosen {
    /// Draws some members and takes out the one that is worth least.
    fn choose(
        &self,
        members: &mut VictimList,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) -> Option<BucketNr> {
        let drawn = (0..DRAWN).filter_map(|_| members.draw(&mut random).filter(|&bucket| may_take(bucket)));
        let worth = |bucket: u32| u128::from(self.worth.of(BucketNr(bucket))) * u128::from(live(bucket));
        let least = drawn
            .map(|bucket| (worth(bucket), bucket))
            .reduce(|least, next| if next.0 < least.0 { next } else { least });
        let (_, bucket) = least?;
        members.remove(bucket);
        Some(BucketNr(bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: u32 = 64;
    const SECTORS: u32 = 64;

    /// Any number with the same chance.
    fn dice() -> impl FnMut() -> u64 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        }
    }

    /// All buckets are members. The upper half is of another class, and used all the time.
    fn used(policy: ReplacementPolicy) -> Victims {
        let mut victims = Victims::new(BUCKETS, policy, |_| 0);
        for bucket in 0..BUCKETS {
            victims.fill(BucketNr(bucket), usize::from(bucket >= BUCKETS / 2));
            victims.insert(BucketNr(bucket));
        }
        (BUCKETS / 2..BUCKETS).for_each(|bucket| victims.touch(BucketNr(bucket), 64));
        victims
    }

    fn choose(victims: &mut Victims, count: usize) -> Vec<u32> {
        let data = (0..BUCKETS).map(|bucket| (BucketNr(bucket), SECTORS));
        victims.choose(count, SECTORS, data, dice(), |_| true, |_| SECTORS);
        let leaving = victims
            .scan_resistant
            .as_ref()
            .map(|chosen| chosen.leaving.iter().map(|bucket| bucket.0).collect());
        leaving.unwrap_or_default()
    }

    fn pick(victims: &mut Victims) -> Option<u32> {
        victims.pick(dice(), |_| true, |_| SECTORS).map(|bucket| bucket.0)
    }

    #[test]
    fn what_is_worth_least_goes_first() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        let chosen = choose(&mut victims, 16);
        assert_eq!(chosen.len(), 16);
        assert!(chosen.iter().all(|&bucket| bucket < BUCKETS / 2), "{chosen:?}");
        assert_eq!(victims.len(), BUCKETS);
        // A second choice adds to the first.
        let more = choose(&mut victims, 20);
        assert!(more.len() == 20 && chosen.iter().all(|bucket| more.contains(bucket)));
        let gone: Vec<u32> = (0..20).filter_map(|_| pick(&mut victims)).collect();
        assert_eq!(gone, more, "the chosen ones go first");
        let rest = std::iter::from_fn(|| pick(&mut victims)).count();
        assert_eq!((rest, victims.is_empty()), (44, true));
    }

    #[test]
    fn a_part_of_what_was_written_is_saved_in_the_order_of_leaving() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        // 64 buckets of 64 sectors were filled: 614 sectors may be moved.
        let leaving = choose(&mut victims, 16);
        let saving = victims.worth_saving(SECTORS, |bucket| if bucket == leaving[0] { 0 } else { 60 });
        assert_eq!(saving, leaving[1..11].iter().map(|&bucket| BucketNr(bucket)).collect());
        // Nothing was filled since.
        choose(&mut victims, 16);
        assert!(victims.worth_saving(SECTORS, |_| 60).is_empty());
        assert!(used(ReplacementPolicy::Lru).worth_saving(SECTORS, |_| 1).is_empty());
    }

    #[test]
    fn what_was_moved_for_nothing_is_moved_no_more() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        for bucket in 0..BUCKETS / 2 {
            victims.remove(BucketNr(bucket));
            victims.fill(BucketNr(bucket), Class::MovedClean as usize);
        }
        // The rest, which is used, leaves; what was moved is not used.
        (BUCKETS / 2..BUCKETS).for_each(|bucket| victims.touch(BucketNr(bucket), 64));
        choose(&mut victims, 16);
        assert!(victims.worth_saving(SECTORS, |_| 8).is_empty());
    }

    #[test]
    fn few_live_sectors_are_worth_little() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 0);
        (0..BUCKETS / 2).for_each(|bucket| victims.remove(BucketNr(bucket)));
        let picked = victims.pick(dice(), |_| true, |bucket| if bucket % 4 == 1 { 1 } else { 64 });
        assert_eq!(picked.map(|bucket| bucket.0 % 4), Some(1));
    }

    #[test]
    fn what_may_not_be_taken_stays() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 16);
        let picked = victims.pick(dice(), |bucket| bucket == 60, |_| SECTORS);
        assert_eq!(picked, Some(BucketNr(60)), "the list is searched");
        assert_eq!(victims.pick(dice(), |_| false, |_| SECTORS), None);
        assert_eq!(victims.len(), BUCKETS - 1);
    }

    #[test]
    fn the_other_policies_choose_nothing_ahead() {
        let mut lru = used(ReplacementPolicy::Lru);
        assert!(choose(&mut lru, 9).is_empty());
        lru.touch(BucketNr(0), 8);
        assert_eq!((pick(&mut lru), pick(&mut lru)), (Some(1), Some(2)));
    }

    #[test]
    fn a_change_of_policy_keeps_all_members() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 16);
        victims.set_policy(ReplacementPolicy::Fifo, |_| 0);
        assert_eq!(victims.len(), BUCKETS);
        victims.set_policy(ReplacementPolicy::ScanResistant, |_| 0);
        assert_eq!(std::iter::from_fn(|| pick(&mut victims)).count() as u32, BUCKETS);
    }
}
