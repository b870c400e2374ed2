//! The map of a volume: what the cache has of each part of it.

use ubcache_env::{Env, SectorRange};

use crate::errors::EngineError;
use crate::index::extent::Extent;
use crate::stats::maps::RangeMap;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// Counts what the cache has of the volume, in no more than so many cells. Reads every leaf of
    /// the volume that is not in memory, one at a time (S1): what is written meanwhile may be in it
    /// or not.
    ///
    /// # Errors
    /// A leaf can't be read, or the set is being stopped.
    pub async fn range_map(&self, cells_max: u32) -> Result<RangeMap, EngineError> {
        let whole = self.all_keys();
        let mut map = RangeMap::new(whole.bytes(), cells_max);
        let mut at = whole.start;
        while at < whole.end && self.lifecycle.uses_cache() {
            // Others wait for the end of a step at most.
            self.opens().await;
            let _step = self.begin().map_err(|_| EngineError::Stopping)?;
            let (extents, next) = self.index.extents_of_leaf((self.inode(), at)).await?;
            let end = next.map_or(whole.end, |(_, end)| end.min(whole.end));
            let part = SectorRange::from_bounds(at, end);
            at = end;
            let buckets = self.allocator.buckets();
            let live = extents.into_iter().filter(|extent| buckets.is_live(extent.pointer));
            let live: Vec<Extent> = live.collect();
            let copies = self.coherence.copies_over(part);
            self.context.env.work().add(live.len() + copies.len());
            for extent in &live {
                let range = extent.range.intersect(&part);
                map.add(self.volume_range(range), extent.dirty);
            }
            // Unpublished copies are newer than what the index has, and clean.
            for (copy, _) in copies {
                for gap in gaps(copy, &live) {
                    map.add(self.volume_range(gap), false);
                }
            }
        }
        Ok(map)
    }
}

/// The parts of a range that no extent has. The extents are in order.
fn gaps(range: SectorRange, extents: &[Extent]) -> Vec<SectorRange> {
    let first = extents.partition_point(|extent| extent.range.end <= range.start);
    let over = extents[first..].iter().take_while(|extent| extent.range.start < range.end);
    let mut at = range.start;
    let mut gaps = Vec::new();
    for extent in over {
        if at < extent.range.start {
            gaps.push(SectorRange::from_bounds(at, extent.range.start));
        }
        at = extent.range.end;
    }
    if at < range.end {
        gaps.push(SectorRange::from_bounds(at, range.end));
    }
    gaps
}
