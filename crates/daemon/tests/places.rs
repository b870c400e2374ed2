//! Reads of a set over real files and io_uring, straight to memory that the ring knows by a number:
//! the way of hits on block devices, on a machine without their driver.

use std::fs::OpenOptions as FileOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ubcache_engine::{AttachOptions, CacheSet, CachedVolume, SetOptions};
use ubcache_env::{Buf, Place, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, Replacement, SUPERBLOCK_SECTOR, Superblock, Uuid,
};
use ubcache_host::{Host, HostEnv, HostFile, IoBackend, OpenOptions, PageCache, RegisteredMemory};

const STREAM: StreamId = StreamId(1);
const BYTES: usize = 256 << 10;

fn device(directory: &Path, name: &str, superblock: &Superblock) -> PathBuf {
    let path = directory.join(name);
    let file = FileOptions::new().create(true).truncate(true).write(true).open(&path);
    let file = file.expect("a file");
    file.set_len(64 << 20).expect("room");
    file.write_all_at(&superblock.encode(), SUPERBLOCK_SECTOR.bytes()).expect("room");
    path
}

/// Data that differs from sector to sector.
fn content(range: SectorRange, round: u8) -> Vec<u8> {
    let sectors = range.start.0..range.end.0;
    sectors.flat_map(|at| [round ^ (at % 251) as u8; 512]).collect()
}

async fn write(volume: &CachedVolume<HostEnv>, range: SectorRange, round: u8) {
    let data = Buf::from_bytes(&content(range, round));
    volume.write(STREAM, range, data.into(), false).await.expect("writes");
}

/// A read to a place: what was returned, which is nothing if all of it is at the place.
async fn read(volume: &CachedVolume<HostEnv>, range: SectorRange, place: Place) -> Vec<u8> {
    let data = volume.read_into(STREAM, range, place).await.expect("reads");
    if data.is_empty() { Vec::new() } else { data.to_buf().as_slice().to_vec() }
}

async fn hits_go_to_the_place(env: HostEnv, directory: PathBuf) -> Option<()> {
    let memory = match RegisteredMemory::new(&env, BYTES) {
        Ok(memory) => memory,
        Err(error) => {
            println!("SKIPPED: no table of buffers: {error}");
            return None;
        }
    };
    let set = Uuid([3; 16]);
    let cache =
        Superblock::new_cache(Uuid([1; 16]), set, 8, 128, 1024, Replacement::default(), false);
    let disk = Superblock::new_backing(
        Uuid([2; 16]),
        set,
        8,
        DEFAULT_DATA_OFFSET,
        CacheMode::default(),
        "",
    );
    let options = OpenOptions { page_cache: PageCache::Never, write: true, exclusive: true };
    let mut files = Vec::new();
    for path in [device(&directory, "cache", &cache), device(&directory, "disk", &disk)] {
        match HostFile::open(&env, &path, options) {
            Ok(file) => files.push(file),
            Err(error) => {
                println!("SKIPPED: {error}");
                return None;
            }
        }
    }
    let (disk, cache) = (files.pop().expect("two"), files.pop().expect("two"));
    let set = CacheSet::open(env, cache.into(), SetOptions::default()).await.expect("opens");
    let volume = set.attach(disk.into(), AttachOptions::default()).await.expect("attaches");
    volume.set_attribute("cache_mode", "writeback").expect("a mode");
    // Two writes, so two places of the cache.
    let (first, second) = (SectorRange::new(Sector(0), 8), SectorRange::new(Sector(8), 24));
    write(&volume, first, 1).await;
    write(&volume, second, 2).await;
    let both = SectorRange::from_bounds(first.start, second.end);
    let expected = [content(first, 1), content(second, 2)].concat();

    assert!(read(&volume, first, memory.place(0)).await.is_empty(), "it was copied");
    assert!(memory.content()[..4096] == expected[..4096]);
    assert!(read(&volume, both, memory.place(65536)).await.is_empty(), "it was copied");
    let there = memory.content();
    assert!(there[65536..65536 + expected.len()] == expected);
    assert!(there[4096..65536].iter().all(|byte| *byte == 0), "bytes beside it are touched");

    // Memory that direct I/O can't reach: the same data, by way of memory of the engine, unless the
    // file system has the page cache help out.
    let data = read(&volume, both, memory.place(131_073)).await;
    let there = &memory.content()[131_073..131_073 + expected.len()];
    assert!(data == expected || data.is_empty() && *there == expected);
    // Part of it is not in the cache.
    let more = SectorRange::from_bounds(first.start, Sector(second.end.0 + 8));
    let data = read(&volume, more, memory.place(0)).await;
    assert!(data.len() as u64 == more.bytes() && data[..expected.len()] == expected);
    // A read that failed does not end it.
    assert!(read(&volume, second, memory.place(0)).await.is_empty(), "it was copied");
    assert!(memory.content()[..second.bytes() as usize] == content(second, 2));
    drop(volume);
    set.stop().await.expect("stops");
    Some(())
}

#[test]
fn hits_of_a_set_over_files_are_read_to_the_place_and_all_else_is_copied() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
    match Host::new(IoBackend::Ring) {
        Ok(host) => {
            host.block_on(hits_go_to_the_place(host.env(), directory.path().to_owned()));
        }
        Err(error) => println!("SKIPPED: no io_uring: {error}"),
    }
}
