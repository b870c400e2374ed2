//! The example of a set inside of another program: its second run finds what the first has left.

#[path = "../examples/embedded.rs"]
#[expect(dead_code, reason = "a test has a `main` of its own")]
mod embedded;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, Replacement, SUPERBLOCK_SECTOR, Superblock, Uuid,
};

fn device(name: &str, superblock: &Superblock) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path);
    let file = file.expect("a file");
    file.set_len(64 << 20).expect("room");
    file.write_all_at(&superblock.encode(), SUPERBLOCK_SECTOR.bytes()).expect("room");
    path
}

#[test]
fn example_writes_and_reads_through_a_set() {
    let set = Uuid([3; 16]);
    let cache =
        Superblock::new_cache(Uuid([1; 16]), set, 8, 128, 1024, Replacement::default(), false);
    let mode = CacheMode::default();
    let disk = Superblock::new_backing(Uuid([2; 16]), set, 8, DEFAULT_DATA_OFFSET, mode, "");
    let (cache, disk) = (device("embedded-cache", &cache), device("embedded-disk", &disk));
    for _ in 0..2 {
        assert_eq!(embedded::run(&cache, &disk).expect("it runs"), 1);
    }
    for path in [cache, disk] {
        std::fs::remove_file(path).expect("a file");
    }
}
