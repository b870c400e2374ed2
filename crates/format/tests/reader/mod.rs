//! A reader of whole sets in memory, as docs/reference/format.md §12 has it: device images in,
//! volume contents out.
//!
//! It is written to be read next to the description, not to be fast, and shares nothing with the
//! engine but the crate under test.

#![allow(dead_code, reason = "every test that includes this module uses its own part of it")]

use std::error::Error;

use ubcache_format::*;

/// Any failure, as text for the person who runs the test.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A cache set with everything that its devices say about it.
pub struct Set<'a> {
    image: &'a [u8],
    /// The superblock of the cache device.
    pub superblock: Superblock,
    /// Sizes that follow from the superblock.
    pub geometry: Geometry,
    /// The journal entries that were replayed; none if the set was never started.
    pub replayed: Vec<JournalEntry>,
    /// The generation of every bucket, raised by all pointers that are ahead.
    pub generations: Vec<Generation>,
    /// The slots of the volume table.
    pub uuids: Vec<UuidEntry>,
    /// All nodes of the tree with the keys that led to them.
    pub nodes: Vec<(Key, ParsedNode)>,
    /// All extents after replay, in order, holes and stale ones among them.
    pub extents: Vec<Key>,
}

fn bytes_at(image: &[u8], range: SectorRange) -> Result<&[u8]> {
    let (start, end) = (range.start.bytes() as usize, range.end.bytes() as usize);
    image.get(start..end).ok_or_else(|| format!("{range} is not on the device").into())
}

/// The superblock of a device, checked against the size of the device.
pub fn superblock(image: &[u8]) -> Result<Superblock> {
    let superblock = Superblock::parse(bytes_at(image, SectorRange::new(SUPERBLOCK_SECTOR, 8))?)?;
    superblock.check_device(image.len() as u64 / SECTOR_BYTES, 512)?;
    Ok(superblock)
}

impl<'a> Set<'a> {
    /// Reads all of the metadata of a cache device.
    pub fn open(image: &'a [u8]) -> Result<Self> {
        let superblock = superblock(image)?;
        let geometry = superblock.geometry();
        let mut set = Set {
            image,
            geometry,
            replayed: Vec::new(),
            generations: Vec::new(),
            uuids: Vec::new(),
            nodes: Vec::new(),
            extents: Vec::new(),
            superblock,
        };
        if set.superblock.sync() {
            set.read()?;
        }
        Ok(set)
    }

    fn read(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let scanned = (0..geometry.journal_buckets)
            .map(|index| {
                Ok(scan_bucket_strictly(&geometry, self.bucket(geometry.journal_bucket(index))?)?)
            })
            .collect::<Result<Vec<_>>>()?;
        self.replayed = select_replay(&geometry, scanned, self.superblock.discard())?.entries;
        let newest = self.replayed.last().ok_or("nothing to replay")?.clone();
        self.read_generations(newest.prio_bucket)?;
        newest.root.check_node(&geometry)?;
        newest.uuid_bucket.check_node(&geometry)?;
        self.uuids = parse_uuids(self.behind(&newest.uuid_bucket)?);
        self.raise(&newest.root);
        let mut left = (Inode(0), Sector(0));
        self.walk(&newest.root, newest.root_level, &mut left)?;
        for key in self.replayed.clone().iter().rev().flat_map(|entry| &entry.keys) {
            key.check_journaled(&geometry)?;
            self.raise(key);
        }
        let replay = self.replayed.iter().map(|entry| entry.keys.clone());
        let leaves = std::mem::take(&mut self.extents);
        self.extents = combine_leaf(std::iter::once(leaves).chain(replay).collect());
        Ok(())
    }

    fn bucket(&self, bucket: BucketNr) -> Result<&'a [u8]> {
        let range = SectorRange::new(
            self.geometry.bucket_start(bucket),
            u64::from(self.geometry.bucket_sectors),
        );
        bytes_at(self.image, range)
    }

    /// The data or node that the pointer of a key refers to.
    fn behind(&self, key: &Key) -> Result<&'a [u8]> {
        let pointer = key.pointer().ok_or_else(|| format!("{key} leads nowhere"))?;
        bytes_at(self.image, SectorRange::new(pointer.offset, u64::from(key.sectors)))
    }

    fn read_generations(&mut self, mut bucket: BucketNr) -> Result<()> {
        for _ in 0..self.geometry.prio_buckets() {
            let (_, next, entries) = parse_prio(&self.geometry, self.bucket(bucket)?)?;
            self.generations.extend(entries.iter().map(|entry| entry.generation));
            bucket = next;
        }
        self.generations.truncate(self.geometry.buckets as usize);
        Ok(())
    }

    fn generation(&mut self, pointer: Pointer) -> Option<&mut Generation> {
        self.generations.get_mut(pointer.bucket(self.geometry.bucket_sectors).0 as usize)
    }

    /// Raises the generations of buckets that the pointers of a key are ahead of.
    fn raise(&mut self, key: &Key) {
        for pointer in key.pointers.iter().filter(|pointer| pointer.is_available()) {
            if let Some(generation) = self.generation(*pointer)
                && generation.is_ahead(pointer.generation)
            {
                *generation = pointer.generation;
            }
        }
    }

    /// Returns true if the key's data exists: it has a pointer, and the bucket has not been reused
    /// since.
    pub fn is_live(&self, key: &Key) -> bool {
        key.pointer().is_some_and(|pointer| {
            let bucket = pointer.bucket(self.geometry.bucket_sectors).0 as usize;
            self.generations
                .get(bucket)
                .is_some_and(|bucket| bucket.staleness_of(pointer.generation) == 0)
        })
    }

    /// Collects the extents of all leaves under a node, which holds what lies between `left` and
    /// its key.
    fn walk(&mut self, node_key: &Key, level: u16, left: &mut (Inode, Sector)) -> Result<()> {
        let node = parse_node(&self.geometry, node_key, self.behind(node_key)?)?;
        let bsets = node.bsets.clone();
        self.nodes.push((node_key.clone(), node));
        if level == 0 {
            let extents = combine_leaf(bsets);
            for extent in &extents {
                extent.check_extent(&self.geometry)?;
                self.raise(extent);
                if (extent.inode, extent.start()) < *left && extent.inode == left.0 {
                    return Err(
                        format!("{extent} is not in its leaf, which begins at {left:?}").into()
                    );
                }
            }
            self.extents.extend(extents);
        } else {
            let children = combine_interior(bsets);
            for child in &children {
                child.check_node(&self.geometry)?;
                self.raise(child);
            }
            let mut highest = None;
            for child in children.iter().filter(|child| !child.is_zero()) {
                if self.is_live(child) {
                    self.walk(child, level - 1, left)?;
                    highest = Some(child.position());
                }
            }
            if highest != Some(node_key.position()) {
                return Err(format!("the children of {node_key} end at {highest:?}").into());
            }
        }
        *left = node_key.position();
        Ok(())
    }

    /// Number of sectors of a volume whose only copy is in the cache.
    pub fn dirty_sectors(&self, inode: Inode) -> u64 {
        let dirty =
            self.extents.iter().filter(|key| key.inode == inode && key.dirty && self.is_live(key));
        dirty.map(|key| u64::from(key.sectors)).sum()
    }

    /// Content of a volume with a backing device: the backing device, and over it the cached
    /// extents.
    pub fn backed_volume(&self, backing: &[u8]) -> Result<(Vec<u8>, Option<Inode>)> {
        let superblock = superblock(backing)?;
        let mut volume = backing[superblock.data_offset().bytes() as usize..].to_vec();
        let attached = matches!(superblock.state(), BackingState::Clean | BackingState::Dirty)
            && superblock.set_uuid == self.superblock.set_uuid;
        if !attached {
            return Ok((volume, None));
        }
        let slot = self.uuids.iter().position(|entry| entry.uuid == superblock.uuid);
        let inode = Inode(slot.ok_or("the backing device has no slot in the volume table")? as u32);
        self.overlay(inode, superblock.data_offset(), &mut volume)?;
        Ok((volume, Some(inode)))
    }

    /// Content of a volume without a backing device.
    pub fn flash_only_volume(&self, inode: Inode) -> Result<Vec<u8>> {
        let entry =
            self.uuids.get(inode.0 as usize).filter(|entry| entry.flash_only && entry.is_live());
        let sectors = entry.ok_or("not a flash-only volume")?.sectors;
        let mut volume = vec![0; Sector(sectors).bytes() as usize];
        self.overlay(inode, Sector(0), &mut volume)?;
        Ok(volume)
    }

    fn overlay(&self, inode: Inode, data_offset: Sector, volume: &mut [u8]) -> Result<()> {
        let all = SectorRange::new(data_offset, volume.len() as u64 / SECTOR_BYTES);
        for key in self.extents.iter().filter(|key| key.inode == inode && self.is_live(key)) {
            let key = key.cut_to(all.intersect(&key.range()));
            if key.range().is_empty() {
                continue;
            }
            let start = (key.start().bytes() - data_offset.bytes()) as usize;
            let data = self.behind(&key)?;
            volume[start..start + data.len()].copy_from_slice(data);
        }
        Ok(())
    }
}
