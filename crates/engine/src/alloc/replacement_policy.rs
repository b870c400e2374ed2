//! The buckets that may be evicted, as the replacement policy has them.
//!
//! The policies of bcache keep one list of an [`EvictionList`]. The scan-resistant one draws a few
//! members and takes the one that is worth least, by its live sectors and what [`BucketValue`] says
//! of its kind. It chooses a while before room is needed: until then what was used again is moved
//! out of the chosen ones (see [`gc::moving`](crate::gc::moving)). Census, choice and the look at
//! what was chosen take time with the number of buckets: each goes in slices.

use ubcache_format::BucketNr;

use super::bucket_set::BucketSet;
use super::bucket_value::BucketValue;
use super::data_class::Class;
use super::eviction_list::EvictionList;
use crate::settings::ReplacementPolicy;

/// Members among which a victim is chosen. More forget what has little worth more strictly, and
/// learn less of what would become of it.
pub(super) const DRAWN: usize = 16;
/// So much is moved at most, of what was written to the cache.
const MOVED_PERCENT: u64 = 15;

/// The members, and what the scan-resistant policy knows of them.
#[derive(Debug)]
pub(crate) struct Policy {
    policy: ReplacementPolicy,
    /// Those that leave were chosen: they go next, in this order.
    members: EvictionList,
    scan_resistant: Option<ScanResistant>,
    /// Knowledge that the scan-resistant policy will have when it has seen every bucket.
    learning: Option<BucketValue>,
}

/// State of the scan-resistant policy alone.
#[derive(Debug)]
struct ScanResistant {
    worth: BucketValue,
    /// Buckets filled between the last two choices.
    filled: u32,
    /// Time that [`BucketValue::census_begins`] returned.
    time: u64,
}

/// Findings about the buckets that leave, while they are looked at one after the other.
pub(crate) struct Saving {
    worth: u128,
    seen: u128,
    /// Sectors that may be moved yet.
    room: u64,
    full: bool,
    buckets: BucketSet,
}

impl Policy {
    /// No members, with room for so many buckets.
    pub fn new(buckets: u32, policy: ReplacementPolicy) -> Policy {
        let members = EvictionList::new(buckets, policy.order());
        Policy { policy, members, scan_resistant: None, learning: None }
    }

    /// Bucket numbers are below `buckets`.
    pub fn grow(&mut self, buckets: u32) {
        self.members.grow(buckets);
    }

    /// Returns true if reuse matters to the policy.
    pub fn protects(&self) -> bool {
        self.scan_resistant.is_some()
    }

    /// All members stay, and what leaves goes first. The scan-resistant policy is in force when
    /// [`Policy::learn`] was told of every bucket, until then that of its order.
    pub fn set_policy(&mut self, policy: ReplacementPolicy) {
        self.policy = policy;
        self.members.set_policy(policy.order());
        if policy != ReplacementPolicy::ScanResistant {
            (self.scan_resistant, self.learning) = (None, None);
        } else if self.scan_resistant.is_none() && self.learning.is_none() {
            self.learning = Some(BucketValue::new(self.members.capacity()));
        }
    }

    /// Tells a policy that wants to know the age of the next few buckets, in buckets filled since.
    /// Says whether it knows all.
    pub fn learn(&mut self, most: usize, age: impl Fn(BucketNr) -> u32) -> bool {
        let Some(worth) = &mut self.learning else { return true };
        let end = self.members.capacity().min(worth.known().saturating_add(most as u32));
        for bucket in worth.known()..end {
            worth.learn(age(BucketNr(bucket)));
        }
        if end < self.members.capacity() {
            return false;
        }
        let worth = self.learning.take();
        self.scan_resistant = worth.map(|worth| ScanResistant { worth, filled: 0, time: 0 });
        true
    }

    /// The bucket, which is no member, was taken for data of this class.
    pub fn fill(&mut self, bucket: BucketNr, class: usize) {
        if let Some(chosen) = &mut self.scan_resistant {
            chosen.worth.fill(bucket, class);
        } else if let Some(worth) = &mut self.learning {
            worth.fill(bucket, class);
        }
    }

    pub fn len(&self) -> u32 {
        self.members.len() + self.members.leaving()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes it the most recent member, if it is none yet.
    pub fn insert(&mut self, bucket: BucketNr) {
        if !self.members.leaves(bucket.0) && !self.members.contains(bucket.0) {
            self.members.insert(bucket.0);
        }
    }

    /// Makes a member that does not leave the oldest one.
    pub fn make_oldest(&mut self, bucket: BucketNr) {
        if self.members.contains(bucket.0) {
            self.members.insert_oldest(bucket.0);
        }
    }

    pub fn remove(&mut self, bucket: BucketNr) {
        self.members.remove(bucket.0);
    }

    /// So many sectors of the bucket, which need not be a member, were used again.
    pub fn touch(&mut self, bucket: BucketNr, sectors: u64) {
        match &mut self.scan_resistant {
            Some(chosen) => chosen.worth.hit(bucket, sectors),
            None => self.members.touch(bucket.0),
        }
    }

    /// Chooses a victim, see [`EvictionList::pick`]. `live` says how many live sectors a bucket
    /// has.
    pub fn pick(
        &mut self,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) -> Option<BucketNr> {
        let mut victim = self.members.pick_leaving(&may_take);
        if let Some(chosen) = &self.scan_resistant {
            victim =
                victim.or_else(|| chosen.choose(&mut self.members, &mut random, &may_take, live));
        }
        victim.or_else(|| self.members.pick(random, may_take)).map(BucketNr)
    }

    /// A member that no pick would take soon, if no other can be taken.
    pub fn oldest(&self) -> Option<BucketNr> {
        self.members.iter_oldest().next().or_else(|| self.members.first_leaving()).map(BucketNr)
    }

    /// Begins to count what there is. False if there is nothing to learn, as with a policy that
    /// does not care.
    pub fn census_begins(&mut self) -> bool {
        let Some(chosen) = &mut self.scan_resistant else { return false };
        chosen.filled = chosen.worth.filled_since();
        let time = chosen.worth.census_begins();
        chosen.time = time.unwrap_or(0);
        time.is_some()
    }

    /// Counts buckets of data, with their live sectors.
    pub fn census(&mut self, data: impl Iterator<Item = (BucketNr, u32)>) {
        if let Some(chosen) = &mut self.scan_resistant {
            data.for_each(|(bucket, live)| chosen.worth.count(bucket, live, chosen.time));
        }
    }

    /// Learns from what was counted.
    pub fn census_ends(&mut self, bucket_sectors: u32) {
        if let Some(chosen) = &mut self.scan_resistant {
            chosen.worth.census_ends(bucket_sectors);
        }
    }

    /// Chooses up to `most` members until `count` leave; says whether that is so, or no more can be
    /// found. Nothing with a policy that does not care.
    pub fn choose(
        &mut self,
        count: usize,
        most: usize,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) -> bool {
        let Some(chosen) = &self.scan_resistant else { return true };
        for _ in 0..most {
            if self.members.leaving() as usize >= count {
                return true;
            }
            let next = chosen.choose(&mut self.members, &mut random, &may_take, &live);
            let Some(next) = next else { return true };
            self.members.leave(next);
        }
        self.members.leaving() as usize >= count
    }

    /// Begins to look at what leaves. `None` with a policy that does not care.
    pub fn saving_begins(&mut self, bucket_sectors: u32) -> Option<Saving> {
        let chosen = self.scan_resistant.as_ref()?;
        self.members.rewind();
        let room = u64::from(chosen.filled) * u64::from(bucket_sectors) * MOVED_PERCENT / 100;
        let buckets = BucketSet::new(self.members.capacity());
        Some(Saving { worth: 0, seen: 0, room, full: false, buckets })
    }

    /// Looks at up to `most` of those that leave; `reused` says how many sectors of a bucket were
    /// used again. Says whether all were looked at.
    pub fn save(&mut self, saving: &mut Saving, most: usize, reused: impl Fn(u32) -> u64) -> bool {
        let Some(chosen) = &self.scan_resistant else { return true };
        for _ in 0..most {
            let Some(bucket) = self.members.next_leaving() else { return true };
            saving.seen += 1;
            saving.worth += u128::from(chosen.worth.of(BucketNr(bucket)));
            let sectors = if saving.full { 0 } else { reused(bucket) };
            saving.full |= sectors > saving.room;
            if sectors > 0 && !saving.full {
                saving.room -= sectors;
                saving.buckets.insert(BucketNr(bucket));
            }
        }
        false
    }

    /// Out of which of the chosen buckets data is moved that was used again. None if what was moved
    /// before turned out to be worth less than what leaves.
    pub fn worth_saving(&self, saving: Option<Saving>) -> BucketSet {
        let (Some(chosen), Some(saving)) = (&self.scan_resistant, saving) else {
            return BucketSet::default();
        };
        let moved = chosen.worth.of_new(Class::MovedClean as usize);
        let worth_it = u128::from(moved) * saving.seen >= saving.worth;
        if worth_it { saving.buckets } else { BucketSet::default() }
    }
}

impl ScanResistant {
    /// Draws some members and takes out the one that is worth least.
    fn choose(
        &self,
        members: &mut EvictionList,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
        live: impl Fn(u32) -> u32,
    ) -> Option<u32> {
        let drawn =
            (0..DRAWN).filter_map(|_| members.draw(&mut random).filter(|&bucket| may_take(bucket)));
        let worth =
            |bucket: u32| u128::from(self.worth.of(BucketNr(bucket))) * u128::from(live(bucket));
        let least = drawn
            .map(|bucket| (worth(bucket), bucket))
            .reduce(|least, next| if next.0 < least.0 { next } else { least });
        let (_, bucket) = least?;
        members.remove(bucket);
        Some(bucket)
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
    fn used(policy: ReplacementPolicy) -> Policy {
        let mut victims = Policy::new(BUCKETS, policy);
        victims.grow(BUCKETS);
        victims.set_policy(policy);
        while !victims.learn(10, |_| 0) {}
        for bucket in 0..BUCKETS {
            victims.fill(BucketNr(bucket), usize::from(bucket >= BUCKETS / 2));
            victims.insert(BucketNr(bucket));
        }
        (BUCKETS / 2..BUCKETS).for_each(|bucket| victims.touch(BucketNr(bucket), 64));
        victims
    }

    fn leaving(victims: &mut Policy) -> Vec<u32> {
        victims.members.rewind();
        std::iter::from_fn(|| victims.members.next_leaving()).collect()
    }

    /// Chooses in slices of 5, in the way a pass does.
    fn choose(victims: &mut Policy, count: usize) -> Vec<u32> {
        if victims.census_begins() {
            victims.census((0..BUCKETS).map(|bucket| (BucketNr(bucket), SECTORS)));
            victims.census_ends(SECTORS);
        }
        let mut dice = dice();
        while !victims.choose(count, 5, &mut dice, |_| true, |_| SECTORS) {}
        leaving(victims)
    }

    fn worth_saving(victims: &mut Policy, reused: impl Fn(u32) -> u64) -> Vec<u32> {
        let mut saving = victims.saving_begins(SECTORS);
        if let Some(saving) = &mut saving {
            while !victims.save(saving, 5, &reused) {}
        }
        let set = victims.worth_saving(saving);
        (0..BUCKETS).filter(|&bucket| set.contains(BucketNr(bucket))).collect()
    }

    fn pick(victims: &mut Policy) -> Option<u32> {
        victims.pick(dice(), |_| true, |_| SECTORS).map(|bucket| bucket.0)
    }

    #[test]
    fn least_valuable_bucket_is_evicted_first() {
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
    fn saved_share_of_writes_is_chosen_in_order_of_eviction() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        // 64 buckets of 64 sectors were filled: 614 sectors may be moved.
        let leaving = choose(&mut victims, 16);
        let saving = worth_saving(&mut victims, |bucket| if bucket == leaving[0] { 0 } else { 60 });
        let mut first = leaving[1..11].to_vec();
        first.sort_unstable();
        assert_eq!(saving, first);
        // Nothing was filled since.
        choose(&mut victims, 16);
        assert!(worth_saving(&mut victims, |_| 60).is_empty());
        assert!(worth_saving(&mut used(ReplacementPolicy::Lru), |_| 1).is_empty());
    }

    #[test]
    fn buckets_moved_in_vain_are_not_moved_again() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        for bucket in 0..BUCKETS / 2 {
            victims.remove(BucketNr(bucket));
            victims.fill(BucketNr(bucket), Class::MovedClean as usize);
        }
        // The rest, which is used, leaves; what was moved is not used.
        (BUCKETS / 2..BUCKETS).for_each(|bucket| victims.touch(BucketNr(bucket), 64));
        choose(&mut victims, 16);
        assert!(worth_saving(&mut victims, |_| 8).is_empty());
    }

    #[test]
    fn bucket_with_few_live_sectors_has_low_value() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 0);
        (0..BUCKETS / 2).for_each(|bucket| victims.remove(BucketNr(bucket)));
        let picked = victims.pick(dice(), |_| true, |bucket| if bucket % 4 == 1 { 1 } else { 64 });
        assert_eq!(picked.map(|bucket| bucket.0 % 4), Some(1));
    }

    #[test]
    fn bucket_that_may_not_be_taken_stays() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 16);
        let picked = victims.pick(dice(), |bucket| bucket == 60, |_| SECTORS);
        assert_eq!(picked, Some(BucketNr(60)), "the list is searched");
        assert_eq!(victims.pick(dice(), |_| false, |_| SECTORS), None);
        assert_eq!(victims.len(), BUCKETS - 1);
    }

    #[test]
    fn only_scan_resistant_chooses_ahead() {
        let mut lru = used(ReplacementPolicy::Lru);
        assert!(choose(&mut lru, 9).is_empty());
        lru.touch(BucketNr(0), 8);
        assert_eq!((pick(&mut lru), pick(&mut lru)), (Some(1), Some(2)));
    }

    #[test]
    fn policy_change_keeps_all_buckets() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 16);
        victims.set_policy(ReplacementPolicy::Fifo);
        assert_eq!(victims.len(), BUCKETS);
        victims.set_policy(ReplacementPolicy::ScanResistant);
        assert!(!victims.learn(10, |_| 0) && !victims.protects(), "it takes a while");
        assert_eq!(std::iter::from_fn(|| pick(&mut victims)).count() as u32, BUCKETS);
    }
}
