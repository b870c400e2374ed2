//! A cache device that becomes larger (A10).
//!
//! ```text
//!  clean stop:  longer prio chain ─▶ entry that names it ─▶ superblock with more buckets ─▶ next start
//!  a crash leaves the set    as it was,  as it was,            or larger
//! ```

use std::rc::Rc;

use ubcache_env::Env;
use ubcache_format::MAX_CACHE_SECTORS;

use super::resize::Resized;
use super::{CacheSet, Set};
use crate::errors::EngineError;
use crate::rules::Rule;

impl<E: Env> CacheSet<E> {
    /// Looks at the size of the cache device again: from the next clean stop on the set has all
    /// whole buckets of it.
    ///
    /// # Errors
    /// The device does not tell its size; it has no room for more buckets; the set has failed or is
    /// being stopped.
    pub async fn grow_at_stop(&self) -> Result<Resized, EngineError> {
        let set = &self.set;
        set.is_working()?;
        let sectors = set.context.cache.refresh_size().await;
        let sectors = sectors.map_err(EngineError::io("reading the size of the cache device"))?;
        let geometry = &set.context.geometry;
        if set.allocator.buckets().end() < geometry.buckets || set.shrinks.get() {
            return Err(EngineError::Resizing);
        }
        let all = sectors.min(MAX_CACHE_SECTORS) / u64::from(geometry.bucket_sectors);
        let buckets = u32::try_from(all).unwrap_or(u32::MAX - 1);
        if buckets <= geometry.buckets {
            let (bytes, buckets) = (geometry.bucket_bytes(), u64::from(geometry.buckets));
            return Err(EngineError::NoMoreBuckets { bytes: buckets * bytes, bucket: bytes });
        }
        set.grows_to.set(Some(buckets));
        let sectors = |buckets: u32| u64::from(buckets) * u64::from(geometry.bucket_sectors);
        Ok(Resized { before: sectors(geometry.buckets), after: sectors(buckets) })
    }
}

impl<E: Env> Set<E> {
    /// Writes a chain that has the new buckets, and the entry that names it. If there is no room
    /// for it, the set stays as it is.
    pub(super) async fn describe_new_buckets(&self) -> Result<(), EngineError> {
        let Some(buckets) = self.grows_to.get() else { return Ok(()) };
        if self.context.keeps(Rule::A10ChainFirst)
            && let Err(error) = self.allocator.write_longer_chain(buckets).await
        {
            self.grows_to.set(None);
            return Err(error);
        }
        Ok(())
    }

    /// Everything else is durable: the superblock counts the new buckets.
    pub(super) async fn count_new_buckets(self: &Rc<Self>) -> Result<(), EngineError> {
        let Some(buckets) = self.grows_to.get() else { return Ok(()) };
        {
            let mut superblock = self.superblock.borrow_mut();
            superblock.nbuckets = buckets;
            superblock.seq += 1;
            superblock.sign();
        }
        self.write_cache_superblock().await?;
        self.context.env.mark("cache_grown");
        Ok(())
    }
}
