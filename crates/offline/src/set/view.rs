//! A cache set as its devices describe it: the result of a walk.

use ubcache_format::{BucketNr, Geometry, Inode, Key, Pointer, Reach, Superblock, Uuid, UuidEntry};

use super::bucket::{Bucket, Owner};
use super::extent::Extent;
use super::interval::Lost;
use super::journal::Journal;
use super::totals::{Totals, VolumeTotals};

/// A cache set as its cache device describes it.
#[derive(Clone, Debug)]
pub struct View {
    /// The superblock of the cache device.
    pub superblock: Superblock,
    /// Sizes and places that follow from the superblock.
    pub geometry: Geometry,
    /// The journal.
    pub journal: Journal,
    /// Every bucket of the device.
    pub buckets: Vec<Bucket>,
    /// Largest distance by which a pointer may be ahead of its bucket.
    pub(crate) reach: Reach,
    /// Staleness of the oldest pointers.
    pub(crate) ages: Ages,
    /// The slots of the volume table.
    pub uuids: Vec<UuidEntry>,
    /// The extents after replay, in order, holes and stale ones among them.
    pub extents: Vec<Extent>,
    /// The volumes that have live extents, in order.
    pub(crate) volumes: Vec<VolumeTotals>,
    /// Totals of extents that were added up as they were read. Then `extents` is incomplete.
    pub(crate) totals: Option<Totals>,
    /// Totals were asked for, and an extent needs a finding: the view is unusable.
    pub(crate) aborted: bool,
    /// Intervals of keys whose part of the tree could not be read.
    pub lost: Vec<Lost>,
    /// Nodes that were read.
    pub nodes: u64,
    /// True if all of the metadata could be read. If not, `extents` is incomplete.
    pub complete: bool,
    /// The most sectors of a bucket, from its start, that a node has that was named by a key.
    pub(crate) node_sectors: u64,
    /// Parts that a salvage must not trust.
    pub(crate) uncertainty: Uncertainty,
}

/// Staleness of the oldest pointers.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ages {
    /// Pointers to data.
    pub extents: u8,
    /// Pointers in interior nodes, to nodes that were freed.
    pub nodes: u8,
}

/// Parts of the view that are not certain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uncertainty {
    /// Changes of this entry of the journal or before it may be missing: only what later entries
    /// say is certain.
    pub journal: Option<u64>,
    /// Intervals of keys in which the tree is not certain; the journal is.
    pub tree: Vec<Lost>,
    /// Extents named by nodes that may be older versions, or are damaged, with the buckets of these
    /// nodes.
    pub claims: Vec<(Extent, BucketNr)>,
    /// Buckets of nodes that nothing names and that describe lost parts.
    pub nodes: Vec<BucketNr>,
}

impl View {
    pub(crate) fn new(superblock: Superblock) -> View {
        View {
            geometry: superblock.geometry(),
            superblock,
            journal: Journal::default(),
            buckets: Vec::new(),
            reach: Reach::FORMAT,
            ages: Ages::default(),
            uuids: Vec::new(),
            extents: Vec::new(),
            volumes: Vec::new(),
            totals: None,
            aborted: false,
            lost: Vec::new(),
            nodes: 0,
            complete: true,
            node_sectors: 0,
            uncertainty: Uncertainty::default(),
        }
    }

    /// Returns true if ubcache ran the set last, and nothing in it is the driver's: such a set has
    /// no dirty keys whose buckets were freed.
    pub(crate) fn is_own(&self) -> bool {
        self.journal.last_run.stamp().is_some_and(|stamp| stamp.drops.is_none())
    }

    /// Returns the bucket that contains a pointer.
    pub fn bucket(&self, pointer: Pointer) -> Option<&Bucket> {
        self.buckets.get(pointer.bucket(self.geometry.bucket_sectors).0 as usize)
    }

    /// Returns the staleness of a pointer in generations; `None` if it is outside the device.
    pub fn staleness(&self, pointer: Pointer) -> Option<u8> {
        Some(self.reach.staleness_of(self.bucket(pointer)?.generation, pointer.generation))
    }

    /// Returns the place of an extent's data, if the pointer is not stale.
    pub fn live(&self, extent: &Extent) -> Option<Pointer> {
        extent.pointer().filter(|pointer| self.staleness(*pointer) == Some(0))
    }

    /// The live extents of a volume, in order.
    pub fn volume(&self, inode: Inode) -> impl Iterator<Item = (&Extent, Pointer)> {
        self.extents_of(inode).iter().filter_map(|extent| Some((extent, self.live(extent)?)))
    }

    /// All extents of a volume, in order.
    pub(crate) fn extents_of(&self, inode: Inode) -> &[Extent] {
        let from = self.extents.partition_point(|extent| extent.inode() < inode);
        let rest = self.extents.get(from..).unwrap_or_default();
        &rest[..rest.partition_point(|extent| extent.inode() == inode)]
    }

    /// Returns the totals of a volume.
    pub(crate) fn live_of(&self, inode: Inode) -> VolumeTotals {
        let found = self.volumes.iter().find(|volume| volume.inode == inode);
        found.copied().unwrap_or(VolumeTotals { inode, ..VolumeTotals::default() })
    }

    /// The slot of the volume with this UUID: the inode of its keys.
    pub fn slot(&self, uuid: Uuid) -> Option<Inode> {
        self.uuids
            .iter()
            .position(|entry| entry.is_live() && entry.uuid == uuid)
            .map(|slot| Inode(slot as u32))
    }

    /// Raises the generation of a bucket to that of a pointer. Returns true if that has changed it.
    pub(crate) fn raise(&mut self, pointer: Pointer) -> bool {
        let bucket = pointer.bucket(self.geometry.bucket_sectors).0 as usize;
        let Some(bucket) = self.buckets.get_mut(bucket) else { return false };
        let former = bucket.generation;
        if self.reach.is_ahead(former, pointer.generation) || !(bucket.known || bucket.named) {
            bucket.generation = pointer.generation;
        }
        bucket.named |= !bucket.known;
        bucket.generation != former
    }

    pub(crate) fn raise_key(&mut self, key: &Key) -> bool {
        let mut raised = false;
        for pointer in key.pointers.iter().filter(|pointer| pointer.is_available()) {
            raised |= self.raise(*pointer);
        }
        raised
    }

    /// Assigns a bucket to an owner. Returns the present one if the two exclude each other.
    pub(crate) fn assign_bucket(&mut self, bucket: BucketNr, owner: Owner) -> Option<Owner> {
        self.buckets.get_mut(bucket.0 as usize)?.owner.assign(owner)
    }
}
