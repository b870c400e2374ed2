//! A cache set with one volume in a null world.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, EngineError, SetOptions};
use ubcache_env::{Buf, Device, Durability, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, Replacement, SECTOR_BYTES, SUPERBLOCK_SECTOR, Superblock, Uuid,
};

use super::device::NullDevice;
use super::executor::{NullEnv, NullWorld};
use crate::random::Random;

/// Buckets as `ubcache make` makes them.
pub const BUCKET_SECTORS: u32 = 1024;
const BLOCK_SECTORS: u32 = 8;

/// Time on the world's clock that passes with every request: 100,000 a second.
pub const REQUEST_TIME: Nanos = Nanos::from_micros(10);
/// After so many requests the other tasks get a turn, as in a server with this queue depth.
pub const REQUESTS_PER_TURN: u64 = 32;

/// Shape of the set.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Size of the cache device.
    pub cache_bytes: u64,
    /// Sectors in a bucket.
    pub bucket_sectors: u32,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Cache mode.
    pub mode: CacheMode,
    /// Settings for opening the set.
    pub options: SetOptions,
}

/// A running set with its volume.
pub struct Rig {
    /// Its world.
    pub world: NullWorld,
    /// The cache device.
    pub cache: NullDevice,
    /// The backing device.
    pub backing: NullDevice,
    /// The set.
    pub set: CacheSet<NullEnv>,
    /// The volume.
    pub volume: Rc<CachedVolume<NullEnv>>,
}

impl Rig {
    /// Formats two devices, starts the set and attaches the volume.
    pub fn new(shape: &Shape) -> Result<Rig, EngineError> {
        Rig::in_world(NullWorld::new(1), shape)
    }

    /// Does the same as [`Rig::new`], in a world of the caller's.
    pub fn in_world(world: NullWorld, shape: &Shape) -> Result<Rig, EngineError> {
        let bucket_sectors = u64::from(shape.bucket_sectors);
        let buckets = shape.cache_bytes / SECTOR_BYTES / bucket_sectors;
        let cache = NullDevice::new(world.env(), buckets * bucket_sectors, bucket_sectors, buckets);
        let data_at = DEFAULT_DATA_OFFSET.0;
        let backing =
            NullDevice::new(world.env(), data_at + shape.volume_bytes / SECTOR_BYTES, data_at, 1);
        let set_uuid = Uuid([7; 16]);
        let cache_superblock = Superblock::new_cache(
            Uuid([1; 16]),
            set_uuid,
            BLOCK_SECTORS,
            shape.bucket_sectors,
            buckets as u32,
            Replacement::Lru,
            false,
        );
        let backing_superblock = Superblock::new_backing(
            Uuid([2; 16]),
            set_uuid,
            BLOCK_SECTORS,
            DEFAULT_DATA_OFFSET,
            shape.mode,
            "data",
        );
        world.run(async {
            for (device, superblock) in [(&cache, cache_superblock), (&backing, backing_superblock)]
            {
                let bytes = Buf::from_bytes(&superblock.encode());
                device
                    .write(SUPERBLOCK_SECTOR, bytes.into(), Durability::Fua)
                    .await
                    .map_err(|source| EngineError::Io { what: "formatting", source })?;
            }
            Ok::<(), EngineError>(())
        })?;
        Rig::open(world, cache, backing, &shape.options)
    }

    /// Starts a set that is on the devices already.
    pub fn open(
        world: NullWorld,
        cache: NullDevice,
        backing: NullDevice,
        options: &SetOptions,
    ) -> Result<Rig, EngineError> {
        let (set, volume) = world.run(async {
            let set = CacheSet::open(world.env(), cache.clone(), options.clone()).await?;
            let volume = set.attach(backing.clone(), AttachOptions::default()).await?;
            Ok::<_, EngineError>((set, volume))
        })?;
        Ok(Rig { world, cache, backing, set, volume })
    }

    /// Sets an attribute of the volume.
    ///
    /// # Panics
    /// If there is no such attribute or it does not take the value.
    pub fn set(&self, name: &str, value: &str) {
        self.volume.set_attribute(name, value).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Brings pieces of the volume into the cache by reading them, in random order, so that hardly
    /// two of them lie next to each other on the cache device.
    pub fn fill(&self, from_byte: u64, bytes: u64, piece_bytes: u64) {
        let mut order: Vec<u32> = (0..(bytes / piece_bytes) as u32).collect();
        Random::new(1).shuffle(&mut order);
        self.set("sequential_cutoff", "0");
        self.world.run(async {
            for (count, piece) in order.into_iter().enumerate() {
                let at = from_byte + u64::from(piece) * piece_bytes;
                self.read(at, piece_bytes).await;
                // Fills have a budget of memory: let them end.
                if count.is_multiple_of(64) {
                    self.world.settle().await;
                }
            }
            self.world.settle().await;
            self.volume
                .flush(StreamId(0))
                .await
                .unwrap_or_else(|error| panic!("flushing: {error}"));
        });
        self.set("sequential_cutoff", "4194304");
    }

    /// Reads bytes of the volume; the clock moves by [`REQUEST_TIME`].
    ///
    /// # Panics
    /// If the read fails.
    pub async fn read(&self, at: u64, bytes: u64) {
        self.world.pass(REQUEST_TIME);
        let range = SectorRange::new(Sector(at / SECTOR_BYTES), bytes / SECTOR_BYTES);
        let data = self.volume.read(StreamId(0), range).await;
        let data = data.unwrap_or_else(|error| panic!("reading {range}: {error}"));
        assert_eq!(data.len() as u64, bytes, "all of it is there");
    }
}
