//! The buckets that may be evicted, as the replacement policy has them.
//!
//! The policies of bcache keep one list of an [`EvictionList`]. The others learn from reuse, and
//! choose a while before room is needed: until then what was used again is moved out of the chosen
//! ones (see [`gc::moving`](crate::gc::moving)). `scan-resistant` draws a few members and takes the
//! one that is worth least, by its live sectors and what [`BucketValue`] says of its kind.
//! `two-queue` has a [`TwoQueue`]. `adaptive` keeps what each of these and `lru` want to know, and
//! has the one lead that [`PolicyDuel`](super::policy_duel::PolicyDuel) names. Census, choice and
//! the look at what was chosen take time with the number of buckets: each goes in slices.

use ubcache_format::{BucketNr, OwnPolicy};

use super::bucket_value::BucketValue;
use super::data_class::Class;
use super::eviction_list::EvictionList;
use super::look::Look;
use super::two_queue::{Place, TwoQueue};
use crate::bucket_set::BucketSet;
use crate::settings::ReplacementPolicy;

/// Members among which a victim is chosen. More forget what has little worth more strictly, and
/// learn less of what would become of it.
pub(crate) const DRAWN: usize = 16;
/// With `adaptive`, it leads until there is a reason for another one.
pub(super) const FIRST_LEADER: ReplacementPolicy = ReplacementPolicy::ScanResistant;
/// So much is moved at most, of what was written to the cache: by worth ...
const MOVED_PERCENT: u64 = 15;
/// ... and from one queue to the other.
const MOVED_PERCENT_TWO_QUEUE: u64 = 60;

/// The members, and what the policy knows of them.
#[derive(Debug)]
pub(crate) struct Policy {
    policy: ReplacementPolicy,
    /// The policy that chooses, once it has learnt: with `adaptive` one of the others.
    leader: ReplacementPolicy,
    /// Those that leave were chosen: they go next, in this order.
    members: EvictionList,
    learnt: Option<Learnt>,
    /// Knowledge that there will be when every bucket was seen.
    learning: Option<BucketValue>,
    /// The members that do not leave, with a policy that wants them in two queues.
    two_queue: Option<TwoQueue>,
}

/// State of the policies that learn.
#[derive(Debug)]
struct Learnt {
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
        let (learnt, learning, two_queue) = (None, None, None);
        Policy { policy, leader: policy, members, learnt, learning, two_queue }
    }

    /// Bucket numbers are below `buckets`.
    pub fn grow(&mut self, buckets: u32) {
        self.members.grow(buckets);
        if let Some(two_queue) = &mut self.two_queue {
            two_queue.grow(buckets);
        }
    }

    /// Returns true if reuse matters to the policy.
    pub fn protects(&self) -> bool {
        self.learnt.is_some()
    }

    /// All members stay, and what leaves goes first. A policy that learns is in force when
    /// [`Policy::learn`] was told of every bucket, until then that of its order.
    pub fn set_policy(&mut self, policy: ReplacementPolicy) {
        let knows = self.learnt.is_some() || self.learning.is_some();
        if std::mem::replace(&mut self.policy, policy) == policy && knows == policy.learns() {
            return;
        }
        self.leader = match policy {
            ReplacementPolicy::Adaptive => FIRST_LEADER,
            policy => policy,
        };
        self.members.set_policy(policy.order());
        self.learnt = None;
        self.learning = policy.learns().then(|| BucketValue::new(self.members.capacity()));
        self.two_queue = policy.has_two_queues().then(|| TwoQueue::new(self.members.capacity()));
    }

    /// With `adaptive`: this one chooses from now on. Says whether that is news.
    pub fn lead(&mut self, leader: ReplacementPolicy) -> bool {
        let leads = self.policy == ReplacementPolicy::Adaptive && leader != self.leader;
        if leads {
            self.leader = leader;
        }
        leads
    }

    /// The policy that chooses: that of its order as long as one that learns does not know enough.
    pub fn leader(&self) -> ReplacementPolicy {
        match self.learning {
            None => self.leader,
            Some(_) => ReplacementPolicy::from_stored(self.policy.order(), OwnPolicy::None),
        }
    }

    /// Tells a policy that wants to know the age of the next few buckets, in buckets filled since.
    /// Says whether it knows all.
    pub fn learn(&mut self, most: usize, age: impl Fn(BucketNr) -> u32) -> bool {
        let Some(worth) = &mut self.learning else { return true };
        let end = self.members.capacity().min(worth.known().saturating_add(most as u32));
        for bucket in worth.known()..end {
            worth.learn(age(BucketNr(bucket)));
            if let Some(two_queue) = &mut self.two_queue {
                // One that became a member since is known already.
                two_queue.grow(bucket + 1);
                if self.members.contains(bucket) {
                    two_queue.insert(bucket, Place::First);
                }
            }
        }
        if end < self.members.capacity() {
            return false;
        }
        let worth = self.learning.take();
        self.learnt = worth.map(|worth| Learnt { worth, filled: 0, time: 0 });
        true
    }

    /// The bucket, which is no member, was taken for data of this class.
    pub fn fill(&mut self, bucket: BucketNr, class: usize) {
        if let Some(learnt) = &mut self.learnt {
            learnt.worth.fill(bucket, class);
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
            let place = self.place_of(bucket);
            if let Some(two_queue) = &mut self.two_queue {
                two_queue.insert(bucket.0, place);
            }
        }
    }

    /// The queue for the data in a bucket.
    fn place_of(&self, bucket: BucketNr) -> Place {
        let again = |learnt: &Learnt| Class::came_again(learnt.worth.class(bucket));
        if self.learnt.as_ref().is_some_and(again) { Place::Second } else { Place::First }
    }

    /// Makes a member that does not leave the oldest one.
    pub fn make_oldest(&mut self, bucket: BucketNr) {
        if self.members.contains(bucket.0) {
            self.members.insert_oldest(bucket.0);
            let place = self.place_of(bucket);
            if let Some(two_queue) = &mut self.two_queue {
                two_queue.insert_oldest(bucket.0, place);
            }
        }
    }

    pub fn remove(&mut self, bucket: BucketNr) {
        self.members.remove(bucket.0);
        self.leave_queue(bucket.0);
    }

    fn leave_queue(&mut self, bucket: u32) {
        if let Some(two_queue) = &mut self.two_queue {
            two_queue.remove(bucket);
        }
    }

    /// So many sectors of the bucket, which need not be a member, were used again.
    pub fn touch(&mut self, bucket: BucketNr, sectors: u64) {
        if let Some(learnt) = &mut self.learnt {
            learnt.worth.hit(bucket, sectors);
        }
        self.members.touch(bucket.0);
    }

    /// Takes out the member that the leading policy gives up next. Some policies find none, though
    /// there are members.
    fn draw(&mut self, random: impl FnMut() -> u64, look: &impl Look) -> Option<u32> {
        let learnt = self.learnt.as_ref()?;
        let bucket = match self.leader {
            ReplacementPolicy::ScanResistant => learnt.least_worth(&self.members, random, look),
            ReplacementPolicy::TwoQueue => self.two_queue.as_mut()?.pick(look),
            _ => None,
        }?;
        self.remove(BucketNr(bucket));
        Some(bucket)
    }

    /// Chooses a victim, see [`EvictionList::pick`].
    pub fn pick(&mut self, mut random: impl FnMut() -> u64, look: &impl Look) -> Option<BucketNr> {
        let victim = self
            .members
            .pick_leaving(|bucket| look.may_take(bucket))
            .or_else(|| self.draw(&mut random, look))
            .or_else(|| self.members.pick(random, |bucket| look.may_take(bucket)))?;
        self.leave_queue(victim);
        Some(BucketNr(victim))
    }

    /// Buckets whose turn had come, and that stay all the same: their past uses have been spent.
    pub fn take_stayed(&mut self) -> Vec<BucketNr> {
        self.two_queue.as_mut().map(TwoQueue::take_stayed).unwrap_or_default()
    }

    /// A member that no pick would take soon, if no other can be taken.
    pub fn oldest(&self) -> Option<BucketNr> {
        self.members.iter_oldest().next().or_else(|| self.members.first_leaving()).map(BucketNr)
    }

    /// Begins to count what there is. False if there is nothing to learn, as with a policy that
    /// does not care.
    pub fn census_begins(&mut self) -> bool {
        let Some(learnt) = &mut self.learnt else { return false };
        learnt.filled = learnt.worth.filled_since();
        let time = learnt.worth.census_begins();
        learnt.time = time.unwrap_or(0);
        time.is_some()
    }

    /// Counts buckets of data, with their live sectors.
    pub fn census(&mut self, data: impl Iterator<Item = (BucketNr, u32)>) {
        if let Some(learnt) = &mut self.learnt {
            data.for_each(|(bucket, live)| learnt.worth.count(bucket, live, learnt.time));
        }
    }

    /// Learns from what was counted.
    pub fn census_ends(&mut self, bucket_sectors: u32) {
        if let Some(learnt) = &mut self.learnt {
            learnt.worth.census_ends(bucket_sectors);
        }
    }

    /// Returns true if victims are chosen ahead.
    fn chooses_ahead(&self) -> bool {
        self.learnt.is_some() && self.leader.learns()
    }

    /// Chooses up to `most` members until `count` leave; says whether that is so, or no more can be
    /// found. Nothing with a policy that does not care.
    pub fn choose(
        &mut self,
        count: usize,
        most: usize,
        mut random: impl FnMut() -> u64,
        look: &impl Look,
    ) -> bool {
        if !self.chooses_ahead() {
            return true;
        }
        for _ in 0..most {
            if self.members.leaving() as usize >= count {
                return true;
            }
            let Some(next) = self.draw(&mut random, look) else { return true };
            self.members.leave(next);
        }
        self.members.leaving() as usize >= count
    }

    /// Begins to look at what leaves. `None` with a policy that does not care.
    pub fn saving_begins(&mut self, bucket_sectors: u32) -> Option<Saving> {
        if !self.chooses_ahead() {
            return None;
        }
        let percent = match self.leader {
            ReplacementPolicy::TwoQueue => MOVED_PERCENT_TWO_QUEUE,
            _ => MOVED_PERCENT,
        };
        let filled = u64::from(self.learnt.as_ref()?.filled);
        self.members.rewind();
        let room = filled * u64::from(bucket_sectors) * percent / 100;
        let buckets = BucketSet::new(self.members.capacity());
        Some(Saving { worth: 0, seen: 0, room, full: false, buckets })
    }

    /// Looks at up to `most` of those that leave. Says whether all were looked at.
    pub fn save(&mut self, saving: &mut Saving, most: usize, look: &impl Look) -> bool {
        let Some(learnt) = &self.learnt else { return true };
        for _ in 0..most {
            let Some(bucket) = self.members.next_leaving() else { return true };
            saving.seen += 1;
            saving.worth += u128::from(learnt.worth.of(BucketNr(bucket)));
            let reused = || look.reused(bucket).min(look.live(bucket).into());
            let sectors = if saving.full { 0 } else { reused() };
            saving.full |= sectors > saving.room;
            if sectors > 0 && !saving.full {
                saving.room -= sectors;
                saving.buckets.insert(BucketNr(bucket));
            }
        }
        false
    }

    /// Out of which of the chosen buckets data is moved that was used again. By worth none, if what
    /// was moved before turned out to be worth less than what leaves.
    pub fn worth_saving(&self, saving: Option<Saving>) -> BucketSet {
        let (Some(learnt), Some(saving)) = (&self.learnt, saving) else {
            return BucketSet::default();
        };
        let moved = learnt.worth.of_new(Class::MovedClean as usize);
        let worth_it = self.leader == ReplacementPolicy::TwoQueue
            || u128::from(moved) * saving.seen >= saving.worth;
        if worth_it { saving.buckets } else { BucketSet::default() }
    }
}

impl Learnt {
    /// Draws some members and returns the one that is worth least.
    fn least_worth(
        &self,
        members: &EvictionList,
        mut random: impl FnMut() -> u64,
        look: &impl Look,
    ) -> Option<u32> {
        let may_take = |bucket: &u32| look.may_take(*bucket);
        let drawn = (0..DRAWN).filter_map(|_| members.draw(&mut random).filter(may_take));
        let worth = |bucket: u32| {
            u128::from(self.worth.of(BucketNr(bucket))) * u128::from(look.live(bucket))
        };
        let least = drawn
            .map(|bucket| (worth(bucket), bucket))
            .reduce(|least, next| if next.0 < least.0 { next } else { least });
        least.map(|(_, bucket)| bucket)
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

    /// Buckets that may be taken, their live sectors, and those that were used again.
    struct All<M, L, R>(M, L, R);

    impl<M: Fn(u32) -> bool, L: Fn(u32) -> u32, R: Fn(u32) -> u64> Look for All<M, L, R> {
        fn may_take(&self, bucket: u32) -> bool {
            self.0(bucket)
        }
        fn live(&self, bucket: u32) -> u32 {
            self.1(bucket)
        }
        fn reused(&self, bucket: u32) -> u64 {
            self.2(bucket)
        }
        fn bucket_sectors(&self) -> u32 {
            SECTORS
        }
    }

    /// All buckets are full, and nothing was used again.
    fn full() -> impl Look {
        All(|_| true, |_| SECTORS, |_| 0)
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
        while !victims.choose(count, 5, &mut dice, &full()) {}
        leaving(victims)
    }

    fn worth_saving(victims: &mut Policy, reused: impl Fn(u32) -> u64) -> Vec<u32> {
        let mut saving = victims.saving_begins(SECTORS);
        if let Some(saving) = &mut saving {
            let look = All(|_| true, |_| SECTORS, &reused);
            while !victims.save(saving, 5, &look) {}
        }
        let set = victims.worth_saving(saving);
        (0..BUCKETS).filter(|&bucket| set.contains(BucketNr(bucket))).collect()
    }

    fn pick(victims: &mut Policy) -> Option<u32> {
        victims.pick(dice(), &full()).map(|bucket| bucket.0)
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
        let look = All(|_| true, |bucket| if bucket % 4 == 1 { 1 } else { 64 }, |_| 0);
        let picked = victims.pick(dice(), &look);
        assert_eq!(picked.map(|bucket| bucket.0 % 4), Some(1));
    }

    #[test]
    fn bucket_that_may_not_be_taken_stays() {
        let mut victims = used(ReplacementPolicy::ScanResistant);
        choose(&mut victims, 16);
        let picked = victims.pick(dice(), &All(|bucket| bucket == 60, |_| SECTORS, |_| 0));
        assert_eq!(picked, Some(BucketNr(60)), "the list is searched");
        assert_eq!(victims.pick(dice(), &All(|_| false, |_| SECTORS, |_| 0)), None);
        assert_eq!(victims.len(), BUCKETS - 1);
    }

    #[test]
    fn lru_does_not_choose_ahead() {
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

    #[test]
    fn two_queue_gives_up_first_what_was_not_used_again() {
        let mut victims = used(ReplacementPolicy::TwoQueue);
        // The upper half was used in full: it stays, and what came once goes.
        let look = All(|_| true, |_| SECTORS, |bucket| if bucket >= 32 { 64 } else { 0 });
        let gone: Vec<u32> =
            (0..30).filter_map(|_| victims.pick(dice(), &look).map(|it| it.0)).collect();
        assert_eq!(gone, (0..30).collect::<Vec<u32>>());
        // Two more, and then its turn has come.
        let _: Vec<_> = (0..3).map(|_| victims.pick(dice(), &look)).collect();
        let stayed = victims.take_stayed();
        assert!(!stayed.is_empty() && stayed.iter().all(|bucket| bucket.0 >= 32), "{stayed:?}");
        // Its uses are spent now: in the second queue the one filled first goes, once the first
        // queue has a tenth of the cache at most.
        let mut rest = Vec::new();
        while let Some(bucket) = victims.pick(dice(), &full()) {
            rest.push(bucket.0);
        }
        assert!(victims.is_empty() && rest.len() >= 30, "{rest:?}");
    }

    /// A start inserts from the bucket used last to the coldest, each as the oldest.
    #[test]
    fn two_queue_gives_up_the_coldest_first_after_a_start() {
        let mut victims = Policy::new(BUCKETS, ReplacementPolicy::TwoQueue);
        victims.grow(BUCKETS);
        victims.set_policy(ReplacementPolicy::TwoQueue);
        while !victims.learn(10, |_| 0) {}
        for bucket in [5, 9, 2, 7] {
            victims.insert(BucketNr(bucket));
            victims.make_oldest(BucketNr(bucket));
        }
        let gone: Vec<u32> = std::iter::from_fn(|| pick(&mut victims)).collect();
        assert_eq!(gone, [7, 2, 9, 5]);
    }

    #[test]
    fn leader_of_adaptive_chooses() {
        let mut victims = used(ReplacementPolicy::Adaptive);
        (0..8).for_each(|bucket| victims.touch(BucketNr(bucket), 8));
        assert!(victims.lead(ReplacementPolicy::Lru) && !victims.lead(ReplacementPolicy::Lru));
        assert!(choose(&mut victims, 9).is_empty(), "lru does not choose ahead");
        assert_eq!((pick(&mut victims), pick(&mut victims)), (Some(8), Some(9)), "the oldest use");
        assert!(victims.lead(ReplacementPolicy::ScanResistant));
        assert_eq!(choose(&mut victims, 4).len(), 4);
        assert!(victims.lead(ReplacementPolicy::TwoQueue));
        // Those that another policy chose ahead go first.
        let _: Vec<_> = (0..4).map(|_| pick(&mut victims)).collect();
        assert_eq!(pick(&mut victims).map(|bucket| bucket < 16), Some(true), "the first filled");
        let mut lru = used(ReplacementPolicy::Lru);
        assert!(!lru.lead(ReplacementPolicy::TwoQueue), "only adaptive has a leader");
    }
}
