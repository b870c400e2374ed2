//! Reads that have to look elsewhere, or again (R4, R5).

use ubcache_env::local::join_all;
use ubcache_env::{Env, IoVec, SectorRange, Slice, VolumeError};

use super::miss::Part;
use crate::errors::EngineError;
use crate::index::extent::{Extent, removal_records};
use crate::rules::Rule;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// R4: what can't be read from the cache comes from the backing device if it is clean, and
    /// its key goes. If it is dirty, nobody else has it.
    pub(super) async fn read_around(
        &self,
        extent: Extent,
        published: bool,
    ) -> Result<Slice, VolumeError> {
        if extent.dirty {
            #[cfg(feature = "mutants")]
            if !self.context.keeps(Rule::R4DirtyReadFails) {
                return self.read_backing(extent.range).await;
            }
            self.context.env.mark("dirty_read_failed");
            return Err(VolumeError::DirtyDataLost(self.volume_range(extent.range)));
        }
        self.context.env.mark("clean_read_retried");
        self.count(|counters| counters.cache_read_retries += 1);
        // R5: since it was looked up it may have been written, and be discarded now.
        let _away = self.coherence.zeroes.keep_away(extent.range);
        let dirty = self.index.may_be_dirty(self.inode(), extent.range);
        if dirty && self.context.keeps(Rule::R5LooksUpAgain) {
            return Ok(Box::pin(self.read_again(extent.range)).await?.to_buf().freeze());
        }
        let slice = self.read_backing(extent.range).await?;
        if !published {
            self.coherence.drop_copies(extent.range);
        } else if let Ok(mut room) = self
            .index
            .prepare_change(self.inode(), extent.range, removal_records(extent.range))
            .await
            && self.index.is_current(&extent)
        {
            self.index.replace(&mut room, self.inode(), extent.range, None);
        }
        Ok(slice)
    }

    /// R5: what the backing device returned may be zeroes of a discard that has not taken effect,
    /// or what a failed flush left. While the zeroes are kept away, what misses can't be below
    /// dirty data.
    pub(super) async fn read_again(&self, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.context.env.mark("read_looks_up_again");
        let _away = self.coherence.zeroes.keep_away(range);
        loop {
            if let Err(error) = self.index.load_for_read(self.inode(), range).await {
                return self.read_without_index(range, error).await;
            }
            let failures = self.coherence.failed_flushes();
            let parts = self.look_up_parts(range, false);
            let missed = parts.iter().any(|part| matches!(part, Part::Miss { .. }));
            let mut data = IoVec::new();
            for (result, _) in join_all(parts.into_iter().map(|part| self.read_part(part))).await {
                data.push(result?);
            }
            if !(missed && self.is_covered_since(failures, range)) {
                return Ok(data);
            }
        }
    }

    /// R5: a flush of the backing device has failed since there had been so many, and some of the
    /// range is dirty, or may be: what was read there may be older than what the dirty data came
    /// over.
    pub(super) fn is_covered_since(&self, failures: u64, range: SectorRange) -> bool {
        self.coherence.failed_flushes() != failures && self.index.may_be_dirty(self.inode(), range)
    }

    /// The index can't be read. Without dirty data the backing device has everything.
    pub(super) async fn read_without_index(
        &self,
        range: SectorRange,
        error: EngineError,
    ) -> Result<IoVec, VolumeError> {
        self.context.env.mark("index_unreadable");
        let known_clean =
            self.allocator.buckets().is_counted() && self.index.dirty_sectors(self.inode()) == 0;
        if !known_clean {
            return Err(error.into());
        }
        self.read_backing(range).await.map(IoVec::from)
    }
}
