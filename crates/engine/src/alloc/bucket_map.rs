//! The map of the buckets: what each part of the cache device holds.

use std::ops::Range;

use ubcache_env::Env;
use ubcache_format::BucketNr;

use super::allocator::Allocator;
use super::buckets::{Buckets, Role};
use crate::stats::maps::{BucketCell, BucketMap};

impl<E: Env> Allocator<E> {
    /// Counts what the buckets hold, in no more than so many cells; each slice (S1) is of one
    /// moment.
    pub async fn bucket_map(&self, cells_max: u32) -> BucketMap {
        let geometry = &self.context.geometry;
        let buckets = u64::from(geometry.buckets);
        let mut map = BucketMap::new(buckets, geometry.bucket_bytes(), cells_max);
        self.for_all_buckets(1, |part| self.buckets().count_into(part, &mut map)).await;
        map
    }
}

impl Buckets {
    fn count_into(&self, part: Range<usize>, map: &mut BucketMap) {
        for index in part {
            let cell = &mut map.cells[index / map.cell_buckets as usize];
            *self.kind_in(cell, BucketNr(index as u32)) += 1;
        }
    }

    fn kind_in<'a>(&self, cell: &'a mut BucketCell, bucket: BucketNr) -> &'a mut u64 {
        match self.role(bucket) {
            Role::Unknown => &mut cell.unknown,
            Role::Metadata => &mut cell.metadata,
            Role::Aside => &mut cell.put_aside,
            Role::Open | Role::Data if self.dirty(bucket) > 0 => &mut cell.dirty,
            Role::Open | Role::Data => &mut cell.clean,
            Role::Free | Role::Restart | Role::Dead | Role::Pending | Role::Discarding => {
                &mut cell.free
            }
            Role::Evacuated => &mut cell.free,
        }
    }
}
