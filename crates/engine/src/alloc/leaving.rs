//! The victims that were chosen and have not gone yet: a queue out of which any may be taken.
//!
//! A bucket that is taken out of the middle leaves its entry behind, which counts no more; [`Leaving::tidy`] drops such
//! entries.

use std::collections::VecDeque;

use ubcache_format::BucketNr;

/// How many members [`Leaving::pick`] offers before it gives up.
const CANDIDATES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Leaving {
    /// The next to go first.
    queue: VecDeque<BucketNr>,
    /// By bucket: whether it is a member.
    is_member: Vec<bool>,
    len: usize,
}

impl Leaving {
    /// Nothing leaves. Bucket numbers are below `buckets`.
    pub fn new(buckets: u32) -> Leaving {
        Leaving { queue: VecDeque::new(), is_member: vec![false; buckets as usize], len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn contains(&self, bucket: BucketNr) -> bool {
        self.is_member[bucket.0 as usize]
    }

    /// The bucket, which is no member, goes after all others.
    pub fn push(&mut self, bucket: BucketNr) {
        self.is_member[bucket.0 as usize] = true;
        self.len += 1;
        self.queue.push_back(bucket);
    }

    /// Ends the bucket's membership; says whether it was a member.
    pub fn remove(&mut self, bucket: BucketNr) -> bool {
        let was = std::mem::take(&mut self.is_member[bucket.0 as usize]);
        self.len -= usize::from(was);
        was
    }

    /// Takes out the first of which `may_take` says yes. Those that it refuses go to the end; after 64 of them there is
    /// none this time.
    pub fn pick(&mut self, may_take: impl Fn(u32) -> bool) -> Option<BucketNr> {
        for _ in 0..self.len.min(CANDIDATES_MAX) {
            let next = loop {
                let next = self.queue.pop_front()?;
                if self.contains(next) {
                    break next;
                }
            };
            if may_take(next.0) {
                self.remove(next);
                return Some(next);
            }
            self.queue.push_back(next);
        }
        None
    }

    /// Leaves one entry in the queue for each member.
    pub fn tidy(&mut self) {
        let is_member = &mut self.is_member;
        // Only the first entry of a bucket that came back counts.
        self.queue.retain(|bucket| std::mem::take(&mut is_member[bucket.0 as usize]));
        self.queue.iter().for_each(|bucket| is_member[bucket.0 as usize] = true);
    }

    /// The members, the next to go first, after [`Leaving::tidy`].
    pub fn iter(&self) -> impl Iterator<Item = BucketNr> + '_ {
        self.queue.iter().copied().filter(|&bucket| self.contains(bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(members: &[u32]) -> Leaving {
        let mut leaving = Leaving::new(200);
        members.iter().for_each(|&bucket| leaving.push(BucketNr(bucket)));
        leaving
    }

    fn all(mut leaving: Leaving) -> Vec<u32> {
        std::iter::from_fn(|| leaving.pick(|_| true)).map(|bucket| bucket.0).collect()
    }

    #[test]
    fn the_first_goes_first_unless_it_was_taken_out() {
        let mut some = leaving(&[3, 1, 2]);
        assert!(some.remove(BucketNr(1)) && !some.remove(BucketNr(1)));
        assert_eq!((some.len(), some.contains(BucketNr(1))), (2, false));
        assert_eq!(all(some), [3, 2]);
    }

    #[test]
    fn who_comes_back_goes_once() {
        let mut some = leaving(&[3, 1, 2]);
        some.remove(BucketNr(3));
        some.push(BucketNr(3));
        some.remove(BucketNr(2));
        assert_eq!(some.len(), 2);
        some.tidy();
        assert_eq!((some.queue.len(), some.len()), (2, 2));
        assert_eq!(some.iter().map(|bucket| bucket.0).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(all(some), [3, 1]);
    }

    #[test]
    fn the_refused_wait_at_the_end() {
        let mut some = leaving(&[5, 6, 7]);
        assert_eq!(some.pick(|bucket| bucket != 5), Some(BucketNr(6)));
        assert_eq!(some.pick(|_| false), None);
        assert_eq!(some.len(), 2);
        assert_eq!(all(some), [7, 5]);
        // A crowd of refused ones does not hide the rest for ever.
        let mut many = leaving(&(0..100).collect::<Vec<u32>>());
        assert_eq!(many.pick(|bucket| bucket >= 70), None);
        assert_eq!(many.pick(|bucket| bucket >= 70), Some(BucketNr(70)));
    }
}
