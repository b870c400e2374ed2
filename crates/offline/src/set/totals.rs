//! Totals over the extents of a set.

use ubcache_format::Inode;

use super::bucket::{Bucket, Owner};

/// Totals of the live extents of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct VolumeTotals {
    pub inode: Inode,
    pub extents: u64,
    pub clean_sectors: u64,
    pub dirty_sectors: u64,
}

/// Totals of all extents.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    /// Totals of each volume, in order.
    pub volumes: Vec<VolumeTotals>,
    /// Owner of each bucket, as far as it has data.
    pub owners: Vec<Owner>,
    /// True if live extents may have sectors in common.
    pub overlap: bool,
    /// Staleness of the oldest pointer.
    pub oldest: u8,
}

impl Totals {
    /// Sets the owners of buckets with data. Returns false, and changes nothing, if one of them has
    /// another owner already.
    pub fn assign_owners(&self, buckets: &mut [Bucket]) -> bool {
        let fits = |(bucket, owner): (&Bucket, &Owner)| {
            let mut former = bucket.owner;
            *owner == Owner::Free || former.assign(*owner).is_none()
        };
        if !buckets.iter().zip(&self.owners).all(fits) {
            return false;
        }
        for (bucket, owner) in buckets.iter_mut().zip(&self.owners) {
            if *owner != Owner::Free {
                bucket.owner = *owner;
            }
        }
        true
    }
}

/// Appends the totals of volumes; the first may continue the last.
pub(crate) fn add_volumes(volumes: &mut Vec<VolumeTotals>, later: &[VolumeTotals]) {
    for totals in later {
        match volumes.last_mut() {
            Some(last) if last.inode == totals.inode => {
                last.extents += totals.extents;
                last.clean_sectors += totals.clean_sectors;
                last.dirty_sectors += totals.dirty_sectors;
            }
            _ => volumes.push(*totals),
        }
    }
}
