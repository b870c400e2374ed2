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
