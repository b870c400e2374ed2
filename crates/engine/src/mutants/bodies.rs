//! Mutants whose wrong way needs code of its own. None of it is in the product.

use std::rc::Rc;

use ubcache_env::{Buf, Durability, Env, ForeignMemory, SectorRange, StreamId, VolumeError};
use ubcache_format::{
    BucketNr, JournalEntry, JournalSeq, Mark, Padding, SUPERBLOCK_SECTOR, Superblock,
};

use crate::alloc::buckets::{Buckets, Role};
use crate::errors::EngineError;
use crate::index::extent::Extent;
use crate::index::ghosts::Ghosts;
use crate::meter::Meter;
use crate::request::write::Payload;
use crate::rules::{Rule, Rules};
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// `failed-write-restores-key`: puts back what the write had removed.
    pub(crate) async fn restore(&self, before: Vec<Extent>) {
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
        let keys = self.key_range(range)?;
        let _request = self.begin_write().await?;
        self.write_keys(stream, keys, Payload::Foreign(data), fua).await
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
    pub(crate) fn give_up(&mut self, buckets: Vec<BucketNr>) {
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

/// `mark-not-bound`: the mark that the newest entry seems to have, even if it was carried into it.
pub(crate) fn mark_of_any_entry(newest: &JournalEntry, rules: Rules) -> Option<Mark> {
    match newest.padding {
        Padding::Other(bytes) if !rules.keeps(Rule::H1MarkBound) => Mark::claimed(&bytes),
        _ => None,
    }
}

/// `no-flush-at-attach`: without the flush before a superblock as well.
pub(crate) async fn write_superblock_unflushed<E: Env>(
    backing: &Meter<E>,
    superblock: &Superblock,
    what: &'static str,
) -> Result<(), EngineError> {
    let bytes = Buf::from_bytes(&superblock.encode()).into();
    let written = backing.write(SUPERBLOCK_SECTOR, bytes, Durability::Fua).await;
    written.map_err(EngineError::io(what))
}
