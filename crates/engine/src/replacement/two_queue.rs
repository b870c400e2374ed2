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

use super::look::Look;

/// No bucket: the end of a queue.
const NIL: u32 = u32::MAX;
/// The first queue has this part of the buckets in both.
const FIRST_PART: u32 = 10;
/// A bucket stays if so much of it was used again. A smaller share writes less and loses hits, a
/// larger one has more of both (docs/decisions/0014-adaptive.md).
const STAYS_PERCENT: u64 = 40;
/// Buckets that are looked at for a victim.
const LOOKS: u32 = 16;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Data that came once.
    First,
    /// Data that came again.
    Second,
}

#[derive(Copy, Clone, Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
    len: u32,
}

const EMPTY: Queue = Queue { oldest: NIL, newest: NIL, len: 0 };

#[derive(Debug)]
pub(super) struct TwoQueue {
    queues: [Queue; 2],
    /// By bucket: those before and behind it. One in no queue is before itself.
    before: Vec<u32>,
    behind: Vec<u32>,
    places: Vec<Place>,
    /// Buckets that stay, though their turn has come: their data has to be used once more.
    stayed: Vec<BucketNr>,
}

impl TwoQueue {
    /// Empty queues with memory for so many buckets; [`TwoQueue::grow`] makes their numbers valid.
    pub fn new(buckets: u32) -> TwoQueue {
        let buckets = buckets as usize;
        TwoQueue {
            queues: [EMPTY; 2],
            before: Vec::with_capacity(buckets),
            behind: Vec::with_capacity(buckets),
            places: Vec::with_capacity(buckets),
            stayed: Vec::new(),
        }
    }

    /// Makes the bucket numbers below `buckets` valid.
    pub fn grow(&mut self, buckets: u32) {
        self.before.extend(self.before.len() as u32..buckets);
        self.behind.resize(buckets as usize, NIL);
        self.places.resize(buckets as usize, Place::First);
    }

    /// Number of buckets whose numbers are valid.
    pub fn capacity(&self) -> u32 {
        self.before.len() as u32
    }

    /// Puts it at the end of a queue, wherever it was.
    pub fn insert(&mut self, bucket: u32, place: Place) {
        self.remove(bucket);
        let queue = &mut self.queues[place as usize];
        self.before[bucket as usize] = queue.newest;
        self.behind[bucket as usize] = NIL;
        match queue.newest {
            NIL => queue.oldest = bucket,
            newest => self.behind[newest as usize] = bucket,
        }
        queue.newest = bucket;
        queue.len += 1;
        self.places[bucket as usize] = place;
    }

    /// Puts it at the front of a queue, wherever it was.
    pub fn insert_oldest(&mut self, bucket: u32, place: Place) {
        self.remove(bucket);
        let queue = &mut self.queues[place as usize];
        self.before[bucket as usize] = NIL;
        self.behind[bucket as usize] = queue.oldest;
        match queue.oldest {
            NIL => queue.newest = bucket,
            oldest => self.before[oldest as usize] = bucket,
        }
        queue.oldest = bucket;
        queue.len += 1;
        self.places[bucket as usize] = place;
    }

    /// Takes it out; no effect if it is in no queue.
    pub fn remove(&mut self, bucket: u32) {
        let (before, behind) = (self.before[bucket as usize], self.behind[bucket as usize]);
        if before == bucket {
            return;
        }
        let queue = &mut self.queues[self.places[bucket as usize] as usize];
        match before {
            NIL => queue.oldest = behind,
            before => self.behind[before as usize] = behind,
        }
        match behind {
            NIL => queue.newest = before,
            behind => self.before[behind as usize] = before,
        }
        queue.len -= 1;
        self.before[bucket as usize] = bucket;
    }

    /// Takes out the next victim. None if those that were looked at may not go.
    pub fn pick(&mut self, look: &impl Look) -> Option<u32> {
        let stays = u64::from(look.bucket_sectors()) * STAYS_PERCENT;
        for _ in 0..LOOKS {
            let [first, second] = self.queues;
            let both = u64::from(first.len) + u64::from(second.len);
            let is_first = second.len == 0
                || first.len > 0 && u64::from(first.len) * u64::from(FIRST_PART) > both;
            let place = if is_first { Place::First } else { Place::Second };
            let bucket = self.queues[place as usize].oldest;
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
