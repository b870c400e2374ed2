//! The end of counting: every extent was seen once, and every bucket finds its place.

use std::ops::Range;

use ubcache_env::Env;
use ubcache_format::BucketNr;

use super::allocator::Allocator;
use super::buckets::{Buckets, Role};
use crate::rules::Rule;
use crate::time_slices::in_slices;

/// Steps of putting a bucket into its place, which is somewhere else for each.
const PLACE_STEPS: usize = 8;
/// There are no more priorities.
const PRIORITIES: usize = 1 << 16;

/// Numbers in a part of [`Parts`].
const PART: usize = 1 << 16;

/// A number for each bucket, in parts: to give megabytes back to the system takes milliseconds.
struct Parts<T>(Vec<Vec<T>>);

impl<T: Copy + Default> Parts<T> {
    /// Zeroes for so many buckets. Others have their turn after each part, for memory that was used
    /// before is cleared.
    async fn zeroes<E: Env>(env: &E, count: usize) -> Parts<T> {
        let mut parts = Vec::new();
        for _ in 0..count.div_ceil(PART) {
            parts.push(vec![T::default(); PART]);
            env.yield_now().await;
        }
        Parts(parts)
    }

    fn get(&self, index: usize) -> T {
        self.0[index / PART][index % PART]
    }

    fn set(&mut self, index: usize, value: T) {
        self.0[index / PART][index % PART] = value;
    }
}

/// All buckets in the order in which they were last used when they were looked at.
struct Order {
    /// By bucket.
    priorities: Parts<u16>,
    /// By priority: where the next bucket of it goes.
    next: Vec<u32>,
    /// Their numbers, the coldest first.
    buckets: Parts<u32>,
}

impl Order {
    /// The priority of every bucket is noted: now it is known where each goes.
    fn priorities_seen(&mut self) {
        let mut first = 0;
        for count in &mut self.next {
            first += std::mem::replace(count, first);
        }
    }

    fn put(&mut self, buckets: Range<usize>) {
        for index in buckets {
            let place = &mut self.next[usize::from(self.priorities.get(index))];
            self.buckets.set(*place as usize, index as u32);
            *place += 1;
        }
    }
}

impl Buckets {
    /// Frees the buckets that are still unknown, or makes them wait for that. Returns how many of
    /// them have a pointer into them that is too old.
    fn free_unknown(&mut self, buckets: Range<usize>) -> usize {
        let mut aged = 0;
        for index in buckets {
            if self.role[index] == Role::Unknown {
                aged += usize::from(self.give_up_unknown(BucketNr(index as u32)));
            }
        }
        aged
    }

    fn note_priorities(&self, buckets: Range<usize>, order: &mut Order) {
        for index in buckets {
            let priority = self.recency.priority(BucketNr(index as u32));
            order.priorities.set(index, priority);
            order.next[usize::from(priority)] += 1;
        }
    }

    /// These, the hottest last, are in their places; what was found to be used since is where it
    /// belongs.
    fn settle_in_order(&mut self, order: &Order, places: Range<usize>) {
        for index in places.rev().map(|place| order.buckets.get(place)) {
            let bucket = BucketNr(index);
            self.settle(bucket);
            if self.recency.priority(bucket) <= order.priorities.get(index as usize) {
                self.victims.make_oldest(bucket);
            }
        }
    }
}

impl<E: Env> Allocator<E> {
    /// Every extent is in the counts.
    pub async fn counting_done(&self) {
        let buckets = &self.buckets;
        if buckets.borrow_mut().ages_known() > 0 {
            self.context.env.mark("given_up_before_the_count");
        }
        let count = self.context.geometry.buckets as usize;
        let steps = self.slice_steps(Rule::S1CountingInSlices);
        let mut aged = 0;
        in_slices(&self.context.env, steps, count, 1, |part| {
            aged += buckets.borrow_mut().free_unknown(part)
        })
        .await;
        if aged > 0 {
            self.context.env.mark("aged_at_start");
        }
        let mut order = Order {
            priorities: Parts::zeroes(&self.context.env, count).await,
            next: vec![0; PRIORITIES],
            buckets: Parts::zeroes(&self.context.env, count).await,
        };
        self.for_all_buckets(1, |part| buckets.borrow().note_priorities(part, &mut order)).await;
        order.priorities_seen();
        self.for_all_buckets(PLACE_STEPS, |part| order.put(part)).await;
        // From the hottest on, each to the old end: what is used or filled meanwhile is at the
        // other.
        self.for_all_buckets(PLACE_STEPS, |part| {
            buckets.borrow_mut().settle_in_order(&order, count - part.end..count - part.start);
        })
        .await;
        while order.buckets.0.pop().is_some() {
            order.priorities.0.pop();
            self.context.env.yield_now().await;
        }
        buckets.borrow_mut().counted = true;
        self.counted.notify_all();
        self.check(&buckets.borrow());
    }
}
