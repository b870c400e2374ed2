//! Reads of a file straight to memory that the ring knows by a number.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ubcache_env::{Device, Place, Sector, SectorRange};
use ubcache_host::{Host, HostEnv, HostFile, IoBackend, OpenOptions, PageCache, RegisteredMemory};

const BYTES: usize = 1 << 20;

/// A host and memory that it knows, or a printed reason why the test is skipped.
fn world() -> Option<(Host, RegisteredMemory)> {
    let host = match Host::new(IoBackend::Ring) {
        Ok(host) => host,
        Err(error) => {
            println!("SKIPPED: no io_uring: {error}");
            return None;
        }
    };
    match RegisteredMemory::new(&host.env(), BYTES) {
        Ok(memory) => Some((host, memory)),
        Err(error) => {
            println!("SKIPPED: no table of buffers: {error}");
            None
        }
    }
}

/// Every sector differs from all others.
fn content() -> Vec<u8> {
    (0..BYTES as u64 / 8).flat_map(|word| ((word / 64) ^ (word << 32)).to_ne_bytes()).collect()
}

/// A file on a real file system (/tmp may be a tmpfs) with that content; none: no direct I/O there.
fn opened(env: &HostEnv, directory: &Path) -> Option<HostFile> {
    let path = directory.join("image");
    std::fs::File::create(&path).and_then(|file| file.write_all_at(&content(), 0)).expect("room");
    let options =
        OpenOptions { page_cache: PageCache::Never, write: false, ..OpenOptions::default() };
    match HostFile::open(env, &path, options) {
        Ok(file) => Some(file),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

#[test]
fn whole_blocks_are_read_to_the_place_and_nothing_beside_it_is_touched() {
    let (directory, Some((host, memory))) = (directory(), world()) else { return };
    let Some(file) = opened(&host.env(), directory.path()) else { return };
    let from = content();
    let mut expected = vec![0; BYTES];
    for (sector, sectors, at) in [
        (0, 8, 0),
        (8, 8, 4096),
        (1024, 256, 1 << 18),
        (2040, 8, BYTES - 4096),
        (16, 1000, 1 << 19),
    ] {
        let range = SectorRange::new(Sector(sector), sectors);
        let read = host.block_on(file.read_into(range, memory.place(at)));
        assert_eq!(read, Ok(()), "{range:?} to {at}");
        let bytes = range.bytes() as usize;
        let start = range.start.bytes() as usize;
        expected[at..at + bytes].copy_from_slice(&from[start..start + bytes]);
        assert!(memory.content() == expected, "{range:?} to {at}");
    }
}

#[test]
fn memory_that_the_device_can_t_reach_is_an_error_and_the_next_read_is_none() {
    let (directory, Some((host, memory))) = (directory(), world()) else { return };
    let Some(file) = opened(&host.env(), directory.path()) else { return };
    let range = SectorRange::new(Sector(64), 8);
    let good = memory.place(0);
    let unknown = Place { number: good.number + 1, ..good };
    for (what, place) in [
        ("over the end", memory.place(BYTES - 512)),
        ("before the start", Place { at: good.at - 4096, ..good }),
        ("a number without memory", unknown),
    ] {
        assert!(host.block_on(file.read_into(range, place)).is_err(), "{what}");
    }
    assert!(memory.content().iter().all(|byte| *byte == 0), "a read that failed left data");
    // Some file systems read by way of the page cache then.
    let misaligned = host.block_on(file.read_into(range, memory.place(8193)));
    let expected = &content()[64 * 512..72 * 512];
    assert!(misaligned.is_err() || memory.content()[8193..8193 + 4096] == *expected);
    assert_eq!(host.block_on(file.read_into(range, good)), Ok(()));
    assert!(memory.content()[..4096] == *expected);
}
