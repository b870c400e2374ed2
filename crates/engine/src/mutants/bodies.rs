//! Mutants whose wrong way needs code of its own. None of it is in the product.

use std::rc::Rc;

use ubcache_env::{
    Buf, Durability, Env, ForeignMemory, IoResult, IoVec, Priority, SectorRange, StreamId,
    VolumeError,
};
use ubcache_format::{
    BucketNr, JournalEntry, JournalSeq, Padding, SUPERBLOCK_SECTOR, Stamp, Superblock,
};

use crate::alloc::buckets::{Buckets, Role};
use crate::alloc::open_buckets::Piece;
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;
use crate::index::extent::Extent;
use crate::index::ghosts::Ghosts;
use crate::request::read::fill_queue::Fills;
use crate::request::write::{Payload, ToCache};
use crate::rules::{Rule, Rules};
use crate::volume::CachedVolume;
use crate::volume::state::Transition;

impl<E: Env> CachedVolume<E> {
    /// `failed-write-restores-key`: puts back what the write had removed.
    pub(crate) async fn restore_removed(&self, before: Vec<Extent>) {
        for extent in before {
            if let Ok(mut room) = self.index.prepare_change(self.inode(), extent.range, 1).await
                && self.index.live_extents(self.inode(), extent.range).is_empty()
                && self.allocator.buckets().is_live(extent.pointer)
            {
                self.index.replace(
                    &mut room,
                    self.inode(),
                    extent.range,
                    Some((extent.pointer, false)),
                );
            }
        }
    }

    /// `stale-generation-served`: the extents of a range, whatever became of their buckets.
    pub(crate) fn with_stale_extents<L: Default + Extend<Extent>>(
        &self,
        range: SectorRange,
        live: L,
    ) -> L {
        if self.context.keeps(Rule::E1StaleNotServed) {
            return live;
        }
        let mut all = L::default();
        self.index.each_extent(self.inode(), range, |extent| all.extend([extent]));
        all
    }

    /// `foreign-memory-twice`: the write looks at the memory each time that it is written.
    pub(crate) async fn write_uncopied(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.opens().await;
        let keys = self.key_range(range)?;
        let _request = self.begin_write()?;
        let started = self.context.env.now();
        self.write_keys((stream, started), keys, Payload::Foreign(data), fua).await
    }
}

impl Buckets {
    /// `gc-frees-live-bucket`: data buckets in which nothing is live, open ones included.
    pub(crate) fn seemingly_empty(&self) -> Vec<BucketNr> {
        if self.rules.keeps(Rule::I10EmptyNow) {
            return Vec::new();
        }
        let data = |bucket| matches!(self.role(bucket), Role::Open | Role::Data);
        let buckets = (0..self.len() as u32).map(BucketNr);
        buckets.filter(|&bucket| data(bucket) && self.live(bucket) == 0).collect()
    }

    /// `gc-frees-live-bucket`: gives these up, whatever is in them by now.
    pub(crate) fn give_up_once_empty(&mut self, buckets: Vec<BucketNr>) {
        for bucket in buckets {
            if self.role(bucket) == Role::Data {
                self.invalidate(bucket);
            }
        }
    }
}

impl Ghosts {
    /// `late-replay-forgets-ghosts`: the newest one is that of this record.
    pub(crate) fn forget_newest(&mut self, seq: JournalSeq) {
        self.newest = seq;
    }
}

impl<E: Env> CachedVolume<E> {
    /// `failed-flush-answered-ok`: success, whatever came of it.
    pub(crate) fn answer_flush(&self, result: IoResult) -> IoResult {
        result.or_else(|error| match self.context.keeps(Rule::F2FailureIsAnswered) {
            true => Err(error),
            false => Ok(()),
        })
    }

    /// `bypass-drops-dirty`: a dirty key that goes as well takes as many records.
    pub(crate) fn records_with_dirty(&self, records: usize) -> usize {
        if self.context.keeps(Rule::W2KeepsDirty) { records } else { 2 * records }
    }

    /// `flush-joins-older`: a flush that is under way counts as begun later than this moment.
    pub(crate) fn join_older_flush(&self, started: u64) -> u64 {
        let joins = !self.context.keeps(Rule::F1FlushIsLater);
        started - u64::from(joins && self.coherence.is_flush_under_way())
    }

    /// `dirty-key-before-data`: K2, and then K1.
    pub(crate) async fn write_key_first(
        &self,
        range: SectorRange,
        pieces: &[Piece],
        data: IoVec,
        durability: Durability,
    ) -> Result<JournalSeq, ToCache> {
        let newest = self.insert_dirty(range, pieces).await?;
        match self.write_pieces(pieces, data, durability).await {
            true => Ok(newest),
            false => Err(ToCache::Refused),
        }
    }

    /// `passthrough-not-stamped`: the volume goes on without its cache, and no device says so.
    pub(crate) fn disown_in_memory(&self) {
        if !self.context.keeps(Rule::A4StampedFirst) {
            self.enter(Transition::MarkingStarts);
            self.enter(Transition::Disowned);
        }
    }

    /// `fills-without-limit`: no memory, whatever a fill takes.
    pub(crate) fn limited_bytes_of_fill(&self, bytes: u64) -> u64 {
        if self.context.keeps(Rule::S2FillsBounded) { bytes } else { 0 }
    }

    /// `fills-in-the-background-lane`: a task for each read that missed.
    pub(crate) fn fill_in_the_background(self: Rc<Self>, fills: Fills) {
        let env = self.context.env.clone();
        env.spawn(Priority::Background, async move {
            for fill in fills {
                self.fill(fill).await;
            }
        });
    }
}

/// `mark-not-bound`: the stamp that the newest entry seems to have, even if it was carried into it.
pub(crate) fn stamp_of_any_entry(newest: &JournalEntry, rules: Rules) -> Option<Stamp> {
    match newest.padding {
        Padding::Other(bytes) if !rules.keeps(Rule::H1StampBound) => Stamp::claimed(&bytes),
        _ => None,
    }
}

/// `no-flush-at-attach`: without the flush before a superblock as well.
pub(crate) async fn write_superblock_unflushed<E: Env>(
    backing: &CountedDevice<E>,
    superblock: &Superblock,
    what: &'static str,
) -> Result<(), EngineError> {
    let bytes = Buf::from_bytes(&superblock.encode()).into();
    let written = backing.write(SUPERBLOCK_SECTOR, bytes, Durability::Fua).await;
    written.map_err(EngineError::io(what))
}
