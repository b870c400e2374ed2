//! Generations of buckets: pointers that are live, and how old pointers are.

use std::ops::Range;

use ubcache_format::{BucketNr, Generation, Pointer, Reach};

use super::bucket_pins::Pin;
use super::buckets::{Buckets, Role};

impl Buckets {
    /// Number of pointers on the device that seem to be ahead of their bucket, and are behind (G6).
    pub fn outrun(&self) -> u64 {
        self.outrun
    }

    /// Returns true if buckets wait for pointers to go that are too old.
    pub fn has_aged(&self) -> bool {
        self.aged
    }

    /// Returns true if the pointer's data is still there, as far as memory knows.
    pub fn is_live(&self, pointer: Pointer) -> bool {
        self.generation(self.bucket_of(pointer)) == pointer.generation
    }

    /// Returns true if a crash now could bring the pointer's data back: the generation that makes
    /// it stale is not durable.
    pub fn may_return(&self, pointer: Pointer) -> bool {
        let index = self.bucket_of(pointer).0 as usize;
        let durable = self.durable[index];
        pointer.generation.distance_from(durable) <= self.generations[index].distance_from(durable)
    }

    /// A pointer was found on the device: it may raise the generation (docs/reference/format.md),
    /// and its age counts. The raised generation is not durable (G5): what made it known may be
    /// written anew without it.
    pub fn note_pointer(&mut self, pointer: Pointer) {
        let bucket = self.bucket_of(pointer);
        let index = bucket.0 as usize;
        if self.reach.is_outrun(self.generations[index], pointer.generation) {
            self.outrun += 1;
        }
        if self.reach.is_ahead(self.generations[index], pointer.generation) {
            self.generations[index] = pointer.generation;
            self.recount |= self.live[index] > 0;
        }
        if self.age_of(bucket, pointer.generation) > self.age_of(bucket, self.oldest[index]) {
            self.oldest[index] = pointer.generation;
        }
    }

    /// A record that will be replayed points here: not a free bucket, and pinned until then.
    pub fn claim(&mut self, pointer: Pointer) -> Option<Pin> {
        self.note_pointer(pointer);
        if !self.is_live(pointer) {
            return None;
        }
        let bucket = self.bucket_of(pointer);
        if self.role(bucket) == Role::Unknown {
            self.set_role(bucket, Role::Data);
        }
        Some(self.pins.pin(bucket))
    }

    /// Generations that the bucket has gone through since a pointer of this generation was live. No
    /// pointer in the index is ahead of its bucket: [`Buckets::note_pointer`] saw to that when it
    /// came from the device.
    pub fn age_of(&self, bucket: BucketNr, generation: Generation) -> u8 {
        self.generations[bucket.0 as usize].distance_from(generation)
    }

    /// Returns true if a pointer into the bucket is so old that the bucket waits for garbage
    /// collection.
    pub(super) fn is_aged(&self, bucket: BucketNr) -> bool {
        self.age_of(bucket, self.oldest[bucket.0 as usize]) >= self.tuning.age_max
    }

    /// The generation that a bucket has when this one is given up.
    pub(super) fn raised(&self, generation: Generation) -> Generation {
        generation.raised(self.tuning.step)
    }

    /// Every pointer that is on the device was seen: it is known of every bucket how old the oldest
    /// pointer into it is. Those that were given up before can be used again (G4). Returns how
    /// many these are.
    pub(super) fn ages_known(&mut self) -> usize {
        self.seen = true;
        let waited = self.held.len();
        if waited > 0 {
            self.pending.extend(self.held.drain(..));
            self.signal.found_bucket();
        }
        waited
    }

    /// Memory for what [`Buckets::set_oldest`] takes.
    pub fn no_ages(&mut self) -> Vec<Generation> {
        let mut oldest = std::mem::take(&mut self.former_oldest);
        oldest.clear();
        oldest.reserve_exact(self.role.len());
        oldest
    }

    /// The present generations of these buckets: where a garbage collection pass starts from.
    pub fn generations(&self, buckets: Range<usize>) -> &[Generation] {
        &self.generations[buckets]
    }

    /// Garbage collection saw every pointer that is on the device: these are the oldest ones.
    pub fn set_oldest(&mut self, oldest: Vec<Generation>) {
        self.former_oldest = std::mem::replace(&mut self.oldest, oldest);
        self.aged = false;
        self.pending.extend(self.held.drain(..));
        self.signal.found_bucket();
    }

    /// Sets the distance that a pointer may be ahead, before any pointer is looked at.
    pub fn set_reach(&mut self, reach: Reach) {
        self.reach = reach;
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Work;
    use ubcache_format::{Geometry, PrioEntry, PrioSet};

    use super::*;
    use crate::rules::Rules;
    use crate::tuning::Generations;

    const COUNT: usize = 64;

    fn buckets() -> Buckets {
        let geometry = Geometry {
            set_magic: 1,
            bucket_sectors: 16,
            block_sectors: 8,
            buckets: COUNT as u32,
            first_bucket: 1,
            journal_buckets: 2,
        };
        let (tuning, work) = (Generations::default(), Work::default());
        let mut buckets = Buckets::new(geometry, tuning, Rules::default(), work);
        buckets.learn(&[PrioEntry { priority: 1, generation: Generation(100) }; COUNT]);
        buckets
    }

    fn note_pointer_into(buckets: &mut Buckets, bucket: BucketNr, generation: u8) {
        let offset = buckets.geometry.bucket_start(bucket);
        let generation = Generation(generation);
        buckets.note_pointer(Pointer { device: 0, offset, generation });
    }

    fn write_chain(buckets: &mut Buckets) {
        buckets.chain_begins();
        let mut set = PrioSet::new(&buckets.geometry);
        buckets.put_chain_entries(0..COUNT, &mut set);
        buckets.chain_durable();
        buckets.settle_pending(COUNT);
    }

    /// Bug: a bucket that was given up before the count was used again, although a leaf that was
    /// not counted yet had an old pointer into it. Fix: it waits for the count.
    #[test]
    fn bucket_given_up_before_the_count_waits_for_it() {
        let mut buckets = buckets();
        let (young, old) = (BucketNr(10), BucketNr(11));
        for bucket in [young, old] {
            buckets.set_metadata(bucket);
            buckets.retire_metadata(bucket);
        }
        write_chain(&mut buckets);
        assert!(!buckets.can_progress(), "no chain helps before the count");
        assert_eq!(buckets.free_len(), 0);
        note_pointer_into(&mut buckets, old, 21);
        assert_eq!(buckets.ages_known(), 2);
        write_chain(&mut buckets);
        assert_eq!((buckets.role(young), buckets.role(old)), (Role::Free, Role::Pending));
        assert!(buckets.has_aged());
    }

    /// Bug: a bucket that a run kept for its old pointers was free after the next start, as nothing
    /// live was in it. Fix: the start keeps it as well.
    #[test]
    fn empty_bucket_with_an_old_pointer_waits_after_a_start() {
        let mut buckets = buckets();
        let (young, old) = (BucketNr(10), BucketNr(11));
        note_pointer_into(&mut buckets, young, 21);
        note_pointer_into(&mut buckets, old, 20);
        buckets.ages_known();
        assert!(!buckets.give_up_unknown(young));
        assert!(buckets.give_up_unknown(old));
        write_chain(&mut buckets);
        assert_eq!((buckets.role(young), buckets.role(old)), (Role::Free, Role::Pending));
    }
}
