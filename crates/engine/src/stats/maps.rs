//! Maps: a volume or a cache device in equal cells, and what is in each of them.

use ubcache_env::SectorRange;
use ubcache_format::SECTOR_BYTES;

/// A part of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeCell {
    /// Bytes that the cache has, dirty ones included.
    pub cached_bytes: u64,
    /// Bytes that only the cache has.
    pub dirty_bytes: u64,
}

/// The ranges of a volume that the cache has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeMap {
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Size of a cell in bytes; the last one may be smaller.
    pub cell_bytes: u64,
    /// The cells, in the order of the volume.
    pub cells: Vec<RangeCell>,
}

impl RangeMap {
    /// An empty map of a volume, of no more than so many cells, whose size is a multiple of 4 KiB.
    pub(crate) fn new(size_bytes: u64, cells_max: u32) -> RangeMap {
        let cell_bytes = size_bytes.div_ceil(u64::from(cells_max.max(1))).max(1);
        let cell_bytes = cell_bytes.next_multiple_of(4096);
        let cells = vec![RangeCell::default(); size_bytes.div_ceil(cell_bytes) as usize];
        RangeMap { size_bytes, cell_bytes, cells }
    }

    /// Adds a range of the volume, which the cache has.
    pub(crate) fn add(&mut self, range: SectorRange, dirty: bool) {
        let (mut at, end) = (range.start.0 * SECTOR_BYTES, range.end.0 * SECTOR_BYTES);
        while at < end {
            let index = (at / self.cell_bytes) as usize;
            let Some(cell) = self.cells.get_mut(index) else { return };
            let next = end.min((index as u64 + 1) * self.cell_bytes);
            cell.cached_bytes += next - at;
            cell.dirty_bytes += if dirty { next - at } else { 0 };
            at = next;
        }
    }
}

/// Buckets of a part of a cache device, by what they hold.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct BucketCell {
    /// Nothing valid.
    pub free: u64,
    /// Data that the backing devices have as well.
    pub clean: u64,
    /// At least one sector that only the cache has.
    pub dirty: u64,
    /// Superblock, journal, prio chain or nodes of the index.
    pub metadata: u64,
    /// Nothing: the file system below has no room for them.
    pub put_aside: u64,
    /// Not known until the index has been counted.
    pub unknown: u64,
}

/// The buckets of a cache device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketMap {
    /// Number of buckets.
    pub buckets: u64,
    /// Size of a bucket in bytes.
    pub bucket_bytes: u64,
    /// Buckets of a cell; the last one may have fewer.
    pub cell_buckets: u64,
    /// The cells, in the order of the device.
    pub cells: Vec<BucketCell>,
}

impl BucketMap {
    /// An empty map of no more than so many cells.
    pub(crate) fn new(buckets: u64, bucket_bytes: u64, cells_max: u32) -> BucketMap {
        let cell_buckets = buckets.div_ceil(u64::from(cells_max.max(1))).max(1);
        let cells = vec![BucketCell::default(); buckets.div_ceil(cell_buckets) as usize];
        BucketMap { buckets, bucket_bytes, cell_buckets, cells }
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    #[test]
    fn a_range_is_counted_in_every_cell_that_it_touches() {
        let mut map = RangeMap::new(10 * 4096, 4);
        assert_eq!((map.cell_bytes, map.cells.len()), (3 * 4096, 4));
        map.add(SectorRange::new(Sector(23), 26), true);
        map.add(SectorRange::new(Sector(79), 1), false);
        let bytes = |cell: &RangeCell| (cell.cached_bytes, cell.dirty_bytes);
        let found: Vec<_> = map.cells.iter().map(bytes).collect();
        assert_eq!(found, [(512, 512), (24 * 512, 24 * 512), (512, 512), (512, 0)]);
        assert_eq!(RangeMap::new(512, 1000).cells.len(), 1);
        assert_eq!(BucketMap::new(513, 4096, 256).cells.len(), 171);
    }
}
