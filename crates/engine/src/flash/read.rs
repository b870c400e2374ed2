//! Reads, and the status of ranges.

use smallvec::SmallVec;
use ubcache_env::local::join_all;
use ubcache_env::{BlockStatus, Buf, Env, IoError, IoVec, SectorRange, VolumeError};
use ubcache_format::SECTOR_BYTES;

use super::FlashVolume;
use crate::alloc::bucket_pins::Pin;
use crate::index::extent::Extent;

/// Most extents that one status is made of.
const PARTS_MAX: usize = 1024;
/// Longest range of one status, so that few leaves of the index have to be read for it.
const STATUS_MAX: u64 = 64 << 11;

/// A part of a read.
enum Part {
    Data(Extent, Pin),
    /// A range without an extent, which reads as zeroes (Y1).
    Hole(SectorRange),
}

impl<E: Env> FlashVolume<E> {
    pub(super) async fn read_range(&self, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.index.load_for_read(self.inode, range).await?;
        let parts = self.look_up(range);
        let mut data = IoVec::new();
        for part in join_all(parts.into_iter().map(|part| self.read_part(part))).await {
            data.append(part?);
        }
        Ok(data)
    }

    /// R1, one step: what there is of the range, and pins that keep it.
    fn look_up(&self, range: SectorRange) -> SmallVec<[Part; 1]> {
        let live = self.index.live_extents(self.inode, range);
        let mut buckets = self.allocator.buckets_mut();
        let mut parts = SmallVec::new();
        let mut at = range.start;
        for extent in live {
            if extent.range.start > at {
                parts.push(Part::Hole(SectorRange::from_bounds(at, extent.range.start)));
            }
            at = extent.range.end;
            buckets.touch(extent.pointer, extent.range.sectors());
            let pin = buckets.pins().pin(buckets.bucket_of(extent.pointer));
            parts.push(Part::Data(extent, pin));
        }
        if at < range.end {
            parts.push(Part::Hole(SectorRange::from_bounds(at, range.end)));
        }
        parts
    }

    async fn read_part(&self, part: Part) -> Result<IoVec, VolumeError> {
        let (extent, _pin) = match part {
            Part::Data(extent, pin) => (extent, pin),
            Part::Hole(range) => {
                self.context.env.mark("flash_hole_read");
                return Ok(IoVec::zeroes((range.sectors() * SECTOR_BYTES) as usize));
            }
        };
        let (at, sectors) = (extent.pointer.offset, extent.range.sectors());
        let now = self.context.env.now();
        match self.context.cache.read_for_client(now, at, sectors).await {
            Ok(buf) => Ok(IoVec::from(Buf::freeze(buf))),
            // Says nothing about the data.
            Err(error @ IoError::NoMemory) => Err(VolumeError::Io(error)),
            // R4: nobody else has it.
            Err(error) => {
                self.context.note_cache_error("reading data of a flash-only volume", &error);
                self.context.env.mark("dirty_read_failed");
                Err(VolumeError::DirtyDataLost(extent.range))
            }
        }
    }

    /// The status of the range from its start, or of the first part of it.
    pub(super) async fn status_of(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        let range = SectorRange::new(range.start, range.sectors().min(STATUS_MAX));
        self.index.load_for_read(self.inode, range).await?;
        let (live, range) = self.index.first_live_extents(self.inode, range, PARTS_MAX);
        let data = BlockStatus { hole: false, cached: true, dirty: true };
        let hole = BlockStatus { hole: true, cached: false, dirty: false };
        let mut parts: Vec<(SectorRange, BlockStatus)> = Vec::new();
        let mut at = range.start;
        for extent in live {
            if extent.range.start > at {
                parts.push((SectorRange::from_bounds(at, extent.range.start), hole));
            }
            at = extent.range.end;
            match parts.last_mut() {
                Some((last, status)) if !status.hole => last.end = at,
                _ => parts.push((extent.range, data)),
            }
        }
        if at < range.end {
            parts.push((SectorRange::from_bounds(at, range.end), hole));
        }
        Ok(parts)
    }
}
