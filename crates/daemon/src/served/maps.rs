//! Maps of volumes and of the cache device, as the control API gives them.

use serde::{Deserialize, Serialize};
use ubcache_engine::stats::maps::{BucketMap, RangeMap};
use utoipa::ToSchema;

use super::daemon::Daemon;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};

/// Cells of a map that is asked for without a number.
pub const CELLS: u32 = 512;
/// Most cells of a map.
pub const CELLS_MAX: u32 = 4096;

/// The ranges of a volume that the cache has.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VolumeMapReport {
    /// Name of the export.
    pub volume: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Size of a cell; the last one may be smaller.
    pub cell_bytes: u64,
    /// Bytes that the cache has, of all cells together.
    pub cached_bytes: u64,
    /// Bytes that only the cache has, of all cells together.
    pub dirty_bytes: u64,
    /// The cells, in the order of the volume.
    pub cells: Vec<RangeCellReport>,
}

/// A part of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RangeCellReport {
    /// Bytes that the cache has, dirty ones included.
    pub cached_bytes: u64,
    /// Bytes that only the cache has.
    pub dirty_bytes: u64,
}

/// The buckets of a cache device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BucketsReport {
    /// UUID of the set.
    pub set: String,
    /// Number of buckets.
    pub buckets: u64,
    /// Size of a bucket.
    pub bucket_bytes: u64,
    /// Buckets of a cell; the last one may have fewer.
    pub cell_buckets: u64,
    /// The buckets of all cells together.
    pub all: BucketCellReport,
    /// The cells, in the order of the device.
    pub cells: Vec<BucketCellReport>,
}

/// Buckets of a part of a cache device, by what they hold.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BucketCellReport {
    /// Nothing valid.
    pub free: u64,
    /// Data that the backing devices have as well.
    pub clean: u64,
    /// At least one sector that only the cache has.
    pub dirty: u64,
    /// Superblock, journal, generations of buckets, or nodes of the index.
    pub metadata: u64,
    /// Nothing: the file system below has no room for them.
    pub put_aside: u64,
    /// Not known until the index has been counted.
    pub unknown: u64,
}

impl VolumeMapReport {
    fn new(volume: String, map: RangeMap) -> VolumeMapReport {
        let cells = map.cells.iter();
        VolumeMapReport {
            volume,
            size_bytes: map.size_bytes,
            cell_bytes: map.cell_bytes,
            cached_bytes: cells.clone().map(|cell| cell.cached_bytes).sum(),
            dirty_bytes: cells.clone().map(|cell| cell.dirty_bytes).sum(),
            cells: cells
                .map(|cell| RangeCellReport {
                    cached_bytes: cell.cached_bytes,
                    dirty_bytes: cell.dirty_bytes,
                })
                .collect(),
        }
    }
}

impl BucketsReport {
    fn new(set: String, map: &BucketMap) -> BucketsReport {
        let cells: Vec<BucketCellReport> = map
            .cells
            .iter()
            .map(|cell| BucketCellReport {
                free: cell.free,
                clean: cell.clean,
                dirty: cell.dirty,
                metadata: cell.metadata,
                put_aside: cell.put_aside,
                unknown: cell.unknown,
            })
            .collect();
        let sum = |take: fn(&BucketCellReport) -> u64| cells.iter().map(take).sum();
        let all = BucketCellReport {
            free: sum(|cell| cell.free),
            clean: sum(|cell| cell.clean),
            dirty: sum(|cell| cell.dirty),
            metadata: sum(|cell| cell.metadata),
            put_aside: sum(|cell| cell.put_aside),
            unknown: sum(|cell| cell.unknown),
        };
        BucketsReport {
            set,
            buckets: map.buckets,
            bucket_bytes: map.bucket_bytes,
            cell_buckets: map.cell_buckets,
            all,
            cells,
        }
    }
}

impl<W: World> Daemon<W> {
    /// The map of a volume. One at a time is drawn: each may read the whole index.
    pub(crate) async fn volume_map(
        &self,
        volume: Option<&str>,
        cells: u32,
    ) -> Result<VolumeMapReport, Refusal> {
        let served = self.only(volume)?;
        let _one = self.drawing.lock().await;
        let map = served.now().range_map(cells).await;
        let map = map.map_err(|error| Refusal::new(Kind::Failed, error))?;
        Ok(VolumeMapReport::new(served.name.clone(), map))
    }

    /// The map of the cache device.
    pub(crate) async fn bucket_map(&self, cells: u32) -> BucketsReport {
        let _one = self.drawing.lock().await;
        let map = self.set().bucket_map(cells).await;
        BucketsReport::new(self.uuid_now().to_string(), &map)
    }
}
