//! Sets made up from a few numbers, written structure by structure: nothing of the crate under test
//! takes part.

use ubcache_env::SectorRange;
use ubcache_format::{
    BackingState, BucketNr, CacheMode, Generation, Geometry, INITIAL_PRIORITY, Inode, JournalEntry,
    JournalSeq, Key, METADATA_PRIORITY, Pointer, PrioEntry, Replacement, Sector, Superblock, Uuid,
    UuidEntry, encode_bset, encode_entry, encode_prio, encode_uuids,
};

use super::damage::Random;

/// Description of a set to build.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Sectors in a bucket: 8, 16 or 32.
    pub bucket_sectors: u32,
    /// Sectors in a block.
    pub block_sectors: u32,
    pub buckets: u32,
    pub volumes: usize,
    /// Extents of each volume, at most.
    pub extents: usize,
    pub keys_in_a_leaf: usize,
    pub seed: u64,
}

/// A made-up set: its cache device, its backing devices, and where its metadata is.
pub struct Built {
    pub cache: Vec<u8>,
    pub backings: Vec<Vec<u8>>,
    /// Bytes of the device that have metadata: the superblock, and whole buckets.
    pub metadata: Vec<std::ops::Range<usize>>,
    pub geometry: Geometry,
}

const BACKING_SECTORS: u64 = 2048;

struct Builder {
    random: Random,
    geometry: Geometry,
    image: Vec<u8>,
    generations: Vec<u8>,
    priorities: Vec<u16>,
    /// Unused buckets.
    free: Vec<u32>,
    metadata: Vec<std::ops::Range<usize>>,
    /// Place of the next data: bucket and sector in it.
    open: Option<(u32, u64)>,
}

impl Builder {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.next() % limit.max(1)
    }

    fn take(&mut self) -> u32 {
        let at = self.random.below(self.free.len());
        self.free.swap_remove(at)
    }

    fn pointer(&self, bucket: u32, sector: u64) -> Pointer {
        Pointer {
            device: 0,
            offset: self.geometry.bucket_start(BucketNr(bucket)) + sector,
            generation: Generation(self.generations[bucket as usize]),
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn metadata_bucket(&mut self) -> u32 {
        let bucket = self.take();
        self.priorities[bucket as usize] = METADATA_PRIORITY;
        let bytes = self.geometry.bucket_bytes() as usize;
        self.metadata.push(bucket as usize * bytes..(bucket as usize + 1) * bytes);
        bucket
    }

    /// A place for data, filled with something.
    fn data(&mut self, sectors: u64) -> Pointer {
        let room = u64::from(self.geometry.bucket_sectors);
        let (bucket, sector) = match self.open {
            Some((bucket, sector)) if sector + sectors <= room => (bucket, sector),
            _ => (self.take(), 0),
        };
        self.open = Some((bucket, sector + sectors));
        self.priorities[bucket as usize] = (1 + self.below(u64::from(INITIAL_PRIORITY))) as u16;
        let pointer = self.pointer(bucket, sector);
        let at = pointer.offset.bytes() as usize;
        for word in self.image[at..at + sectors as usize * 512].chunks_exact_mut(8) {
            word.copy_from_slice(&self.random.next().to_le_bytes());
        }
        pointer
    }

    /// Something that was in the cache once.
    fn stale(&mut self) -> Pointer {
        let bucket = self.free[self.random.below(self.free.len())];
        let mut pointer = self.pointer(bucket, 0);
        pointer.generation =
            Generation(pointer.generation.0.wrapping_sub(1 + self.below(70) as u8));
        pointer
    }

    fn extents(&mut self, inode: Inode, flash_only: bool, count: usize) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut at = 16;
        for _ in 0..count {
            at += self.below(40);
            let sectors = 1 + self.below(u64::from(self.geometry.bucket_sectors));
            let range = SectorRange::new(Sector(at), sectors);
            if range.end.0 > BACKING_SECTORS {
                break;
            }
            at = range.end.0;
            let kind = self.below(8);
            keys.push(match kind {
                0 => Key::hole(inode, range),
                1 => {
                    let (pointer, dirty) = (self.stale(), self.below(2) == 0);
                    Key::extent(inode, range, dirty, pointer)
                }
                _ => {
                    let pointer = self.data(sectors);
                    Key::extent(inode, range, flash_only || kind < 5, pointer)
                }
            });
        }
        keys
    }

    /// Writes a leaf: its keys in several bsets, newer ones over older ones of the same ranges.
    fn leaf(&mut self, pointer: Pointer, keys: Vec<Key>) {
        let geometry = self.geometry;
        let most = (geometry.node_bytes() / geometry.block_bytes()).min(3);
        let count = 1 + self.below(most) as usize;
        let mut bsets: Vec<Vec<Key>> = vec![Vec::new(); count];
        for key in keys {
            let bset = self.random.below(count);
            if bset > 0 && self.below(2) == 0 {
                let stale = self.stale();
                bsets[bset - 1].push(Key::extent(key.inode, key.range(), true, stale));
            }
            bsets[bset].push(key);
        }
        let seq = self.random.next().max(1);
        let mut bytes = Vec::new();
        for (index, keys) in bsets.iter().enumerate() {
            if index == 0 || !keys.is_empty() {
                bytes.extend(encode_bset(&geometry, pointer, seq, keys));
            }
        }
        assert!(bytes.len() as u64 <= geometry.node_bytes(), "a leaf is too full");
        self.put(pointer.offset.bytes() as usize, &bytes);
    }

    /// Writes the tree; gives the key of its root, and its level.
    fn tree(&mut self, keys: Vec<Key>, in_journal: &[bool], keys_in_a_leaf: usize) -> (Key, u16) {
        let geometry = self.geometry;
        let sectors = (geometry.node_bytes() / 512) as u16;
        let mut nodes = Vec::new();
        let leaves: Vec<(Vec<Key>, &[bool])> = keys
            .chunks(keys_in_a_leaf)
            .map(<[Key]>::to_vec)
            .zip(in_journal.chunks(keys_in_a_leaf))
            .collect();
        for (index, (keys, in_journal)) in leaves.iter().enumerate() {
            let bucket = self.metadata_bucket();
            let pointer = self.pointer(bucket, 0);
            let last = keys.last().expect("a chunk is not empty");
            nodes.push(match index + 1 == leaves.len() {
                true => Key::max_node(sectors, pointer),
                false => Key::node(last.inode, last.end, sectors, pointer),
            });
            let kept = keys.iter().zip(*in_journal).filter(|(_, journal)| !**journal);
            self.leaf(pointer, kept.map(|(key, _)| key.clone()).collect());
        }
        match nodes.len() {
            0 => {
                let bucket = self.metadata_bucket();
                let pointer = self.pointer(bucket, 0);
                self.leaf(pointer, Vec::new());
                (Key::max_node(sectors, pointer), 0)
            }
            1 => (nodes.remove(0), 0),
            _ => {
                let bucket = self.metadata_bucket();
                let pointer = self.pointer(bucket, 0);
                let seq = self.random.next().max(1);
                self.put(
                    pointer.offset.bytes() as usize,
                    &encode_bset(&geometry, pointer, seq, &nodes),
                );
                (Key::max_node(sectors, pointer), 1)
            }
        }
    }
}

/// Makes a set.
pub fn build(numbers: &Numbers) -> Built {
    let mut random = Random(numbers.seed);
    let mut uuid = || {
        let [a, b] = [random.next(), random.next()].map(u64::to_le_bytes);
        let mut bytes: [u8; 16] = [a, b].concat().try_into().expect("16 bytes");
        bytes[6] = bytes[6] & 15 | 0x40;
        bytes[8] = bytes[8] & 63 | 0x80;
        Uuid(bytes)
    };
    let (device, set) = (uuid(), uuid());
    let volumes: Vec<Uuid> = (0..numbers.volumes).map(|_| uuid()).collect();
    let mut superblock = Superblock::new_cache(
        device,
        set,
        numbers.block_sectors,
        numbers.bucket_sectors,
        numbers.buckets,
        [Replacement::Lru, Replacement::Fifo, Replacement::Random][random.below(3)],
        random.below(2) == 0,
    );
    superblock.set_sync(true);
    superblock.journal_buckets = superblock.geometry().journal_buckets;
    superblock.mark_started(random.next() as u32);
    superblock.set_label(["", "fast", "ein Gerät"][random.below(3)]);
    superblock.seq = random.next();
    let geometry = superblock.geometry();
    let all = geometry.buckets as usize;
    let mut builder = Builder {
        geometry,
        image: vec![0; all * geometry.bucket_bytes() as usize],
        generations: (0..all).map(|_| random.next() as u8).collect(),
        priorities: vec![0; all],
        free: (geometry.first_bucket + geometry.journal_buckets..geometry.buckets).collect(),
        metadata: Vec::new(),
        open: None,
        random,
    };
    builder.put(4096, &superblock.encode());
    builder.metadata.push(4096..8192);
    let ring = geometry.bucket_start(geometry.journal_bucket(0)).bytes() as usize;
    builder
        .metadata
        .push(ring..ring + geometry.journal_buckets as usize * geometry.bucket_bytes() as usize);

    let mut table = vec![UuidEntry::default(); geometry.uuid_slots() as usize];
    let mut keys = Vec::new();
    let mut backings = Vec::new();
    for (index, volume) in volumes.into_iter().enumerate() {
        let slot = index * 2;
        let flash_only = builder.below(4) == 0;
        table[slot] = UuidEntry {
            uuid: volume,
            flash_only,
            sectors: if flash_only { BACKING_SECTORS } else { 0 },
            first_reg: builder.random.next() as u32,
            last_reg: builder.random.next() as u32,
            ..UuidEntry::default()
        };
        builder
            .random
            .next()
            .to_le_bytes()
            .iter()
            .enumerate()
            .for_each(|(at, byte)| table[slot].label[at] = *byte);
        table[slot + 1] = UuidEntry {
            uuid: Uuid::INVALIDATED,
            invalidated: builder.random.next() as u32,
            ..UuidEntry::default()
        };
        keys.extend(builder.extents(Inode(slot as u32), flash_only, numbers.extents));
        if !flash_only {
            let mut superblock =
                Superblock::new_backing(volume, set, 8, Sector(16), CacheMode::Writeback, "disk");
            superblock.set_state(BackingState::Dirty);
            let mut disk = vec![0; BACKING_SECTORS as usize * 512];
            disk[4096..8192].copy_from_slice(&superblock.encode());
            disk[8192..]
                .iter_mut()
                .enumerate()
                .for_each(|(at, byte)| *byte = (at / 512 + slot) as u8);
            backings.push(disk);
        }
    }
    let words = ubcache_format::max_entry_words(&geometry) as usize;
    let in_journal: Vec<bool> = keys.iter().map(|_| builder.below(6) == 0).collect();
    let mut journaled: Vec<Key> = keys
        .iter()
        .zip(&in_journal)
        .filter(|(_, journal)| **journal)
        .map(|(key, _)| key.clone())
        .collect();
    let in_journal: Vec<bool> = match journaled.len() * 3 <= words {
        true => in_journal,
        false => {
            journaled.clear();
            vec![false; keys.len()]
        }
    };
    let (root, root_level) = builder.tree(keys, &in_journal, numbers.keys_in_a_leaf);
    let (table_bucket, prio_bucket) = (builder.metadata_bucket(), builder.metadata_bucket());
    let bytes = geometry.bucket_bytes() as usize;
    builder.put(table_bucket as usize * bytes, &encode_uuids(&geometry, &table));
    let entries: Vec<PrioEntry> = builder
        .priorities
        .iter()
        .zip(&builder.generations)
        .map(|(priority, generation)| PrioEntry {
            priority: *priority,
            generation: Generation(*generation),
        })
        .collect();
    assert_eq!(geometry.prio_buckets(), 1);
    builder.put(
        prio_bucket as usize * bytes,
        &encode_prio(&geometry, 7, BucketNr(prio_bucket), &entries),
    );
    let seq = 2 + builder.below(1 << 40);
    let entry = JournalEntry {
        seq: JournalSeq(seq - 1),
        last_seq: JournalSeq(seq - 1),
        uuid_bucket: Key {
            sectors: (geometry.metadata_bytes() / 512) as u16,
            ..Key::node(Inode(0), Sector(0), 0, builder.pointer(table_bucket, 0))
        },
        root,
        root_level,
        prio_bucket: BucketNr(prio_bucket),
        keys: journaled,
        padding: ubcache_format::Padding::NONE,
    };
    // The keys are in the older one of the two entries that replay needs.
    builder.put(ring, &encode_entry(&geometry, &entry));
    let newest = JournalEntry { seq: JournalSeq(seq), keys: Vec::new(), ..entry };
    builder.put(ring + bytes, &encode_entry(&geometry, &newest));
    Built { cache: builder.image, backings, metadata: builder.metadata, geometry }
}
