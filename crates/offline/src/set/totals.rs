//! Totals over the extents of a set.

use ubcache_format::Inode;

use super::bucket::{Bucket, Owner};

/// What is live of a volume in the cache.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct VolumeTotals {
    pub inode: Inode,
    pub extents: u64,
    pub clean_sectors: u64,
    pub dirty_sectors: u64,
}

/// What all extents come to.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    /// What is live of each volume, in order.
    pub volumes: Vec<VolumeTotals>,
    /// Who owns each bucket, as far as it is data.
    pub owners: Vec<Owner>,
    /// Whether live extents may have sectors in common.
    pub overlap: bool,
    /// How far the oldest pointer is behind its bucket.
    pub oldest: u8,
}

impl Totals {
    /// Gives buckets to those who have data in them. Nothing is changed if one of these has somebody else already.
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

/// Adds what is live of volumes to that of those before them.
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
