//! Victim lists: which bucket to evict next, in constant time.
//!
//! The members are the buckets that could be evicted, in one of the [`LinkedLists`] from the oldest
//! to the most recent, so every operation but the worst case of [`EvictionList::pick`] is O(1).
//!
//! ```text
//! oldest ─► 7 ⇄ 2 ⇄ 9 ⇄ 4 ◄─ most recent      insert, touch: to the right end; pick: from the left end
//! ```
//!
//! Victims that were chosen ahead are in a second list over the same arrays, `leaving`.
//!
//! The policies are bcache's, except that the order of `lru` is exact recency: bcache weighs
//! recency with the share of live data.

use ubcache_format::Replacement;

use super::linked_lists::{LinkedLists, NIL};

/// Number of members that `pick` offers before it gives up (`lru`, `fifo`), and of buckets that it
/// draws (`random`).
const CANDIDATES_MAX: u32 = 64;

/// Number of buckets that `draw` draws.
const DRAWS: u32 = 8;

/// One of the lists.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
enum List {
    #[default]
    Members,
    Leaving,
}

impl From<List> for usize {
    fn from(list: List) -> usize {
        list as usize
    }
}

/// The buckets that may be evicted, in order.
#[derive(Clone, Debug)]
pub(crate) struct EvictionList {
    policy: Replacement,
    lists: LinkedLists<List>,
    /// The leaving bucket that is looked at next.
    cursor: u32,
}

impl Default for EvictionList {
    fn default() -> EvictionList {
        EvictionList::new(0, Replacement::Lru)
    }
}

impl EvictionList {
    /// Empty lists with memory for `buckets`; [`EvictionList::grow`] makes their numbers valid.
    pub fn new(buckets: u32, policy: Replacement) -> Self {
        EvictionList { policy, lists: LinkedLists::new(buckets), cursor: NIL }
    }

    /// Makes the bucket numbers below `buckets` valid.
    pub fn grow(&mut self, buckets: u32) {
        self.lists.grow(buckets);
    }

    /// Bucket numbers are below this.
    pub fn capacity(&self) -> u32 {
        self.lists.capacity()
    }

    /// The policy in force.
    #[cfg(test)]
    fn policy(&self) -> Replacement {
        self.policy
    }

    /// Changes the policy. The order of the members stays as it is.
    pub fn set_policy(&mut self, policy: Replacement) {
        self.policy = policy;
    }

    /// Number of members, without those that leave.
    pub fn len(&self) -> u32 {
        self.lists.ends(List::Members).len
    }

    /// Number of those that leave.
    pub fn leaving(&self) -> u32 {
        self.lists.ends(List::Leaving).len
    }

    /// Returns true if there is no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if the bucket is a member, and does not leave.
    ///
    /// # Panics
    /// Like all methods that take a bucket: if the number is not below that of
    /// [`EvictionList::grow`].
    pub fn contains(&self, bucket: u32) -> bool {
        self.lists.is_in(List::Members, bucket)
    }

    /// Returns true if the bucket was chosen to go.
    pub fn leaves(&self, bucket: u32) -> bool {
        self.lists.is_in(List::Leaving, bucket)
    }

    /// Makes the bucket the most recent member, whether it is in a list already or not.
    pub fn insert(&mut self, bucket: u32) {
        self.pass_by(bucket);
        self.lists.insert(List::Members, bucket);
    }

    /// Makes the bucket the oldest member, whether it is in a list already or not.
    pub fn insert_oldest(&mut self, bucket: u32) {
        self.pass_by(bucket);
        self.lists.insert_oldest(List::Members, bucket);
    }

    /// Appends the bucket to `leaving`.
    pub fn leave(&mut self, bucket: u32) {
        self.pass_by(bucket);
        self.lists.insert(List::Leaving, bucket);
    }

    /// Takes the bucket out of the list that it is in; no effect if it is in none.
    pub fn remove(&mut self, bucket: u32) {
        self.pass_by(bucket);
        self.lists.remove(bucket);
    }

    /// The bucket is about to change its place: a walk goes on with the next one.
    fn pass_by(&mut self, bucket: u32) {
        if self.cursor == bucket {
            self.cursor = self.lists.newer(bucket);
        }
    }

    /// The bucket was used: with `lru` it becomes the most recent member. No effect with another
    /// policy, or if it is no member.
    pub fn touch(&mut self, bucket: u32) {
        if self.policy == Replacement::Lru
            && self.contains(bucket)
            && self.lists.ends(List::Members).newest != bucket
        {
            self.insert(bucket);
        }
    }

    /// Takes out the first of those that leave for which `may_take` says yes. Those that it refuses
    /// go to the end; after 64 of them there is none this time.
    pub fn pick_leaving(&mut self, may_take: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..self.leaving().min(CANDIDATES_MAX) {
            let next = self.lists.ends(List::Leaving).oldest;
            if may_take(next) {
                self.remove(next);
                return Some(next);
            }
            self.leave(next);
        }
        None
    }

    /// The next call of [`EvictionList::next_leaving`] gives the first of those that leave.
    pub fn rewind(&mut self) {
        self.cursor = self.lists.ends(List::Leaving).oldest;
    }

    /// Steps through `leaving`, the next victim first. The list may change between two calls.
    pub fn next_leaving(&mut self) -> Option<u32> {
        let bucket = self.cursor;
        if bucket == NIL {
            return None;
        }
        self.cursor = self.lists.newer(bucket);
        Some(bucket)
    }

    /// The first of those that leave.
    pub fn first_leaving(&self) -> Option<u32> {
        Some(self.lists.ends(List::Leaving).oldest).filter(|&bucket| bucket != NIL)
    }

    /// Chooses a victim for which `may_take` says yes and removes it from the list.
    ///
    /// With `lru` and `fifo` the oldest members are offered, 64 at most. If all 64 are refused they
    /// become the most recent ones and there is no victim this time; the next call sees others.
    /// With `random` 64 buckets are drawn, then the list is searched once around, from one of the
    /// refused members if there was one.
    pub fn pick(
        &mut self,
        random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let victim = match self.policy {
            Replacement::Lru | Replacement::Fifo => self.pick_oldest(may_take),
            Replacement::Random => self.pick_random(random, may_take),
        }?;
        self.remove(victim);
        Some(victim)
    }

    /// Some member, any with the same chance, in a few draws; none if members are too few among the
    /// buckets.
    pub fn draw(&self, mut random: impl FnMut() -> u64) -> Option<u32> {
        let buckets = u64::from(self.capacity());
        if self.is_empty() {
            return None;
        }
        (0..DRAWS).map(|_| (random() % buckets) as u32).find(|&bucket| self.contains(bucket))
    }

    /// The members from the oldest to the most recent.
    pub fn iter_oldest(&self) -> impl Iterator<Item = u32> + '_ {
        self.iter_from(self.lists.ends(List::Members).oldest)
    }

    fn iter_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let existing = |bucket: u32| (bucket != NIL).then_some(bucket);
        std::iter::successors(existing(first), move |&bucket| existing(self.lists.newer(bucket)))
    }

    fn pick_oldest(&mut self, may_take: impl Fn(u32) -> bool) -> Option<u32> {
        let found =
            self.iter_oldest().take(CANDIDATES_MAX as usize).find(|&bucket| may_take(bucket));
        if found.is_none() && self.len() > CANDIDATES_MAX {
            for _ in 0..CANDIDATES_MAX {
                self.insert(self.lists.ends(List::Members).oldest);
            }
        }
        found
    }

    fn pick_random(
        &self,
        mut random: impl FnMut() -> u64,
        may_take: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let buckets = u64::from(self.capacity());
        let mut refused = self.lists.ends(List::Members).oldest;
        for _ in 0..CANDIDATES_MAX {
            let bucket = (random() % buckets) as u32;
            if self.contains(bucket) {
                if may_take(bucket) {
                    return Some(bucket);
                }
                refused = bucket;
            }
        }
        let around = self
            .iter_from(refused)
            .chain(self.iter_oldest().take_while(|&bucket| bucket != refused));
        around.into_iter().find(|&bucket| may_take(bucket))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn empty(buckets: u32, policy: Replacement) -> EvictionList {
        let mut list = EvictionList::new(buckets, policy);
        list.grow(buckets / 2);
        list.grow(buckets);
        list
    }

    fn list(policy: Replacement, members: impl IntoIterator<Item = u32>) -> EvictionList {
        let mut list = empty(1000, policy);
        members.into_iter().for_each(|bucket| list.insert(bucket));
        list
    }

    fn order(list: &EvictionList) -> Vec<u32> {
        list.iter_oldest().collect()
    }

    /// For policies that must not ask for randomness.
    fn not_random() -> u64 {
        panic!("no randomness needed")
    }

    #[test]
    fn lru_evicts_by_last_use_and_fifo_by_insertion() {
        for (policy, expected) in [(Replacement::Lru, [2, 3, 1]), (Replacement::Fifo, [1, 2, 3])] {
            let mut list = list(policy, [1, 2, 3]);
            list.touch(1);
            list.touch(9);
            let picked: Vec<u32> = std::iter::from_fn(|| list.pick(not_random, |_| true)).collect();
            assert_eq!(picked, expected);
            assert!(list.is_empty() && !list.contains(1));
        }
    }

    #[test]
    fn refused_bucket_keeps_its_place() {
        let mut list = list(Replacement::Lru, [1, 2, 3]);
        assert_eq!(list.pick(not_random, |bucket| bucket != 1), Some(2));
        assert_eq!(order(&list), [1, 3]);
        assert_eq!(list.pick(not_random, |_| false), None);
        assert_eq!(order(&list), [1, 3]);
    }

    /// A crowd of pinned buckets at the old end must not hide the rest for ever.
    #[test]
    fn sixty_four_refused_buckets_move_to_the_back() {
        for policy in [Replacement::Lru, Replacement::Fifo] {
            let mut list = list(policy, 0..100);
            assert_eq!(list.pick(not_random, |bucket| bucket >= 64), None);
            assert_eq!(order(&list)[..2], [64, 65]);
            assert_eq!(list.pick(not_random, |bucket| bucket >= 64), Some(64));
            assert_eq!(list.len(), 99);
        }
    }

    #[test]
    fn random_policy_takes_the_drawn_bucket() {
        let mut list = list(Replacement::Random, 0..1000);
        assert_eq!(list.pick(|| 1_000_123, |_| true), Some(123));
        assert!(!list.contains(123));
    }

    #[test]
    fn random_policy_searches_after_failed_draws() {
        let mut list = list(Replacement::Random, 0..1000);
        assert_eq!(
            list.pick(|| 500, |bucket| bucket < 500),
            Some(0),
            "from the refused one, round the end"
        );
        assert_eq!(list.pick(|| 500, |bucket| bucket > 500), Some(501));
        let mut sparse = self::list(Replacement::Random, [77]);
        assert_eq!(sparse.pick(|| 3, |_| false), None);
        assert_eq!(sparse.pick(|| 3, |_| true), Some(77));
        assert_eq!(sparse.pick(not_random, |_| true), None);
        assert_eq!(EvictionList::new(0, Replacement::Random).pick(not_random, |_| true), None);
    }

    #[test]
    fn random_policy_draws_a_few_times() {
        let list = list(Replacement::Random, [7]);
        let mut next = 0;
        let drawn = list.draw(|| {
            next += 1;
            next
        });
        assert_eq!((drawn, next), (Some(7), 7));
        assert_eq!((list.draw(|| 8), list.len()), (None, 1));
        assert_eq!(empty(10, Replacement::Random).draw(not_random), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        InsertOldest(u32),
        Leave(u32),
        PickLeaving { residue: u32, modulus: u32 },
        Remove(u32),
        Touch(u32),
        Policy(Replacement),
        Pick { seed: u64, residue: u32, modulus: u32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let policies = vec![Replacement::Lru, Replacement::Fifo, Replacement::Random];
        prop_oneof![
            6 => (0..BUCKETS).prop_map(Step::Insert),
            1 => (0..BUCKETS).prop_map(Step::InsertOldest),
            2 => (0..BUCKETS).prop_map(Step::Leave),
            1 => (0..80_u32, 1..80_u32).prop_map(|(residue, modulus)| Step::PickLeaving { residue,
                modulus }),
            2 => (0..BUCKETS).prop_map(Step::Remove),
            3 => (0..BUCKETS).prop_map(Step::Touch),
            1 => prop::sample::select(policies).prop_map(Step::Policy),
            2 => (any::<u64>(), 0..80_u32, 1..80_u32)
                .prop_map(|(seed, residue, modulus)| Step::Pick { seed, residue, modulus }),
        ]
    }

    const BUCKETS: u32 = 200;

    fn forget(bucket: u32, lists: &mut [&mut Vec<u32>]) {
        lists.iter_mut().for_each(|list| list.retain(|&member| member != bucket));
    }

    /// A walk over those that leave, one by one, misses none that stays.
    #[test]
    fn list_may_change_during_iteration() {
        let mut list = list(Replacement::Lru, 0..10);
        (0..5).for_each(|bucket| list.leave(bucket));
        list.rewind();
        assert_eq!((list.next_leaving(), list.next_leaving()), (Some(0), Some(1)));
        list.remove(2);
        list.remove(0);
        list.leave(7);
        assert_eq!(std::iter::from_fn(|| list.next_leaving()).collect::<Vec<_>>(), [3, 4, 7]);
    }

    proptest! {
        #[test]
        fn list_agrees_with_a_vector(steps in prop::collection::vec(step(), 1..400)) {
            let mut list = empty(BUCKETS, Replacement::Lru);
            let (mut model, mut leaving): (Vec<u32>, Vec<u32>) = Default::default();
            for step in steps {
                match step {
                    Step::Insert(bucket) => {
                        list.insert(bucket);
                        forget(bucket, &mut [&mut model, &mut leaving]);
                        model.push(bucket);
                    }
                    Step::InsertOldest(bucket) => {
                        list.insert_oldest(bucket);
                        forget(bucket, &mut [&mut model, &mut leaving]);
                        model.insert(0, bucket);
                    }
                    Step::Leave(bucket) => {
                        list.leave(bucket);
                        forget(bucket, &mut [&mut model, &mut leaving]);
                        leaving.push(bucket);
                    }
                    Step::PickLeaving { residue, modulus } => {
                        let may_take = |bucket: u32| bucket % modulus == residue % modulus;
                        let picked = list.pick_leaving(may_take);
                        let at = leaving.iter().take(64).position(|&bucket| may_take(bucket));
                        let refused = at.unwrap_or(leaving.len().min(64));
                        leaving.rotate_left(refused);
                        prop_assert_eq!(picked, at.map(|_| leaving.remove(0)));
                    }
                    Step::Remove(bucket) => {
                        list.remove(bucket);
                        forget(bucket, &mut [&mut model, &mut leaving]);
                    }
                    Step::Touch(bucket) => {
                        list.touch(bucket);
                        if list.policy() == Replacement::Lru && model.contains(&bucket) {
                            model.retain(|&member| member != bucket);
                            model.push(bucket);
                        }
                    }
                    Step::Policy(policy) => list.set_policy(policy),
                    Step::Pick { mut seed, residue, modulus } => {
                        let may_take = |bucket: u32| bucket % modulus == residue % modulus;
                        let random = || {
                            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            seed >> 33
                        };
                        let picked = list.pick(random, may_take);
                        if list.policy() == Replacement::Random {
                            prop_assert_eq!(picked.is_some(), model.iter()
                                .any(|&member| may_take(member)));
                            prop_assert!(picked.is_none_or(|bucket| may_take(bucket)
                                && model.contains(&bucket)));
                        } else {
                            prop_assert_eq!(picked, model.iter().take(64).copied()
                                .find(|&member| may_take(member)));
                            if picked.is_none() && model.len() > 64 {
                                model.rotate_left(64);
                            }
                        }
                        model.retain(|&member| Some(member) != picked);
                    }
                }
                prop_assert_eq!(order(&list), model.clone());
                prop_assert_eq!((list.len() as usize, list.leaving() as usize), (model.len(),
                    leaving.len()));
                list.rewind();
                let left: Vec<u32> = std::iter::from_fn(|| list.next_leaving()).collect();
                prop_assert_eq!(&left, &leaving);
                let mut backwards: Vec<u32> = std::iter::successors(
                    Some(list.lists.ends(List::Members).newest).filter(|&newest| newest != NIL),
                    |&bucket| Some(list.lists.older(bucket)).filter(|&older| older != NIL),
                ).collect();
                backwards.reverse();
                prop_assert_eq!(backwards, model.clone());
                for bucket in 0..BUCKETS {
                    prop_assert_eq!(list.contains(bucket), model.contains(&bucket));
                    prop_assert_eq!(list.leaves(bucket), leaving.contains(&bucket));
                }
            }
        }
    }
}
