//! A set in a simulated world, for tests of what it keeps.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions};
use ubcache_env::{Buf, Device, Durability, Sector};
use ubcache_format::{CacheMode, OwnPolicy, Replacement, Superblock, Uuid};
use ubcache_sim::{SimDisk, SimEnv};

/// Sectors of a bucket.
pub const STEP: u64 = 16;
/// Buckets of the cache.
pub const BUCKETS: u32 = 1024;

/// Formats two disks, for a set that begins with this policy.
pub async fn format(cache: &SimDisk, backing: &SimDisk, begins: OwnPolicy) {
    let set = Uuid([7; 16]);
    let write = |superblock: Superblock| Buf::from_bytes(&superblock.encode()).into();
    let mut superblock =
        Superblock::new_cache(Uuid([1; 16]), set, 1, STEP as u32, BUCKETS, Replacement::Lru, false);
    superblock.set_begins_with(begins);
    cache.write(Sector(8), write(superblock), Durability::Fua).await.expect("a good disk");
    let mode = CacheMode::Writethrough;
    let block = backing.limits().logical_block_bytes / 512;
    let superblock = Superblock::new_backing(Uuid([2; 16]), set, block, Sector(16), mode, "v");
    backing.write(Sector(8), write(superblock), Durability::Fua).await.expect("a good disk");
}

/// Starts the set, and has every request go through the cache.
pub async fn open(
    env: &SimEnv,
    cache: &SimDisk,
    backing: &SimDisk,
) -> (CacheSet<SimEnv>, Rc<CachedVolume<SimEnv>>) {
    let set =
        CacheSet::open(env.clone(), cache.clone(), SetOptions::default()).await.expect("opens");
    let volume = set.attach(backing.clone(), AttachOptions::default()).await.expect("attaches");
    volume.set_attribute("sequential_cutoff", "0").expect("sets");
    for name in ["congested_read_threshold_us", "congested_write_threshold_us"] {
        set.set_attribute(name, "0").expect("sets");
    }
    (set, volume)
}
