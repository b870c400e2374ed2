//! Buckets and the room below them: asking the device for it, and putting aside what has none.

use std::ops::Bound;

use ubcache_env::local::join_all;
use ubcache_env::{Env, IoResult, Nanos, SectorRange};
use ubcache_format::{BucketNr, Geometry, Pointer};

use super::allocator::Allocator;
use super::buckets::{Buckets, Purpose, Role};
use super::room::TRIED_MIN;
use crate::rules::Rule;

/// Buckets are put aside for so long before they are tried again.
const ASIDE: Nanos = Nanos::from_secs(10);
/// Free buckets that are asked about together.
const ASKED_TOGETHER: usize = 64;
/// And so many times in a row.
const ROUNDS: usize = 16;

impl Buckets {
    /// Buckets without room, which nobody uses.
    pub fn aside_len(&self) -> usize {
        self.room.aside.len()
    }

    pub(super) fn has_room(&self, bucket: BucketNr) -> bool {
        self.room.has.contains(bucket)
    }

    /// The device has allocated it.
    pub fn note_room(&mut self, bucket: BucketNr) {
        self.room.has.insert(bucket);
        self.room.lacks.remove(&bucket);
    }

    /// The device takes back what it had allocated.
    pub(super) fn forget_room(&mut self, bucket: BucketNr) {
        self.room.has.remove(bucket);
    }

    /// A write was refused: no more data goes there, and it is put aside instead of becoming free.
    pub fn note_lack_of_room(&mut self, bucket: BucketNr) {
        self.room.has.remove(bucket);
        self.room.lacks.insert(bucket);
        self.room.tried = TRIED_MIN;
    }

    /// Puts the bucket aside if it has no room, instead of freeing it; returns true if it did.
    pub(super) fn puts_aside(&mut self, bucket: BucketNr) -> bool {
        let lacks = self.room.lacks.remove(&bucket);
        if lacks {
            self.set_role(bucket, Role::Aside);
            self.room.aside.push_back(bucket);
        }
        lacks
    }

    /// Number of free buckets that should have room: the reserve of metadata, and what is kept for
    /// the next start.
    pub fn room_wanted(&self) -> usize {
        self.reserve(Purpose::Data) + self.restart_missing()
    }

    fn room_missing(&self) -> usize {
        self.room_wanted().saturating_sub(self.free_with_room.len())
    }

    /// Free buckets to ask the device about, in order, if more of them are to have room.
    fn next_to_ask(&self, wanted: usize) -> Vec<BucketNr> {
        let missing = wanted.saturating_sub(self.free_with_room.len());
        self.free.iter().take(missing.min(ASKED_TOGETHER)).copied().collect()
    }

    /// The device was asked to allocate a free bucket. Somebody may have taken it meanwhile.
    fn asked(&mut self, bucket: BucketNr, has_room: bool) {
        let place = self.free.iter().position(|&other| other == bucket);
        match (place, has_room) {
            (Some(place), _) => {
                self.free.remove(place);
                if has_room {
                    self.note_room(bucket)
                } else {
                    self.note_lack_of_room(bucket)
                };
                self.set_free(bucket);
            }
            (None, true) => self.note_room(bucket),
            (None, false) => {}
        }
    }

    /// Buckets that lack room, nobody's or with data that was there before: what status says (N1).
    pub fn without_room(&self) -> usize {
        self.room.aside.len() + self.room.lacks.len()
    }

    fn is_try_due(&self, now: Nanos) -> bool {
        self.without_room() > 0 && now >= self.room.try_at
    }

    /// Buckets to be tried again now: those put aside, which nobody has meanwhile, then some that
    /// are to be.
    fn take_to_try(&mut self, now: Nanos) -> (Vec<BucketNr>, Vec<BucketNr>) {
        if !self.is_try_due(now) {
            return (Vec::new(), Vec::new());
        }
        self.room.try_at = now.after(ASIDE);
        let count = self.room.tried.min(self.room.aside.len());
        let aside = self.room.aside.drain(..count).collect();
        let after = (Bound::Excluded(self.room.tried_to), Bound::Unbounded);
        let mut lacks: Vec<BucketNr> =
            self.room.lacks.range(after).take(self.room.tried - count).copied().collect();
        if lacks.is_empty() && count < self.room.tried {
            lacks.extend(self.room.lacks.iter().take(self.room.tried - count));
        }
        self.room.tried_to = lacks.last().copied().unwrap_or(self.room.tried_to);
        (aside, lacks)
    }

    /// Notes the device's answer for a bucket that was put aside.
    fn tried(&mut self, bucket: BucketNr, has_room: bool) {
        if has_room {
            self.note_room(bucket)
        } else {
            self.note_lack_of_room(bucket)
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
    /// Has the device allocate a bucket. False: it has no room for it. Another error says nothing
    /// about room.
    async fn allocate_bucket(&self, bucket: BucketNr) -> bool {
        let done =
            self.context.cache.allocate(bucket_range(&self.context.geometry, bucket, 1)).await;
        !matches!(done, Err(error) if error.is_no_space())
    }

    /// Has the device allocate what is written whatever happens: everything up to the end of the
    /// journal, the prio chain, and the buckets that are promised to this start.
    pub async fn allocate_metadata(&self) {
        if !self.keeps(Rule::N2RoomForMetadata) {
            return;
        }
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
        self.allocate_runs(used, |buckets, bucket, has_room| {
            if has_room { buckets.note_room(bucket) } else { buckets.note_lack_of_room(bucket) }
        })
        .await;
    }

    /// N2: sees to it that so many free buckets have room, as far as there are any.
    pub async fn keep_room(&self, wanted: usize) {
        if !self.keeps(Rule::N2RoomForMetadata) {
            return;
        }
        while self.context.health.failure().is_none() {
            let asked = self.buckets.borrow().next_to_ask(wanted);
            if asked.is_empty() {
                return;
            }
            self.allocate_runs(asked, Buckets::asked).await;
        }
    }

    /// A part of that in the background, for as many as metadata may need and the next start will.
    pub(super) async fn find_room(&self) {
        for _ in 0..ROUNDS {
            let asked = {
                let buckets = self.buckets.borrow();
                buckets.next_to_ask(buckets.room_wanted())
            };
            if asked.is_empty() || !self.keeps(Rule::N2RoomForMetadata) {
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
                let has_room = !refused || (run.len() > 1 && self.allocate_bucket(bucket).await);
                if !has_room {
                    self.context.env.mark("bucket_without_room");
                }
                note(&mut self.buckets.borrow_mut(), bucket, has_room);
            }
        }
    }

    /// Returns true if the device should be asked for room, for free buckets or for those put
    /// aside.
    pub(super) fn is_room_due(&self) -> bool {
        let buckets = self.buckets.borrow();
        let missing = buckets.room_missing() > 0 && !buckets.free.is_empty();
        buckets.is_try_due(self.context.env.now())
            || (missing && self.keeps(Rule::N2RoomForMetadata))
    }

    /// N3: tries buckets again that were put aside, or are to be.
    pub(super) async fn try_again(&self) {
        let (aside, lacks) = self.buckets.borrow_mut().take_to_try(self.context.env.now());
        let count = aside.len() + lacks.len();
        let mut taken_back = 0;
        for bucket in aside {
            // The answer for the first one holds for the others as well.
            let has_room = taken_back >= 0 && self.allocate_bucket(bucket).await;
            taken_back = if has_room { taken_back + 1 } else { -1 };
            self.buckets.borrow_mut().tried(bucket, has_room);
        }
        for bucket in lacks {
            let has_room = taken_back >= 0 && self.allocate_bucket(bucket).await;
            taken_back = if has_room { taken_back + 1 } else { -1 };
            if has_room {
                self.buckets.borrow_mut().note_room(bucket);
            }
        }
        if taken_back > 0 {
            self.context.env.mark("bucket_taken_back");
            self.buckets.borrow_mut().room.tried = count * 2;
        }
    }

    /// A bucket for metadata that has room, as far as the device can say. None: there is no free
    /// bucket now.
    pub async fn take_with_room(&self, purpose: Purpose) -> Option<BucketNr> {
        // Buckets that lack room are no reserve for anybody.
        let reserve = self.buckets.borrow().reserve(purpose);
        self.keep_room(reserve + 1).await;
        self.buckets.borrow_mut().take(purpose)
    }

    /// Returns true if a node can be appended to; one that an older version wrote may end in a
    /// hole.
    pub async fn node_has_room(&self, pointer: Pointer) -> bool {
        let bucket = self.buckets.borrow().bucket_of(pointer);
        if self.buckets.borrow().has_room(bucket) || !self.keeps(Rule::N2RoomForMetadata) {
            return true;
        }
        let has_room = self.allocate_bucket(bucket).await;
        if has_room {
            self.buckets.borrow_mut().note_room(bucket);
        } else {
            self.context.env.mark("bucket_without_room");
        }
        has_room
    }

    /// N1: data could not be written. For want of room that says nothing about the device: the
    /// bucket is put aside.
    pub fn note_data_error(&self, place: Pointer, error: &ubcache_env::IoError) {
        if !error.is_no_space() || !self.keeps(Rule::N1NoSpaceIsNoError) {
            return self.context.health.note_error("writing cached data", error);
        }
        self.context.env.mark("no_space_for_data");
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.bucket_of(place);
        self.open.borrow_mut().leave(&mut buckets, bucket);
        buckets.note_lack_of_room(bucket);
    }
}
