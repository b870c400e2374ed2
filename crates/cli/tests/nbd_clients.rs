//! Disk images in and out: nbdcopy, nbdinfo, qemu-io, qemu-img.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::{Daemon, each_io, have, make_set, must, sha256_of, sparse, text, tool};

/// A disk image with a real file system in it.
fn disk_image(directory: &Path, mib: u64) -> PathBuf {
    let image = directory.join("image.raw");
    sparse(&image, mib << 20);
    let tree = if Path::new("/usr/share/doc").is_dir() { "/usr/share/doc/libc6" } else { "/etc" };
    let tree = if Path::new(tree).is_dir() { tree } else { "/usr/include" };
    must(tool("mkfs.ext4").args(["-q", "-F", "-d", tree]).arg(&image));
    image
}

/// Makes a set whose only volume has exactly `mib` MiB.
fn set_for_image(directory: &Path, mib: u64) -> (PathBuf, Vec<PathBuf>) {
    let (cache, backings) = make_set(directory, &[mib], &["--block", "512"]);
    sparse(&backings[0], (mib << 20) + 8192);
    must(
        support::ubcache()
            .args(["make", "--block", "512", "--label", "data", "-B"])
            .arg(&backings[0]),
    );
    (cache, backings)
}

#[test]
fn nbdcopy_brings_an_image_in_and_out() {
    let test = "nbdcopy_brings_an_image_in_and_out";
    if !have(test, &["nbdcopy", "mkfs.ext4"]) {
        return;
    }
    each_io(test, |io, directory| {
        let image = disk_image(directory, 96);
        let (cache, backings) = set_for_image(directory, 96);
        let expected = sha256_of(&image);
        for mode in ["writeback", "writethrough"] {
            let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", mode]);
            must(tool("nbdcopy").arg("--flush").arg(&image).arg(daemon.uri("data")));
            let out = directory.join("out.raw");
            must(tool("nbdcopy").arg(daemon.uri("data")).arg(&out));
            assert_eq!(sha256_of(&out), expected, "in mode {mode}");
            daemon.stop();
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            must(tool("nbdcopy").arg(daemon.uri("data")).arg(&out));
            assert_eq!(sha256_of(&out), expected, "in mode {mode}, after a restart");
            daemon.stop();
        }
    });
}

#[test]
fn nbdinfo_lists_every_export() {
    let test = "nbdinfo_lists_every_export";
    if !have(test, &["nbdinfo"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 32], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let list = must(tool("nbdinfo").args(["--list", "--json"]).arg(daemon.uri("")));
        let list: serde_json::Value = serde_json::from_str(&list).expect("nbdinfo prints JSON");
        let exports = list["exports"].as_array().expect("a list of exports");
        assert_eq!(exports.len(), 2, "{list:#}");
        for (export, (name, mib)) in exports.iter().zip([("disk0.img", 16_u64), ("disk1.img", 32)])
        {
            assert_eq!(export["export-name"], name);
            assert_eq!(export["export-size"], (mib << 20) - 8192);
            for flag in
                ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"]
            {
                assert_eq!(export[flag], true, "{flag} of {name}");
            }
            assert_eq!(export["is_read_only"], false);
        }
        daemon.stop();

        let daemon = Daemon::start(io, directory, &cache, &backings, &["--read-only"]);
        let info = must(tool("nbdinfo").arg("--json").arg(daemon.uri("disk0.img")));
        let info: serde_json::Value = serde_json::from_str(&info).expect("nbdinfo prints JSON");
        assert_eq!(info["exports"][0]["is_read_only"], true);
        daemon.stop();
    });
}

#[test]
fn qemu_sees_the_raw_content() {
    let test = "qemu_sees_the_raw_content";
    if !have(test, &["qemu-img", "qemu-io", "nbdcopy", "mkfs.ext4"]) {
        return;
    }
    each_io(test, |io, directory| {
        let image = disk_image(directory, 48);
        let (cache, backings) = set_for_image(directory, 48);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let uri = daemon.uri("data");
        must(tool("qemu-img").args([
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            text(&image),
            &uri,
        ]));
        must(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw", text(&image), &uri]));
        let both = [
            "write -P 0x5a 1M 64k",
            "write -z 3M 1M",
            "discard 8M 1M",
            "write -P 0x33 5632 512",
            "flush",
        ];
        for target in [text(&image), &uri] {
            let mut command = tool("qemu-io");
            command.args(["-f", "raw", "-d", "unmap"]);
            // A discarded range may read as anything: it is written again.
            both.iter().chain(&["write -z 8M 1M"]).for_each(|line| {
                command.args(["-c", line]);
            });
            must(command.arg(target));
        }
        let reads = must(
            tool("qemu-io")
                .args(["-f", "raw", "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0 3M 1M", "-c"])
                .args(["read -P 0x33 5632 512", &uri]),
        );
        assert!(!reads.contains("fail"), "{reads}");
        must(tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw", text(&image), &uri]));
        daemon.stop();
    });
}
