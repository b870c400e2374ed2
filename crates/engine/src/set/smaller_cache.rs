//! A cache that becomes smaller while its set runs (A12).
//!
//! ```text
//!  begin_shrink   no bucket beyond the new end is given out any more
//!      │
//!     run         what is there is dropped, moved or written anew below ◀─ until nothing is left
//!      │          leaves and interior nodes: written anew, without stale pointers to it
//!      │          journal: no entry that a start reads has a pointer to it
//!      ├───────── superblock with fewer buckets: the switch
//!      ▼          nothing beyond the end is read or written any more
//! ```
//!
//! A crash leaves the set as it was, or smaller. The prio chain has entries for all former buckets
//! until the next start; it lies below the end, and a start reads as much of it as there are
//! buckets.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::{Env, Nanos};
use ubcache_format::MIN_BUCKETS;

use super::resize::Resized;
use super::{CacheSet, Set};
use crate::alloc::evacuation::Beyond;
use crate::alloc::pace::Pace;
use crate::errors::{EngineError, ShrinkEnd};
use crate::index::extent::{FIRST, Position};
use crate::rules::Rule;

/// Rounds in a row that may bring nothing.
const IDLE_ROUNDS_MAX: u32 = 100;
/// Rounds in a row in which nodes that are written anew find no bucket.
const FULL_ROUNDS_MAX: u32 = 10;
/// Pause after such a round: readers and writes that hold a bucket end meanwhile.
const PAUSE: Nanos = Nanos::from_millis(100);

/// Progress of a cache that becomes smaller.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ShrinkProgress {
    /// Size of the cache afterwards, in bytes.
    pub after_bytes: u64,
    /// Bytes beyond the new end.
    pub total_bytes: u64,
    /// Bytes beyond the new end that are not evacuated yet. With 0 the index is being written anew.
    pub left_bytes: u64,
}

/// A cache that is becoming smaller. Dropped before it is done, the cache keeps its size, and the
/// buckets beyond the end are not used before the next start.
pub struct CacheShrink<E: Env> {
    set: Rc<Set<E>>,
    before: u32,
    after: u32,
    cancelled: Cell<bool>,
    /// Leaves before this were written anew, without pointers beyond the end.
    anew_to: Cell<Position>,
    /// The superblock is being written, or was.
    switches: Cell<bool>,
}

impl<E: Env> CacheSet<E> {
    /// Begins to make the cache smaller: to so many bytes, rounded down to whole buckets.
    ///
    /// # Errors
    /// The cache is not larger than that, or is being resized already; it would be too small for
    /// the format, or for what can't be dropped; the set has failed or is being stopped.
    pub async fn begin_shrink(&self, bytes: u64) -> Result<CacheShrink<E>, EngineError> {
        let set = &self.set;
        set.is_working()?;
        set.wait_until_counted().await?;
        let geometry = &set.context.geometry;
        let (before, end) = (set.superblock.borrow().nbuckets, set.allocator.buckets().end());
        let bucket = geometry.bucket_bytes();
        let after = u32::try_from(bytes / bucket).unwrap_or(u32::MAX);
        // Behind an attempt whose superblock could not be written nothing is used.
        let was_evacuated = (end..before).contains(&after) && after > end;
        if set.shrinks.get() || set.grows_to.get().is_some() || was_evacuated {
            return Err(EngineError::Resizing);
        }
        if after >= before {
            let before = u64::from(before) * bucket;
            return Err(EngineError::NotSmaller { before, after: bytes });
        }
        let least = MIN_BUCKETS.max(geometry.first_bucket + geometry.journal_buckets + 1);
        if after < least {
            let least = u64::from(least) * bucket;
            return Err(EngineError::CacheTooSmall { found: bytes, least });
        }
        set.shrinks.set(true);
        let fit = set.allocator.fit(after).await;
        let error = match set.is_working() {
            Ok(()) if fit.needed > fit.spare => {
                let (needed, room) = (fit.needed * bucket, fit.spare * bucket);
                Some(EngineError::DoesNotFit { needed, room })
            }
            other => other.err(),
        };
        if let Some(error) = error {
            set.shrinks.set(false);
            return Err(error);
        }
        // The next chain, and nodes, find buckets before the end.
        match set.allocator.free_below(after).await {
            Ok(0) => {}
            other => {
                set.shrinks.set(false);
                let needed = other?;
                return Err(EngineError::DoesNotFit { needed: needed * bucket, room: 0 });
            }
        }
        set.allocator.close_beyond(after).await;
        Ok(CacheShrink {
            set: set.clone(),
            before,
            after,
            cancelled: Cell::new(false),
            anew_to: Cell::new(FIRST),
            switches: Cell::new(false),
        })
    }
}

impl<E: Env> CacheShrink<E> {
    /// Evacuates what is beyond the new end, and switches. Afterwards the device may be cut.
    ///
    /// # Errors
    /// It was cancelled, or can't be brought to its end; the set has failed or is being stopped.
    /// The cache keeps its size then, unless the superblock could not be written: then a start
    /// finds out which one it has.
    pub async fn run(&self) -> Result<Resized, EngineError> {
        let set = &self.set;
        let done = self.evacuate_and_switch().await;
        if done.is_err() && !self.switches.get() {
            self.stay().await;
        }
        set.shrinks.set(false);
        done?;
        let bucket = u64::from(set.context.geometry.bucket_sectors);
        let [before, after] = [self.before, self.after].map(|buckets| u64::from(buckets) * bucket);
        Ok(Resized { before, after })
    }

    /// Has it end without a switch, if it is not too late.
    pub fn give_up(&self) {
        self.cancelled.set(true);
        self.set.allocator.buckets_mut().set_pace(Pace::Ended);
    }

    /// Shows how far it is.
    pub fn progress(&self) -> ShrinkProgress {
        let bucket = self.set.context.geometry.bucket_bytes();
        let left = self.set.allocator.buckets().left_beyond() as u64;
        ShrinkProgress {
            after_bytes: u64::from(self.after) * bucket,
            total_bytes: u64::from(self.before - self.after) * bucket,
            left_bytes: left * bucket,
        }
    }

    fn goes_on(&self) -> Result<(), EngineError> {
        self.set.is_working()?;
        match self.cancelled.get() {
            true => Err(EngineError::ShrinkEnded(ShrinkEnd::Cancelled)),
            false => Ok(()),
        }
    }

    async fn evacuate_and_switch(&self) -> Result<(), EngineError> {
        let set = &self.set;
        let (mut before, mut idle) = (None, 0);
        loop {
            self.goes_on()?;
            let beyond = self.evacuate().await?;
            let done = beyond.buckets == 0 || !set.context.keeps(Rule::A12EvacuatedFirst);
            if done && self.forget_beyond().await? {
                return self.switch().await;
            }
            idle = if before == Some(beyond) { idle + 1 } else { 0 };
            before = Some(beyond);
            let most = if done { FULL_ROUNDS_MAX } else { IDLE_ROUNDS_MAX };
            if idle >= most {
                return Err(EngineError::ShrinkEnded(self.obstacle(beyond)));
            }
            if idle > 0 {
                // Copies that wait for a flush of the backing device hold their buckets.
                set.attached().iter().for_each(|volume| volume.drop_unpublished());
                set.context.env.sleep(PAUSE).await;
            }
        }
    }

    fn obstacle(&self, beyond: Beyond) -> ShrinkEnd {
        let geometry = &self.set.context.geometry;
        let dirty = beyond.dirty * ubcache_format::SECTOR_BYTES;
        // With nothing left, a node that was to be written anew found no bucket.
        let nodes = if beyond.buckets == 0 { 1 } else { beyond.metadata };
        let metadata = nodes * geometry.bucket_bytes();
        match dirty + metadata {
            0 => ShrinkEnd::InUse(beyond.buckets * geometry.bucket_bytes()),
            _ => ShrinkEnd::NoRoom { dirty, metadata },
        }
    }

    /// One round; counts what is left.
    async fn evacuate(&self) -> Result<Beyond, EngineError> {
        let set = &self.set;
        let skip_no_space = |done| match done {
            Err(EngineError::NoSpace(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        };
        if !self.cancelled.get() {
            set.allocator.buckets_mut().set_pace(Pace::Waits);
        }
        set.allocator.give_up_beyond().await;
        let Beyond { dirty, metadata, aged, .. } = set.allocator.look_beyond().await;
        if dirty + metadata + aged > 0 {
            skip_no_space(set.gc.collect_garbage().await)?;
            skip_no_space(self.move_volume_table().await)?;
            self.goes_on()?;
            // Buckets that were emptied by that.
            set.allocator.give_up_beyond().await;
        }
        skip_no_space(set.allocator.settle_beyond().await)?;
        Ok(set.allocator.look_beyond().await)
    }

    async fn move_volume_table(&self) -> Result<(), EngineError> {
        let set = &self.set;
        let _one = set.attach_lock.lock().await;
        let beyond = {
            let (table, buckets) = (set.journal.volume_table(), set.allocator.buckets());
            table.pointer().is_some_and(|pointer| buckets.is_beyond(buckets.bucket_of(pointer)))
        };
        if !beyond || set.context.is_ending() {
            return Ok(());
        }
        set.context.env.mark("volume_table_moved_below");
        let table = set.table.entries().clone();
        set.table.save(table).await
    }

    /// False: there was no bucket for a node.
    async fn forget_beyond(&self) -> Result<bool, EngineError> {
        let forgotten = match self.set.context.keeps(Rule::A12NodesWrittenAnew) {
            true => self.set.gc.forget_beyond(&self.anew_to, || self.goes_on()).await,
            false => Ok(()),
        };
        match forgotten {
            Ok(()) => Ok(true),
            Err(EngineError::NoSpace(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn switch(&self) -> Result<(), EngineError> {
        let set = &self.set;
        // A stop waits for this, or has begun.
        let _one = set.attach_lock.lock().await;
        self.goes_on()?;
        self.switches.set(true);
        // Its number stays: by that the next start knows what is in kept memory (V3).
        let count = |buckets| {
            let mut superblock = set.superblock.borrow_mut();
            superblock.nbuckets = buckets;
            superblock.sign();
        };
        count(self.after);
        if let Err(error) = set.write_cache_superblock().await {
            // The device may have either, and each is whole. The next attempt writes it again.
            count(self.before);
            return Err(error);
        }
        set.context.env.mark("cache_shrunk");
        Ok(())
    }

    /// The cache keeps its size. Without a chain that promises nothing beyond the end, for which
    /// there may be no bucket before it, those that one promises stay out of use (V2).
    async fn stay(&self) {
        let set = &self.set;
        if set.is_working().is_ok() {
            let has_new_chain = set.allocator.write_prios().await.is_ok();
            set.allocator.open_beyond(self.before, has_new_chain).await;
            set.context.env.mark("cache_kept_its_size");
        }
    }
}
