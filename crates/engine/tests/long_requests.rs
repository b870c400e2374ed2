//! Requests of many megabytes: what they bring to the cache, and what they leave out.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions};
use ubcache_env::{Buf, Device, Durability, IoVec, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{CacheMode, Replacement, Superblock, Uuid};
use ubcache_sim::{DiskConfig, SimDisk, SimEnv, SimWorld, WorldConfig};

const SECTORS: u64 = 128 << 11;
const OFFSET: u64 = 16;
/// 16 MiB.
const LONG: SectorRange = SectorRange::from_bounds(Sector(0), Sector(16 << 11));

struct Parts {
    _set: CacheSet<SimEnv>,
    volume: Rc<CachedVolume<SimEnv>>,
    backing: SimDisk,
}

async fn open(world: &SimWorld, env: SimEnv) -> Parts {
    let cache = SimDisk::new(world, DiskConfig::new("cache", 256 * 1024));
    let backing = SimDisk::new(world, DiskConfig::new("backing", SECTORS + OFFSET));
    let set = Uuid([7; 16]);
    let write = |bytes: Vec<u8>| Buf::from_bytes(&bytes).into();
    let superblock =
        Superblock::new_cache(Uuid([1; 16]), set, 8, 256, 1024, Replacement::Lru, false);
    cache.write(Sector(8), write(superblock.encode()), Durability::Fua).await.expect("a good disk");
    let superblock =
        Superblock::new_backing(Uuid([2; 16]), set, 8, Sector(OFFSET), CacheMode::Writeback, "v");
    backing
        .write(Sector(8), write(superblock.encode()), Durability::Fua)
        .await
        .expect("a good disk");
    let set = CacheSet::open(env, cache, SetOptions::default()).await.expect("the set opens");
    let volume =
        set.attach(backing.clone(), AttachOptions::default()).await.expect("the volume attaches");
    Parts { _set: set, volume, backing }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(SimWorld, SimEnv) -> F) {
    let world = SimWorld::new(WorldConfig::new(1));
    let ended = world.run(test(world.clone(), world.new_instance()));
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}"));
}

async fn read_byte(volume: &CachedVolume<SimEnv>, sector: u64) -> u8 {
    let data = volume
        .read(StreamId(9), SectorRange::new(Sector(sector), 8))
        .await
        .expect("reads")
        .to_buf();
    data.as_slice()[0]
}

/// Bug: a write of zeroes over one dirty sector went to the cache as a whole, all 16 MiB of it, so
/// that `blkdiscard -z` filled the cache with zeroes. Fix: it is split, and what was clean goes
/// past the cache.
#[test]
fn long_bypass_write_is_split_around_a_dirty_sector() {
    run(|world, env| async move {
        let Parts { volume, backing, .. } = open(&world, env).await;
        let data = |byte: u8, sectors: u64| {
            let mut data = Buf::for_sectors(sectors);
            data.as_mut_slice().fill(byte);
            IoVec::from(data)
        };
        let place = SectorRange::new(Sector(8000), 8);
        volume.write(StreamId(1), place, data(1, 8), false).await.expect("writes");
        assert_eq!(volume.status().dirty_bytes, 4096);
        volume.write_zeroes(StreamId(1), LONG, false, false).await.expect("zeroes");
        assert!(volume.status().dirty_bytes <= 4096, "{} dirty bytes", volume.status().dirty_bytes);
        assert_eq!(read_byte(&volume, 8000).await, 0);
        // A long run of data goes past the cache, too.
        for turn in 0..3 {
            volume.write(StreamId(2), place, data(2, 8), false).await.expect("writes");
            volume
                .write(StreamId(3), LONG, data(3 + turn, LONG.sectors()), false)
                .await
                .expect("writes");
            let dirty = volume.status().dirty_bytes;
            assert!(dirty <= 4096, "{dirty} dirty bytes");
            for sector in [0, 7992, 8000, 8008, LONG.end.0 - 8] {
                assert_eq!(read_byte(&volume, sector).await, 3 + turn, "sector {sector}");
            }
        }
        assert_eq!(backing.peek(SectorRange::new(Sector(OFFSET), 1))[0], 5);
    });
}

/// Bug: a request to cache more than sequential_cutoff (4 MiB) read the disk and threw it away,
/// because it counted as a run of reads that is too long to cache. Fix: it is no part of a run; and
/// what is cached already is not read.
#[test]
fn cache_request_of_any_length_is_cached() {
    run(|world, env| async move {
        let Parts { volume, .. } = open(&world, env).await;
        volume.prefetch(StreamId(1), LONG).await.expect("a hint");
        let read = volume.status().backing;
        volume.prefetch(StreamId(1), LONG).await.expect("a hint");
        for sector in (0..LONG.end.0).step_by(1000 / 8 * 8) {
            read_byte(&volume, sector).await;
        }
        let stats = volume.status().stats;
        assert_eq!((stats.cache_misses, stats.cache_bypass_misses), (0, 0), "{stats:?}");
        assert_eq!(volume.status().backing, read, "the disk is not read again");
    });
}
