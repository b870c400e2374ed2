//! Pointers to a second cache device of the set, as Linux before 5.10 had them: they must not be
//! followed on the first device.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::{Daemon, make_set, must, run, scratch, sha256_of, text, ubcache};
use ubcache_format::{
    Geometry, JournalEntry, Key, Superblock, encode_bset, encode_entry, parse_node, scan_bucket,
};

const PIECE: usize = 64 << 10;

/// A cache whose metadata is changed.
struct Cache {
    file: File,
    geometry: Geometry,
    /// The entries of the journal that are there, and where they begin, oldest first.
    entries: Vec<(u64, JournalEntry)>,
}

impl Cache {
    fn open(path: &Path) -> Cache {
        let file = File::options().read(true).write(true).open(path).expect("the cache");
        let geometry =
            Superblock::parse(&bytes_at(&file, 4096, 4096)).expect("a good superblock").geometry();
        let mut entries = Vec::new();
        for index in 0..geometry.journal_buckets {
            let start = geometry.bucket_start(geometry.journal_bucket(index)).bytes();
            let bucket = bytes_at(&file, start, geometry.bucket_bytes());
            let found = scan_bucket(&geometry, &bucket).into_iter();
            entries.extend(found.map(|(at, entry)| (start + u64::from(at), entry)));
        }
        entries.sort_by_key(|(_, entry)| entry.seq);
        Cache { file, geometry, entries }
    }

    /// Moves the extents in the newest entries of the journal, so many of them, to cache device
    /// `device`.
    fn move_entries(mut self, device: u16, newest: usize) {
        self.entries.retain(|(_, entry)| entry.keys.iter().any(|key| !key.pointers.is_empty()));
        assert!(self.entries.len() >= 2, "the journal has extents: {:?}", self.entries);
        for (at, mut entry) in self.entries.into_iter().rev().take(newest) {
            move_keys(&mut entry.keys, device);
            self.file.write_all_at(&encode_entry(&self.geometry, &entry), at).expect("an entry");
        }
    }

    /// Moves the extents in the only node to cache device `device`.
    fn move_node(self, device: u16) {
        let (_, newest) = self.entries.last().expect("a journal with entries");
        assert_eq!(newest.root_level, 0, "the root is a leaf");
        let seed = *newest.root.pointers.first().expect("a root");
        let at = seed.offset.bytes();
        let bytes = bytes_at(&self.file, at, self.geometry.bucket_bytes());
        let node = parse_node(&self.geometry, &newest.root, &bytes).expect("a good node");
        let mut bytes = Vec::new();
        for mut keys in node.bsets {
            move_keys(&mut keys, device);
            bytes.extend(encode_bset(&self.geometry, seed, node.seq, &keys));
        }
        assert_eq!(bytes.len() as u64, node.used_bytes);
        self.file.write_all_at(&bytes, at).expect("a node");
    }
}

fn bytes_at(file: &File, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at).expect("so much is there");
    bytes
}

fn move_keys(keys: &mut [Key], device: u16) {
    let pointers = keys.iter_mut().flat_map(|key| &mut key.pointers);
    assert!(pointers.map(|pointer| pointer.device = device).count() > 0, "some extents");
}

/// Every program refuses the cache, changes nothing and gives the reason.
fn refused_by_all(directory: &Path, cache: &Path, disk: &Path, which: &str) {
    let before = [cache, disk].map(sha256_of);
    let (cache, disk, out) = (text(cache), text(disk), directory.join("out"));
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
        assert_eq!(output.status.code(), Some(1), "{which}: {command:?}: {said}");
        for words in ["cache device of the pointer", "several cache devices"] {
            assert!(said.contains(words), "{which}: {command:?} does not say why: {said}");
        }
    }
    assert!(
        before == [cache, disk].map(|path| sha256_of(Path::new(path))),
        "{which}: something changed"
    );
}

/// The data of such extents was read from the same place on the one device that is there, and
/// written back to the disk.
#[test]
fn pointer_to_another_cache_device_is_refused_by_every_tool() {
    for (device, which) in [(1, "all entries"), (7, "the newest entry"), (1, "the node")] {
        let scratch = scratch();
        let directory = scratch.path();
        let (cache, disks) = make_set(directory, &[16], &[]);
        let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
        let daemon = Daemon::start("pool", directory, &cache, &disks, &settings);
        let mut client = daemon.client("disk0.img");
        for index in 0..4 {
            client
                .write((index * 2 * PIECE) as u64, &[index as u8 + 1; PIECE], true)
                .expect("a write");
        }
        daemon.kill();
        match which {
            "all entries" => Cache::open(&cache).move_entries(device, usize::MAX),
            "the newest entry" => Cache::open(&cache).move_entries(device, 1),
            _ => {
                // Move the cached extents to a node, out of the entries.
                must(ubcache().arg("recover").arg("-C").arg(&cache).arg("-B").arg(&disks[0]));
                Cache::open(&cache).move_node(device);
            }
        }
        refused_by_all(directory, &cache, &disks[0], which);
    }
}
