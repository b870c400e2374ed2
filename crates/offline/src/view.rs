//! A cache set as its devices describe it: what a walk brings back.

use ubcache_format::{
    BucketNr, Generation, Geometry, Inode, Key, Layer, PLACEHOLDER_DEVICE, PlainKey, Pointer, Reach, Sector,
    SectorRange, Superblock, UuidEntry,
};

use crate::journal::Journal;
use crate::tally::Sums;

const DIRTY: u8 = 1;
const REPLAYED: u8 = 2;
const NO_POINTER: u8 = 4;
const CSUM_SHIFT: u8 = 3;

/// An extent of the combined view of tree and journal, in 24 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    end: u64,
    offset: u64,
    inode: u32,
    sectors: u16,
    generation: u8,
    flags: u8,
}

impl Extent {
    pub(crate) fn new(key: &Key, replayed: bool) -> Extent {
        let pointer = key.pointer();
        let mut flags = 0;
        flags |= if key.dirty { DIRTY } else { 0 };
        flags |= if replayed { REPLAYED } else { 0 };
        flags |= if pointer.is_none() { NO_POINTER } else { 0 };
        flags |= (key.csum & 3) << CSUM_SHIFT;
        let pointer = pointer.unwrap_or(Pointer {
            device: PLACEHOLDER_DEVICE,
            offset: Sector(0),
            generation: Generation(0),
        });
        Extent {
            end: key.end.0,
            offset: pointer.offset.0,
            inode: key.inode.0,
            sectors: key.sectors,
            generation: pointer.generation.0,
            flags,
        }
    }

    /// That of a key of a leaf.
    #[inline]
    pub(crate) fn of(key: &PlainKey) -> Extent {
        let pointer = key.pointer.filter(|pointer| pointer.is_available());
        let mut flags = (key.csum & 3) << CSUM_SHIFT;
        flags |= if key.dirty { DIRTY } else { 0 };
        flags |= if pointer.is_none() { NO_POINTER } else { 0 };
        Extent {
            end: key.end.0,
            offset: pointer.map_or(0, |pointer| pointer.offset.0),
            inode: key.inode.0,
            sectors: key.sectors,
            generation: pointer.map_or(0, |pointer| pointer.generation.0),
            flags,
        }
    }

    /// The volume.
    pub const fn inode(&self) -> Inode {
        Inode(self.inode)
    }

    /// The part of the volume, in key sectors (docs/reference/format.md §4.3).
    pub const fn range(&self) -> SectorRange {
        SectorRange::from_bounds(Sector(self.end.saturating_sub(self.sectors as u64)), Sector(self.end))
    }

    /// Where the data is; nothing for holes and placeholders.
    pub const fn pointer(&self) -> Option<Pointer> {
        if self.flags & NO_POINTER != 0 {
            return None;
        }
        Some(Pointer { device: 0, offset: Sector(self.offset), generation: Generation(self.generation) })
    }

    /// Whether the cache has the only copy.
    pub const fn is_dirty(&self) -> bool {
        self.flags & DIRTY != 0
    }

    /// The kind of data checksum, which means nothing (docs/reference/format.md §4.6).
    pub const fn csum(&self) -> u8 {
        self.flags >> CSUM_SHIFT
    }

    /// Whether it comes from the journal.
    pub const fn is_replayed(&self) -> bool {
        self.flags & REPLAYED != 0
    }
}

impl Layer for Extent {
    fn inode(&self) -> Inode {
        Inode(self.inode)
    }
    fn range(&self) -> SectorRange {
        Extent::range(self)
    }
    fn part(&self, range: SectorRange) -> Extent {
        let part = self.range().intersect(&range);
        let skipped = part.start - self.range().start;
        let offset = if self.flags & NO_POINTER == 0 { self.offset.saturating_add(skipped) } else { 0 };
        let sectors = u16::try_from(part.sectors()).unwrap_or(u16::MAX);
        Extent { end: part.end.0, offset, sectors, ..*self }
    }
}

/// What a bucket is used for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nothing that counts points to it.
    Free,
    /// A part of the ring.
    Journal,
    /// An element of the prio chain.
    Prio,
    /// The volume table.
    Uuids,
    /// A node.
    Node,
    /// Data that the backing device has as well.
    Clean,
    /// Data, some of it the only copy.
    Dirty,
}

impl Owner {
    /// Gives a bucket to another owner; says who has it already, if somebody has.
    pub(crate) fn give_way(&mut self, owner: Owner) -> Option<Owner> {
        match (*self, owner) {
            (Owner::Free, _) => *self = owner,
            (Owner::Clean, Owner::Clean | Owner::Dirty) => *self = owner,
            (Owner::Dirty, Owner::Clean | Owner::Dirty) => {}
            (former, _) => return Some(former),
        }
        None
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Owner::Free => "free",
            Owner::Journal => "journal",
            Owner::Prio => "prio set",
            Owner::Uuids => "volume table",
            Owner::Node => "node",
            Owner::Clean => "clean data",
            Owner::Dirty => "dirty data",
        }
    }
}

/// What is known about one bucket, in 8 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// The generation in the prio chain.
    pub stored: Generation,
    /// The generation after all pointers have raised it.
    pub generation: Generation,
    /// The priority in the prio chain.
    pub priority: u16,
    /// What it is used for.
    pub owner: Owner,
    /// Whether the prio chain says what its generation is. If not, that of the newest pointer to it is taken.
    pub known: bool,
    /// Of a bucket that is not `known`: whether a pointer was seen to it, live or not.
    pub named: bool,
}

/// What is live of a volume in the cache.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct VolumeSums {
    pub inode: Inode,
    pub extents: u64,
    pub clean_sectors: u64,
    pub dirty_sectors: u64,
}

/// An interval of keys, of which what the tree says is not known.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The interval begins behind this key, …
    pub after: (Inode, Sector),
    /// … and ends with this one.
    pub upto: (Inode, Sector),
}

impl Lost {
    /// The part of the interval in a volume.
    pub fn in_volume(&self, inode: Inode) -> Option<SectorRange> {
        if inode < self.after.0 || inode > self.upto.0 {
            return None;
        }
        let start = if inode == self.after.0 { self.after.1 } else { Sector(0) };
        let end = if inode == self.upto.0 { self.upto.1 } else { Sector(Key::MAX_END) };
        Some(SectorRange::from_bounds(start, end)).filter(|range| !range.is_empty())
    }
}

/// A cache set as its cache device describes it.
#[derive(Clone, Debug)]
pub struct View {
    /// The superblock of the cache device.
    pub superblock: Superblock,
    /// What follows from it.
    pub geometry: Geometry,
    /// The journal.
    pub journal: Journal,
    /// Every bucket of the device.
    pub buckets: Vec<Bucket>,
    /// How far a pointer may be ahead of its bucket.
    pub(crate) reach: Reach,
    /// How old pointers are.
    pub(crate) ages: Ages,
    /// The slots of the volume table.
    pub uuids: Vec<UuidEntry>,
    /// The extents after replay, in order, holes and stale ones among them.
    pub extents: Vec<Extent>,
    /// The volumes that have live extents, in order.
    pub(crate) volumes: Vec<VolumeSums>,
    /// What the extents come to, if they were added up as they were read. Then `extents` are not all there are.
    pub(crate) sums: Option<Sums>,
    /// They could not be added up: the view says nothing.
    pub(crate) given_up: bool,
    /// Where the tree could not be read.
    pub lost: Vec<Lost>,
    /// Nodes that were read.
    pub nodes: u64,
    /// Whether all of the metadata could be read. If not, `extents` is not all there is.
    pub complete: bool,
    /// The most sectors of a bucket, from its start, that a node has that was named by a key.
    pub(crate) node_sectors: u64,
    /// What a salvage must not trust.
    pub(crate) doubt: Doubt,
}

/// By how much the oldest pointers are behind their buckets.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ages {
    /// Pointers to data.
    pub extents: u8,
    /// Pointers in interior nodes, to nodes that were freed.
    pub nodes: u8,
}

/// How far what was found can be trusted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubt {
    /// Changes of this entry of the journal or before it may be missing: only what later entries say is certain.
    pub journal: Option<u64>,
    /// Where what the tree says is not certain; what the journal says is.
    pub tree: Vec<Lost>,
    /// What nodes say that may be older versions, or are damaged, and the buckets that these nodes are in.
    pub claims: Vec<(Extent, BucketNr)>,
    /// Buckets of nodes that nothing names and that say something of lost parts.
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
            sums: None,
            given_up: false,
            lost: Vec::new(),
            nodes: 0,
            complete: true,
            node_sectors: 0,
            doubt: Doubt::default(),
        }
    }

    /// Whether ubcache ran the set last, and left nothing in it that the driver did: such a set has no dirty keys whose
    /// buckets were given away.
    pub(crate) fn is_own(&self) -> bool {
        self.journal.last_run.mark().is_some_and(|mark| mark.drops.is_none())
    }

    /// What is known of the bucket that a pointer leads into.
    pub fn bucket(&self, pointer: Pointer) -> Option<&Bucket> {
        self.buckets.get(pointer.bucket(self.geometry.bucket_sectors).0 as usize)
    }

    /// By how many generations a pointer is stale; nothing for one that leads nowhere.
    pub fn staleness(&self, pointer: Pointer) -> Option<u8> {
        Some(self.reach.staleness_of(self.bucket(pointer)?.generation, pointer.generation))
    }

    /// Where the data of an extent is, if it is there still.
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

    /// What is live of a volume.
    pub(crate) fn live_of(&self, inode: Inode) -> VolumeSums {
        let found = self.volumes.iter().find(|volume| volume.inode == inode);
        found.copied().unwrap_or(VolumeSums { inode, ..VolumeSums::default() })
    }

    /// The slot of the volume with this UUID: the inode of its keys.
    pub fn slot(&self, uuid: ubcache_format::Uuid) -> Option<Inode> {
        self.uuids
            .iter()
            .position(|entry| entry.is_live() && entry.uuid == uuid)
            .map(|slot| Inode(slot as u32))
    }

    /// Raises the generation of a bucket to that of a pointer to it; says whether that has changed it.
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

    /// Gives a bucket to an owner; says who has it already, if somebody has.
    pub(crate) fn own(&mut self, bucket: BucketNr, owner: Owner) -> Option<Owner> {
        self.buckets.get_mut(bucket.0 as usize)?.owner.give_way(owner)
    }
}
