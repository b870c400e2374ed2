//! Whole sets to be damaged: of the engine, in the middle of its work or stopped, and of the Linux
//! driver.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use ubcache_env::{Buf, Env, IoVec, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{Geometry, Inode, Key, UuidEntry, bset_bytes};
use ubcache_offline::{
    CheckOptions, DataPart, NodeVisit, PrioElement, Visitor, VolumeMap, check, map_backed,
    open_set, read_volume, walk,
};
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::Plan;
use ubcache_sim::system::{Setup, System};
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimWorld, WorldConfig};

use crate::device::{Image, MemDevice, run};

/// Checksum of a structure.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Seal {
    /// A superblock.
    Superblock,
    /// A journal entry.
    Entry,
    /// A prio set: the whole bucket.
    Prio,
    /// A bset of the node with this pointer.
    Bset(u64),
    /// No checksum.
    Nothing,
}

/// Place of a structure, in bytes, and the range of its checksum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Structure {
    /// Its bytes.
    pub at: Range<usize>,
    /// Its checksum.
    pub seal: Seal,
}

/// Places of the structures of a set.
#[derive(Default)]
pub struct Parts {
    /// Used part of each node.
    pub nodes: Vec<Range<usize>>,
    /// The nodes that have children.
    pub inner: Vec<Range<usize>>,
    /// Every bset, with the pointer to its node.
    pub bsets: Vec<(Range<usize>, u64)>,
    /// The last append of each node.
    pub appends: Vec<Range<usize>>,
    /// The elements of the prio chain: whole buckets.
    pub prios: Vec<Range<usize>>,
    /// The first slots of the volume table.
    pub table: Vec<Range<usize>>,
    /// The journal entries that replay needs, the newest last.
    pub ring: Vec<Range<usize>>,
    /// The buckets of the journal.
    pub journal: Range<usize>,
    /// Places of data that only the cache has.
    pub dirty: Vec<Range<usize>>,
}

impl Visitor for Parts {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let Some(pointer) = visit.key.pointer() else { return };
        let start = pointer.offset.bytes() as usize;
        let mut at = start;
        let mut last = start..start;
        for keys in &visit.node.bsets {
            last = at..at + bset_bytes(visit.geometry, keys) as usize;
            self.bsets.push((last.clone(), pointer.word()));
            at = last.end;
        }
        self.appends.push(last);
        let node = start..start + visit.node.used_bytes as usize;
        if visit.level > 0 {
            self.inner.push(node.clone());
        }
        self.nodes.push(node);
    }
    fn prio(&mut self, element: &PrioElement<'_>) {
        self.prios.push(element.bucket.0 as usize..0);
    }
    fn uuids(&mut self, key: &Key, _: &[UuidEntry]) {
        let at = key.pointer().map_or(0, |pointer| pointer.offset.bytes() as usize);
        self.table.push(at..at + 256);
    }
}

/// A set before the damage.
pub struct Base {
    /// Its name.
    pub name: String,
    /// Its cache device.
    pub cache: Image,
    /// Its backing device.
    pub backing: Image,
    /// Bytes of a block of the cache device.
    pub block: u32,
    /// Content of its volume.
    pub whole: Vec<u8>,
    /// Parts of it that only the cache has, with their places.
    pub dirty: Vec<(SectorRange, Sector)>,
    /// The slot of the volume.
    pub inode: Inode,
    /// The shape of the set.
    pub geometry: Geometry,
    /// Places of its structures.
    pub parts: Parts,
    /// True if ubcache ran it last.
    pub own: bool,
}

impl Base {
    /// A set without damage.
    ///
    /// # Panics
    /// Panics if it has some.
    pub fn new(name: &str, cache: Image, backing: Image, block: u32) -> Base {
        let (disk, below) =
            (MemDevice::new(cache.clone(), block), MemDevice::new(backing.clone(), block));
        let report = run(check(&disk, &[&below], None, CheckOptions::default())).report;
        assert!(report.is_clean(), "{name}: {:?}", report.errors());
        let mut parts = Parts::default();
        let view =
            run(walk(&disk, &mut parts, &())).expect("a set without damage has a superblock");
        let geometry = view.geometry;
        let bucket = geometry.bucket_bytes() as usize;
        for range in &mut parts.prios {
            *range = range.start * bucket..(range.start + 1) * bucket;
        }
        let start = geometry.bucket_start(geometry.journal_bucket(0)).bytes() as usize;
        parts.journal = start..start + geometry.journal_buckets as usize * bucket;
        parts.ring = view
            .journal
            .entries
            .iter()
            .map(|found| {
                let at = start + found.place.index as usize * bucket + found.place.offset as usize;
                at..at + found.place.bytes as usize
            })
            .collect();
        let map = run(map_backed(&view, &below, false)).expect("it has a volume");
        parts.dirty = map
            .dirty()
            .map(|(range, at)| {
                let at = at.bytes() as usize;
                at..at + range.bytes() as usize
            })
            .collect();
        let own = view.journal.last_run.stamp().is_some();
        let whole = content(&map, &disk, &below).0;
        let inode = map.inode.expect("its volume has a slot");
        let dirty = map.dirty().collect();
        Base {
            name: name.to_owned(),
            cache,
            backing,
            block,
            whole,
            dirty,
            inode,
            geometry,
            parts,
            own,
        }
    }

    /// Bytes of a bucket.
    pub fn bucket(&self) -> usize {
        self.geometry.bucket_bytes() as usize
    }

    /// All structures: superblock, journal entries, bsets, prio sets, volume table.
    pub fn structures(&self) -> Vec<Structure> {
        let parts = &self.parts;
        let superblock = 4096..4096 + 208 + 8 * self.geometry.journal_buckets as usize;
        let mut all = vec![Structure { at: superblock, seal: Seal::Superblock }];
        let mut add = |list: &[Range<usize>], seal: Seal| {
            all.extend(list.iter().map(|at| Structure { at: at.clone(), seal }));
        };
        add(&parts.ring, Seal::Entry);
        add(&parts.prios, Seal::Prio);
        add(&parts.table, Seal::Nothing);
        for (at, pointer) in &parts.bsets {
            add(std::slice::from_ref(at), Seal::Bset(*pointer));
        }
        all
    }
}

/// Content of a volume, and its unreadable ranges.
pub fn content(
    map: &VolumeMap,
    cache: &MemDevice,
    backing: &MemDevice,
) -> (Vec<u8>, Vec<SectorRange>) {
    let mut bytes = vec![0; map.sectors as usize * 512];
    let read = run(read_volume(map, cache, Some(backing), true, &(), |at, piece| {
        if let DataPart::Bytes(piece) = piece {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(piece);
        }
        Ok(())
    }));
    (bytes, read.unwrap_or_else(|error| panic!("devices in memory are always there: {error}")))
}

/// The map of a volume of a set without damage.
pub fn map(cache: &MemDevice, backing: &MemDevice) -> Result<VolumeMap, String> {
    let view = run(open_set(cache, false, &())).map_err(|error| error.to_string())?.0;
    run(map_backed(&view, backing, false)).map_err(|error| error.to_string())
}

/// Recipe for a set of the engine.
#[derive(Copy, Clone, Debug)]
pub struct Recipe {
    /// Seed of the requests.
    pub seed: u64,
    /// Sectors of a block.
    pub block: u32,
    /// Keys of a node at most; 0: as many as there is room for.
    pub node_keys: u32,
    /// Buckets of 16 sectors.
    pub buckets: u32,
    /// Sectors of the volume.
    pub sectors: u64,
    /// Requests.
    pub rounds: u64,
    /// Number of requests of which one is a flush.
    pub flushes: u64,
    /// True if it is stopped, false if it is cut off in the middle.
    pub stop: bool,
}

/// A set as the engine leaves it, and its backing device.
///
/// # Panics
/// Panics if the engine fails without a fault.
pub fn of_the_engine(name: &str, recipe: Recipe) -> Base {
    let Recipe { seed, block, node_keys, buckets, sectors, rounds, flushes, stop } = recipe;
    let plan = format!(
        "ubcache-plan 1\nworld seed={seed} policy=uniform poll-cost-ns=500 timer-slop-ns=0 \
         last-crash=0\n\
         cache bucket=16 block={block} buckets={buckets} node-keys={node_keys} extents=5000 lazy=0 \
         volatile=1 discard=0 profile=fast\n\
         volume sectors={sectors} mode=writeback initial=500 volatile=1 discard=0 block={block} \
         profile=fast\n"
    );
    let plan: Plan = plan.parse().unwrap_or_else(|error| panic!("{error}"));
    let world = SimWorld::new(WorldConfig::new(seed));
    let disk = |name: &str, sectors| {
        SimDisk::new(
            &world,
            DiskConfig { block_bytes: block * 512, ..DiskConfig::new(name, sectors) },
        )
    };
    let cache = disk("cache", 16 * u64::from(buckets));
    let backing = disk("backing", CacheSystem::DATA_AT.0 + sectors);
    let setup = Setup {
        rules: Default::default(),
        header_rules: Default::default(),
        plan,
        first_cache: cache.clone(),
        spare: None,
        replaced: Default::default(),
        kept: Default::default(),
        kept_aside: Default::default(),
        backing: vec![backing.clone()].into(),
        servers: Default::default(),
        word: Default::default(),
    };
    let setup = Rc::new(setup);
    CacheSystem::prepare(&setup);
    let env = world.new_instance();
    let (cache_inside, backing_inside) = (cache.clone(), backing.clone());
    let images = world.run(async move {
        let time = env.clone();
        let system = CacheSystem::start(env, setup).await.expect("nothing is wrong");
        let volume = system.volumes()[0].clone();
        let mut rng = Rng::new(seed);
        for round in 0..rounds {
            let range = SectorRange::new(Sector(rng.below(sectors / 8) * 8), 8);
            let mut bytes = vec![round as u8; 4096];
            bytes[..8].copy_from_slice(&(round + 1).to_le_bytes());
            match rng.below(8) {
                0 => drop(volume.read(StreamId(1), range).await.expect("no faults")),
                _ => {
                    let data = IoVec::from(Buf::from_bytes(&bytes));
                    volume.write(StreamId(1), range, data, false).await.expect("no faults");
                }
            }
            if round % flushes == 0 {
                volume.flush(StreamId(1)).await.expect("no faults");
            }
            if round % 100 == 50 {
                time.sleep(Nanos::from_secs(2)).await;
            }
        }
        volume.flush(StreamId(1)).await.expect("no faults");
        if stop {
            system.stop().await.expect("no faults");
        }
        let image = |disk: &SimDisk| {
            Image::new(&disk.peek(SectorRange::new(Sector(0), disk.config().sectors)))
        };
        (image(&cache_inside), image(&backing_inside))
    });
    let (cache, backing) = images.expect("it ends");
    Base::new(name, cache, backing, block * 512)
}

/// The frozen set of the driver with this name.
pub fn of_the_driver(name: &str) -> Base {
    let directory =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures").join(name);
    let image = |file: &str| Image::new(&unpacked(&directory.join(file)));
    Base::new(name, image("cache.img.xz"), image("backing.img.xz"), 512)
}

fn unpacked(path: &Path) -> Vec<u8> {
    let packed = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    unpack(&packed)
}

/// Content of an archive.
///
/// # Panics
/// Panics if it is damaged.
pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(packed, false), &mut bytes)
        .unwrap_or_else(|error| panic!("a damaged archive: {error}"));
    bytes
}

/// Three sets of the engine, each with a journal that has gone round, and three of the driver.
pub fn bases() -> Vec<Base> {
    let recipe = |seed, block, node_keys, stop| Recipe {
        seed,
        block,
        node_keys,
        buckets: 600,
        sectors: 4096,
        rounds: 500,
        flushes: 40,
        stop,
    };
    vec![
        of_the_engine("running, blocks of 512 bytes, small nodes", recipe(1, 1, 8, false)),
        of_the_engine("stopped, blocks of 4 KiB, small nodes", recipe(2, 8, 8, true)),
        of_the_engine("running, blocks of 4 KiB", recipe(3, 8, 0, false)),
        of_the_driver("writeback-crash"),
        of_the_driver("writeback-clean"),
        of_the_driver("writethrough-mixed"),
    ]
}

/// The recipes of the small sets in `sets/`, with their names.
pub const SMALL: [(&str, Recipe); 3] = [
    (
        "running",
        Recipe {
            seed: 11,
            block: 1,
            node_keys: 8,
            buckets: 520,
            sectors: 1024,
            rounds: 300,
            flushes: 2,
            stop: false,
        },
    ),
    (
        "stopped",
        Recipe {
            seed: 12,
            block: 8,
            node_keys: 8,
            buckets: 520,
            sectors: 1024,
            rounds: 300,
            flushes: 2,
            stop: true,
        },
    ),
    (
        "large-nodes",
        Recipe {
            seed: 13,
            block: 1,
            node_keys: 0,
            buckets: 520,
            sectors: 1024,
            rounds: 400,
            flushes: 2,
            stop: false,
        },
    ),
];

const PACKED: [(&[u8], &[u8]); 3] = [
    (include_bytes!("../sets/running.cache.xz"), include_bytes!("../sets/running.backing.xz")),
    (include_bytes!("../sets/stopped.cache.xz"), include_bytes!("../sets/stopped.backing.xz")),
    (
        include_bytes!("../sets/large-nodes.cache.xz"),
        include_bytes!("../sets/large-nodes.backing.xz"),
    ),
];

/// The small sets, as they are packed in `sets/`: what a kept input means does not change with the
/// engine.
pub fn small() -> Vec<Base> {
    SMALL
        .iter()
        .zip(PACKED)
        .map(|((name, recipe), (cache, backing))| {
            Base::new(
                name,
                Image::new(&unpack(cache)),
                Image::new(&unpack(backing)),
                recipe.block * 512,
            )
        })
        .collect()
}
