//! Two queues of buckets, each in the order in which they were filled: data that came once, and
//! data that came again.
//!
//! S3-FIFO (Yang et al., SOSP 2023) with buckets in the place of objects. New data is in the first
//! queue and leaves it soon: the first bucket of that queue goes while it has more than a tenth of
//! the buckets in both, otherwise that of the second. What was used again in a bucket that goes is
//! moved to the second queue ([`gc::moving`](crate::gc::moving)); a bucket that is mostly such data
//! changes to the end of the second queue as it is, which writes nothing. Data that is read again
//! soon after it was evicted comes to the second queue at once
//! ([`RecentFills`](super::recent_fills::RecentFills)).

use ubcache_format::BucketNr;

use super::linked_lists::{LinkedLists, NIL};
use super::look::Look;

/// The first queue has this part of the buckets in both.
const FIRST_PART: u32 = 10;
/// A bucket stays if so much of it was used again. A smaller share writes less and loses hits, a
/// larger one has more of both (docs/decisions/0014-adaptive.md).
const STAYS_PERCENT: u64 = 40;
/// Buckets that are looked at for a victim.
const LOOKS: u32 = 16;

#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub(super) enum Place {
    /// Data that came once.
    #[default]
    First,
    /// Data that came again.
    Second,
}

impl From<Place> for usize {
    fn from(place: Place) -> usize {
        place as usize
    }
}

#[derive(Debug)]
pub(super) struct TwoQueue {
    queues: LinkedLists<Place>,
    /// Buckets that stay, though their turn has come: their data has to be used once more.
    stayed: Vec<BucketNr>,
}

impl TwoQueue {
    /// Empty queues with memory for so many buckets; [`TwoQueue::grow`] makes their numbers valid.
    pub fn new(buckets: u32) -> TwoQueue {
        TwoQueue { queues: LinkedLists::new(buckets), stayed: Vec::new() }
    }

    /// Makes the bucket numbers below `buckets` valid, if they are not yet.
    pub fn grow(&mut self, buckets: u32) {
        if buckets > self.queues.capacity() {
            self.queues.grow(buckets);
        }
    }

    /// Puts it at the end of a queue, wherever it was. No effect on a number that is not valid yet.
    pub fn insert(&mut self, bucket: u32, place: Place) {
        if bucket < self.queues.capacity() {
            self.queues.insert(place, bucket);
        }
    }

    /// Puts it at the front of a queue, likewise.
    pub fn insert_oldest(&mut self, bucket: u32, place: Place) {
        if bucket < self.queues.capacity() {
            self.queues.insert_oldest(place, bucket);
        }
    }

    /// Takes it out; no effect if it is in no queue.
    pub fn remove(&mut self, bucket: u32) {
        if bucket < self.queues.capacity() {
            self.queues.remove(bucket);
        }
    }

    /// Takes out the next victim. None if those that were looked at may not go.
    pub fn pick(&mut self, look: &impl Look) -> Option<u32> {
        let stays = u64::from(look.bucket_sectors()) * STAYS_PERCENT;
        for _ in 0..LOOKS {
            let [first, second] = [Place::First, Place::Second].map(|it| self.queues.ends(it));
            let both = u64::from(first.len) + u64::from(second.len);
            let is_first = second.len == 0
                || first.len > 0 && u64::from(first.len) * u64::from(FIRST_PART) > both;
            let place = if is_first { Place::First } else { Place::Second };
            let bucket = self.queues.ends(place).oldest;
            if bucket == NIL {
                return None;
            }
            if !look.may_take(bucket) {
                self.insert(bucket, place);
            } else if look.reused(bucket).min(look.live(bucket).into()) * 100 >= stays {
                self.insert(bucket, Place::Second);
                self.stayed.push(BucketNr(bucket));
            } else {
                self.remove(bucket);
                return Some(bucket);
            }
        }
        None
    }

    /// The buckets that stayed since the last call: their past uses have been spent.
    pub fn take_stayed(&mut self) -> Vec<BucketNr> {
        std::mem::take(&mut self.stayed)
    }
}
