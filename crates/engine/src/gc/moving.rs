//! Moving live data out of sparse buckets, so that they become free as a whole.

use std::collections::BTreeSet;

use ubcache_env::{Durability, Env};
use ubcache_format::BucketNr;

use super::Gc;
use crate::alloc::pace::Pace;
use crate::index::extent::Extent;
use crate::replacement::data_class::Class;
use crate::rules::Rule;

/// A bucket is worth emptying when at most this part of it is live.
const SPARSE_PERCENT: u64 = 50;
/// The same when buckets are short for data that is never evicted.
const SPARSE_FOR_FLASH_PERCENT: u64 = 85;
/// Buckets emptied in one pass at the most.
const BUCKETS_MAX: usize = 256;

impl<E: Env> Gc<E> {
    /// The buckets that a pass empties. Only buckets with dirty data: what is clean is evicted as
    /// a whole, dirty sectors would keep their bucket for long.
    pub(super) async fn choose_sparse(&self) -> BTreeSet<BucketNr> {
        if !self.context.settings().copy_gc_enabled {
            return BTreeSet::new();
        }
        let percent = match self.compacts.take() {
            true => SPARSE_FOR_FLASH_PERCENT,
            false => SPARSE_PERCENT,
        };
        let mut sparse = self.allocator.buckets().sparse(percent, BUCKETS_MAX);
        self.allocator
            .for_all_buckets(1, |part| self.allocator.buckets().look_for_sparse(&mut sparse, part))
            .await;
        sparse.buckets().collect()
    }

    /// Copies extents to other buckets and points their keys there, if they are still the same.
    pub(super) async fn move_extents(&self, extents: Vec<Extent>) {
        for extent in extents {
            self.move_extent(extent).await;
        }
    }

    async fn move_extent(&self, extent: Extent) {
        let pin = {
            let buckets = self.allocator.buckets();
            if !buckets.is_live(extent.pointer) {
                return;
            }
            buckets.pins().pin(extent.pointer.bucket(self.context.geometry.bucket_sectors))
        };
        let class = if extent.dirty { Class::MovedDirty } else { Class::MovedClean };
        // The extent's own alignment is kept where it is that of a 4 KiB block.
        let whole =
            extent.range.start.0.is_multiple_of(8) && extent.range.sectors().is_multiple_of(8);
        let unit = if whole { 8 } else { 1 };
        let sectors = extent.range.sectors();
        // A12: the cache can't become smaller without it.
        let waits = self.allocator.buckets().waits_for_room();
        let pieces = match waits {
            true => self.allocator.allocate(class, sectors, unit).await,
            false => self.allocator.try_allocate(class, sectors, unit),
        };
        let Some(pieces) = pieces else {
            self.context.env.mark("move_without_room");
            if waits {
                self.allocator.buckets_mut().set_pace(Pace::Tries);
            }
            return;
        };
        let Ok(data) = self.context.cache.read(extent.pointer.offset, extent.range.sectors()).await
        else {
            return;
        };
        let data = ubcache_env::IoVec::from(data);
        let mut at = 0;
        for piece in &pieces {
            let part = data.cut_sectors(at, piece.sectors);
            at += piece.sectors;
            let block = u64::from(self.context.geometry.block_sectors);
            let rest = piece.sectors.next_multiple_of(block) - piece.sectors;
            let mut part = part;
            part.append(ubcache_env::IoVec::zeroes((rest * ubcache_format::SECTOR_BYTES) as usize));
            if let Err(error) =
                self.context.cache.write(piece.pointer.offset, part, Durability::Volatile).await
            {
                if error.is_no_space() {
                    self.allocator.note_data_error(piece.pointer, &error);
                }
                return;
            }
        }
        let Ok(mut room) =
            self.index.prepare_change(extent.inode, extent.range, pieces.len()).await
        else {
            return;
        };
        if self.context.keeps(Rule::M1MoveIfUnchanged) && !self.index.is_current(&extent) {
            self.context.env.mark("move_overtaken");
            return;
        }
        // One step. The old bucket's generation becomes durable after this record, with the prio
        // chain that frees it, so a lost move is found at the old place.
        let mut start = extent.range.start;
        for piece in &pieces {
            let part = ubcache_env::SectorRange::new(start, piece.sectors);
            start = part.end;
            self.index.replace(&mut room, extent.inode, part, Some((piece.pointer, extent.dirty)));
        }
        self.allocator.buckets_mut().moved_away(extent.pointer, extent.range.sectors());
        self.context.env.mark("extent_moved");
        drop(pin);
    }
}
