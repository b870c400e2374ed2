//! Holes of sparse disks, and the map of the cache, as nbdinfo and nbdcopy see them.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::{Daemon, each_io, have, make_set, must, sparse, text, tool};

const MIB: u64 = 1 << 20;

/// The extents of a context: offset, length, flags.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let printed = must(tool("nbdinfo").arg(format!("--map={context}")).args(["--json", uri]));
    let list: serde_json::Value = serde_json::from_str(&printed).expect("nbdinfo prints JSON");
    let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().expect("a number");
    let extents = list.as_array().expect("a list").iter();
    extents.map(|it| (number(it, "offset"), number(it, "length"), number(it, "type"))).collect()
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a file").blocks() * 512
}

/// Bug: every block was data, so that a copy of an empty disk was a full one; and zeroes that might
/// be holes took space, up to a full file system. Fix: holes of files are reported, and made.
#[test]
fn holes_are_reported_and_made() {
    let test = "holes_are_reported_and_made";
    if !have(test, &["nbdinfo", "nbdcopy", "qemu-io"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let end = 64 * MIB - 8192;
        for (mode, cached) in [("none", false), ("writethrough", true), ("writeback", true)] {
            let mut options = vec!["--mode", mode, "--set", "sequential_cutoff=0"];
            options.extend(["--set", "writeback_running=0"]);
            let daemon = Daemon::start(io, directory, &cache, &backings, &options);
            let uri = daemon.uri("disk0.img");
            assert_eq!(map(&uri, "base:allocation"), [(0, end, 3)], "{mode}: an empty disk");
            let write = ["-f", "raw", "-c", "write -P 7 8M 1M", "-c", "flush"];
            must(tool("qemu-io").args(write).arg(&uri));
            let data = [(0, 8 * MIB, 3), (8 * MIB, MIB, 0), (9 * MIB, end - 9 * MIB, 3)];
            assert_eq!(map(&uri, "base:allocation"), data, "{mode}: dirty data is data");
            let in_cache = [(0, 8 * MIB, 0), (8 * MIB, MIB, 1), (9 * MIB, end - 9 * MIB, 0)];
            if cached {
                assert_eq!(map(&uri, "ubcache:cached"), in_cache, "{mode}");
            }
            match mode {
                "writeback" => {
                    assert_eq!(map(&uri, "ubcache:dirty"), in_cache);
                    daemon.set("writeback_running=1");
                    daemon.set("cache_mode=none");
                    while daemon.number(0, "/dirty_bytes") > 0 {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                }
                _ => assert_eq!(map(&uri, "ubcache:dirty"), [(0, end, 0)], "{mode}"),
            }
            // Zeroes that may be a hole, then zeroes that may not.
            must(tool("qemu-io").args(["-f", "raw", "-c", "write -z -u 8M 1M"]).arg(&uri));
            assert_eq!(map(&uri, "base:allocation"), [(0, end, 3)], "{mode}: zeroes make a hole");
            let before = allocated_bytes(&backings[0]);
            must(tool("qemu-io").args(["-f", "raw", "-c", "write -z 8M 1M"]).arg(&uri));
            let grown = allocated_bytes(&backings[0]) - before;
            assert!(grown >= MIB, "{mode}: room that is asked for is allocated, {grown}");
            must(tool("qemu-io").args(["-f", "raw", "-c", "write -z -u 8M 1M"]).arg(&uri));
            let reads = ["-f", "raw", "-c", "read -P 0 8M 1M"];
            let read = must(tool("qemu-io").args(reads).arg(&uri));
            assert!(!read.contains("fail"), "{mode}: {read}");
            daemon.stop();
        }
    });
}

#[test]
fn a_copy_of_holes_stays_sparse() {
    let test = "a_copy_of_holes_stays_sparse";
    if !have(test, &["nbdcopy", "qemu-img"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[256], &[]);
        let image = directory.join("image.raw");
        sparse(&image, 200 * MIB);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let uri = daemon.uri("disk0.img");
        must(tool("nbdcopy").arg("--flush").arg(&image).arg(&uri));
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri];
        must(tool("qemu-img").args(convert));
        let taken = allocated_bytes(&backings[0]);
        assert!(taken < 4 * MIB, "{taken} bytes for 200 MiB of hole");
        let out = directory.join("out.raw");
        must(tool("nbdcopy").arg(&uri).arg(&out));
        let taken = allocated_bytes(&out);
        assert!(taken < 4 * MIB, "{taken} bytes for an empty disk");
        daemon.stop();
    });
}
