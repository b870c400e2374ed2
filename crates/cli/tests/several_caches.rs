//! Pointers to a second cache device of the set, as Linux before 5.10 had them: what they say of it must not be read on the
//! first.
#![allow(clippy::disallowed_methods, reason = "tests live in the real world, with its clock and its threads")]

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use support::{Daemon, make_set, run, scratch, sha256_of, text};
use ubcache_format::{Superblock, encode_entry, scan_bucket};

const PIECE: usize = 64 << 10;

/// Lets the extents in the newest entries of the journal, so many of them, lie on cache device `device`.
fn move_extents(cache: &Path, device: u16, newest: usize) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(cache).expect("the cache");
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, 4096).expect("its superblock");
    let geometry = Superblock::parse(&bytes).expect("a good superblock").geometry();
    let mut entries = Vec::new();
    for index in 0..geometry.journal_buckets {
        let start = geometry.bucket_start(geometry.journal_bucket(index)).bytes();
        let mut bucket = vec![0; geometry.bucket_bytes() as usize];
        file.read_exact_at(&mut bucket, start).expect("a bucket of the journal");
        entries.extend(
            scan_bucket(&geometry, &bucket).into_iter().map(|(at, entry)| (start + u64::from(at), entry)),
        );
    }
    entries.retain(|(_, entry)| entry.keys.iter().any(|key| !key.pointers.is_empty()));
    entries.sort_by_key(|(_, entry)| entry.seq);
    assert!(entries.len() >= 2, "the journal has extents: {entries:?}");
    for (at, mut entry) in entries.into_iter().rev().take(newest) {
        let pointers = entry.keys.iter_mut().flat_map(|key| &mut key.pointers);
        pointers.for_each(|pointer| pointer.device = device);
        file.write_all_at(&encode_entry(&geometry, &entry), at).expect("an entry");
    }
}

/// The data of such extents was read from the same place on the one device that is there, and written back to the disk.
#[test]
fn pointers_to_another_cache_device_are_refused_by_all() {
    for (device, newest) in [(1, usize::MAX), (1, 1), (7, 1)] {
        let scratch = scratch();
        let directory = scratch.path();
        let (cache, disks) = make_set(directory, &[16], &[]);
        let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
        let daemon = Daemon::start("pool", directory, &cache, &disks, &settings);
        let mut client = daemon.client("disk0.img");
        for index in 0..4 {
            client.write((index * 2 * PIECE) as u64, &[index as u8 + 1; PIECE], true).expect("a write");
        }
        daemon.kill();
        move_extents(&cache, device, newest);
        let before = [&cache, &disks[0]].map(|path| sha256_of(path));
        let (cache, disk, out) = (text(&cache), text(&disks[0]), directory.join("out"));
        for command in [
            &["serve", "-C", cache, "-B", disk][..],
            &["check", cache, "-B", disk],
            &["cat", "-C", cache, "-B", disk, "-o", text(&out)],
            &["recover", "-C", cache, "-B", disk],
            &["repair", cache, "-B", disk, "--dry-run"],
            &["dump", cache],
            &["pack", cache, text(&directory.join("pack"))],
            &["make", "--wipe-bcache", "--bucket", "64k", "-C", cache],
        ] {
            let output = run(command);
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(output.status.code(), Some(1), "device {device}, {newest}: {command:?}: {said}");
            assert!(
                said.contains("cache device of the pointer") && said.contains("several cache devices"),
                "device {device}, {newest}: {command:?} does not say why: {said}"
            );
            assert!(
                before == [&Path::new(cache), &Path::new(disk)].map(|path| sha256_of(path)),
                "{command:?}"
            );
        }
    }
}
