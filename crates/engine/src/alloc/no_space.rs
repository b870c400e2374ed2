//! Buckets and the space below them: asking the device for it, and putting aside what has none.

use std::ops::Bound;

use ubcache_env::local::join_all;
use ubcache_env::{Env, IoResult, Nanos, SectorRange};
use ubcache_format::{BucketNr, Geometry, Pointer};

use super::allocator::Allocator;
use super::buckets::{Buckets, Purpose, Role};
use super::space_below::TRIED_MIN;
use crate::rules::Rule;

/// Buckets are put aside for so long before they are tried again.
const ASIDE: Nanos = Nanos::from_secs(10);
/// Free buckets that are asked about together.
const ASKED_TOGETHER: usize = 64;
/// And so many times in a row.
const ROUNDS: usize = 16;

impl Buckets {
    /// Buckets without space, which nobody uses.
    pub fn aside_len(&self) -> usize {
        self.space.aside.len()
    }

    pub(super) fn has_space(&self, bucket: BucketNr) -> bool {
        self.space.has.contains(bucket)
    }

    /// The device has allocated it.
    pub fn note_space(&mut self, bucket: BucketNr) {
        self.space.has.insert(bucket);
        self.space.lacks.remove(&bucket);
    }

    /// The device takes back what it had allocated.
    pub(super) fn forget_space(&mut self, bucket: BucketNr) {
        self.space.has.remove(bucket);
    }

    /// A write was refused: no more data goes there, and it is put aside instead of becoming free.
    pub fn note_lack_of_space(&mut self, bucket: BucketNr) {
        self.space.has.remove(bucket);
        self.space.lacks.insert(bucket);
        self.space.tried = TRIED_MIN;
        self.signal.give();
    }

    /// Puts the bucket aside if it has no space, instead of freeing it; returns true if it did.
    pub(super) fn puts_aside(&mut self, bucket: BucketNr) -> bool {
        let lacks = self.space.lacks.remove(&bucket);
        if lacks {
            self.set_role(bucket, Role::Aside);
            self.space.aside.push_back(bucket);
        }
        lacks
    }

    /// Number of free buckets that should have space: the reserve of metadata, and what is kept for
    /// the next start.
    pub fn space_wanted(&self) -> usize {
        self.reserve(Purpose::Data) + self.restart_missing()
    }

    pub(super) fn room_missing(&self) -> usize {
        self.space_wanted().saturating_sub(self.free_with_space.len())
    }

    /// Free buckets to ask the device about, in order, if more of them are to have space.
    fn next_to_ask(&self, wanted: usize) -> Vec<BucketNr> {
        let missing = wanted.saturating_sub(self.free_with_space.len());
        let count = missing.min(ASKED_TOGETHER);
        match self.last_first {
            false => self.free.iter().take(count).copied().collect(),
            true => self.free.iter().rev().take(count).copied().collect(),
        }
    }

    /// The device was asked to allocate a free bucket. Somebody may have taken it meanwhile.
    fn asked(&mut self, bucket: BucketNr, has_space: bool) {
        let place = self.free.iter().position(|&other| other == bucket);
        match (place, has_space) {
            (Some(place), _) => {
                self.free.remove(place);
                if has_space {
                    self.note_space(bucket)
                } else {
                    self.note_lack_of_space(bucket)
                };
                self.set_free(bucket);
            }
            (None, true) => self.note_space(bucket),
            (None, false) => {}
        }
    }

    /// Buckets that lack space, nobody's or with data that was there before: what status says (N1).
    pub fn without_room(&self) -> usize {
        self.space.aside.len() + self.space.lacks.len()
    }

    /// The time at which buckets without space are tried again (N3), if there are any.
    pub(super) fn next_try(&self) -> Option<Nanos> {
        (self.without_room() > 0).then_some(self.space.try_at)
    }

    fn is_try_due(&self, now: Nanos) -> bool {
        self.without_room() > 0 && now >= self.space.try_at
    }

    /// Buckets to be tried again now: those put aside, which nobody has meanwhile, then some that
    /// are to be.
    fn take_to_try(&mut self, now: Nanos) -> (Vec<BucketNr>, Vec<BucketNr>) {
        if !self.is_try_due(now) {
            return (Vec::new(), Vec::new());
        }
        self.space.try_at = now.after(ASIDE);
        let count = self.space.tried.min(self.space.aside.len());
        let aside = self.space.aside.drain(..count).collect();
        let after = (Bound::Excluded(self.space.tried_to), Bound::Unbounded);
        let mut lacks: Vec<BucketNr> =
            self.space.lacks.range(after).take(self.space.tried - count).copied().collect();
        if lacks.is_empty() && count < self.space.tried {
            lacks.extend(self.space.lacks.iter().take(self.space.tried - count));
        }
        self.space.tried_to = lacks.last().copied().unwrap_or(self.space.tried_to);
        (aside, lacks)
    }

    /// Notes the device's answer for a bucket that was put aside.
    fn tried(&mut self, bucket: BucketNr, has_space: bool) {
        if has_space {
            self.note_space(bucket)
        } else {
            self.note_lack_of_space(bucket)
        };
        self.set_free(bucket);
    }
}

fn bucket_range(geometry: &Geometry, first: BucketNr, count: usize) -> SectorRange {
    SectorRange::new(
        geometry.bucket_start(first),
        u64::from(geometry.bucket_sectors) * count as u64,
    )
}

impl<E: Env> Allocator<E> {
    /// Has the device allocate a bucket. False: it has no space for it. Another error says nothing
    /// about space.
    async fn allocate_bucket(&self, bucket: BucketNr) -> bool {
        let done =
            self.context.cache.allocate(bucket_range(&self.context.geometry, bucket, 1)).await;
        !matches!(done, Err(error) if error.is_no_space())
    }

    /// Has the device allocate what is written whatever happens: everything up to the end of the
    /// journal, the prio chain, and the buckets that are promised to this start.
    pub async fn allocate_metadata(&self) {
        let count = self.context.geometry.first_bucket + self.context.geometry.journal_buckets;
        // Without it the journal would say so soon enough.
        drop(
            self.context
                .cache
                .allocate(bucket_range(&self.context.geometry, BucketNr(0), count as usize))
                .await,
        );
        let mut used = self.buckets.borrow().promised();
        used.extend(&self.chain.borrow().buckets);
        used.sort();
        self.allocate_runs(used, |buckets, bucket, has_space| {
            if has_space { buckets.note_space(bucket) } else { buckets.note_lack_of_space(bucket) }
        })
        .await;
    }

    /// N2: sees to it that so many free buckets have space, as far as there are any.
    pub async fn keep_space(&self, wanted: usize) {
        while self.keeps(Rule::N2SpaceForMetadata) && self.context.health.failure().is_none() {
            let asked = self.buckets.borrow().next_to_ask(wanted);
            if asked.is_empty() {
                return;
            }
            self.allocate_runs(asked, Buckets::asked).await;
        }
    }

    /// A part of that in the background, for as many as metadata may need and the next start will.
    pub(super) async fn find_space(&self) {
        for _ in 0..ROUNDS {
            let asked = {
                let buckets = self.buckets.borrow();
                buckets.next_to_ask(buckets.space_wanted())
            };
            if asked.is_empty() || !self.keeps(Rule::N2SpaceForMetadata) {
                return;
            }
            self.allocate_runs(asked, Buckets::asked).await;
        }
    }

    /// Asks the device for runs of neighbours at once; where a run does not fit, for each of them.
    async fn allocate_runs(
        &self,
        buckets: Vec<BucketNr>,
        mut note: impl FnMut(&mut Buckets, BucketNr, bool),
    ) {
        let runs: Vec<&[BucketNr]> =
            buckets.chunk_by(|left, right| left.0 + 1 == right.0).collect();
        let asked = runs.iter().map(|run| {
            self.context.cache.allocate(bucket_range(&self.context.geometry, run[0], run.len()))
        });
        let done: Vec<IoResult> = join_all(asked.collect::<Vec<_>>()).await;
        for (run, done) in runs.into_iter().zip(done) {
            let refused = matches!(done, Err(error) if error.is_no_space());
            for &bucket in run {
                let has_space = !refused || (run.len() > 1 && self.allocate_bucket(bucket).await);
                if !has_space {
                    self.context.env.mark("bucket_without_room");
                }
                note(&mut self.buckets.borrow_mut(), bucket, has_space);
            }
        }
    }

    /// Returns true if the device should be asked for space, for free buckets or for those put
    /// aside.
    pub(super) fn is_space_due(&self) -> bool {
        let buckets = self.buckets.borrow();
        let missing = buckets.room_missing() > 0 && !buckets.free.is_empty();
        buckets.is_try_due(self.context.env.now())
            || (missing && self.keeps(Rule::N2SpaceForMetadata))
    }

    /// N3: tries buckets again that were put aside, or are to be.
    pub(super) async fn try_again(&self) {
        let (aside, lacks) = self.buckets.borrow_mut().take_to_try(self.context.env.now());
        let count = aside.len() + lacks.len();
        let mut taken_back = 0;
        for bucket in aside {
            // The answer for the first one holds for the others as well.
            let has_space = taken_back >= 0 && self.allocate_bucket(bucket).await;
            taken_back = if has_space { taken_back + 1 } else { -1 };
            self.buckets.borrow_mut().tried(bucket, has_space);
        }
        for bucket in lacks {
            let has_space = taken_back >= 0 && self.allocate_bucket(bucket).await;
            taken_back = if has_space { taken_back + 1 } else { -1 };
            if has_space {
                self.buckets.borrow_mut().note_space(bucket);
            }
        }
        if taken_back > 0 {
            self.context.env.mark("bucket_taken_back");
            self.buckets.borrow_mut().space.tried = count * 2;
        }
    }

    /// A bucket for metadata that has space, as far as the device can say. None: there is no free
    /// bucket now.
    pub async fn take_with_room(&self, purpose: Purpose) -> Option<BucketNr> {
        // Buckets that lack space are no reserve for anybody.
        let reserve = self.buckets.borrow().reserve(purpose);
        self.keep_space(reserve + 1).await;
        self.buckets.borrow_mut().take(purpose)
    }

    /// Returns true if a node can be appended to; one that an older version wrote may end in a
    /// hole.
    pub async fn node_has_room(&self, pointer: Pointer) -> bool {
        let bucket = self.buckets.borrow().bucket_of(pointer);
        if self.buckets.borrow().has_space(bucket) || !self.keeps(Rule::N2SpaceForMetadata) {
            return true;
        }
        let has_space = self.allocate_bucket(bucket).await;
        if has_space {
            self.buckets.borrow_mut().note_space(bucket);
        } else {
            self.context.env.mark("bucket_without_room");
        }
        has_space
    }

    /// N1: data could not be written. For want of space that says nothing about the device: the
    /// bucket is put aside.
    pub fn note_data_error(&self, place: Pointer, error: &ubcache_env::IoError) {
        if !error.is_no_space() || !self.keeps(Rule::N1NoSpaceIsNoError) {
            return self.context.health.note_error("writing cached data", error);
        }
        self.context.env.mark("no_space_for_data");
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.bucket_of(place);
        self.open.borrow_mut().leave(&mut buckets, bucket);
        buckets.note_lack_of_space(bucket);
    }
}
