//! `make` and `show` against bcache-tools: each side reads what the other has written.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::process::Command;

use support::{have, make_set, must, run, scratch, skipped, sparse, text, tool, ubcache};

/// A loop device for a file, detached at the end.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Loop> {
        let output = tool("losetup").args(["-f", "--show"]).arg(file).output().ok()?;
        output
            .status
            .success()
            .then(|| Loop(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).output();
    }
}

/// Output of our command and of bcache-super-show for a device; both have to be equal.
fn both_show(device: &Path) -> String {
    let theirs = must(tool("bcache-super-show").arg(device));
    let ours = must(ubcache().arg("show").arg(device));
    assert_eq!(ours, theirs, "{}", device.display());
    ours
}

#[test]
fn bcache_super_show_reads_what_make_writes() {
    if !have("bcache_super_show_reads_what_make_writes", &["bcache-super-show"]) {
        return;
    }
    for (options, words) in [
        (
            &[][..],
            &[
                "sb.version\t\t1 [backing device]",
                "dev.sectors_per_block\t8",
                "0 \
                [writethrough]",
            ][..],
        ),
        (&["--block", "512", "--writeback"], &["dev.sectors_per_block\t1", "1 [writeback]"]),
        (
            &["--label", "my disk", "--data-offset", "2048"],
            &["my%20disk", "sb.version\t\t4", "first_sector\t2048"],
        ),
    ] {
        let directory = scratch();
        let (cache, backings) = make_set(directory.path(), &[16], options);
        let shown = both_show(&cache);
        assert!(shown.contains("adaptive") && shown.contains("0 [lru]"), "the default: {shown}");
        let shown = both_show(&backings[0]);
        for word in words {
            assert!(shown.contains(word), "\"{word}\" is missing in:\n{shown}");
        }
    }
    for (policy, shown) in [("fifo", "1 [fifo]"), ("random", "2 [random]")] {
        let directory = scratch();
        let options = ["--cache_replacement_policy", policy, "--discard"];
        let (cache, _) = make_set(directory.path(), &[], &options);
        let text = both_show(&cache);
        assert!(!text.contains("adaptive"), "{text}");
        assert!(text.contains(shown) && text.contains("dev.cache.discard\tyes"), "{text}");
    }
}

#[test]
fn show_reads_what_make_bcache_writes() {
    let test = "show_reads_what_make_bcache_writes";
    if !have(test, &["make-bcache", "bcache-super-show", "losetup"]) {
        return;
    }
    let directory = scratch();
    for (role, options) in [
        ("-C", &["--bucket", "64k"][..]),
        ("-B", &["--writeback", "--data-offset", "64"]),
        ("-B", &[]),
    ] {
        let file = directory.path().join("device.img");
        sparse(&file, 64 << 20);
        let Some(device) = Loop::new(&file) else {
            skipped(test, "no loop devices here");
            return;
        };
        must(tool("make-bcache").args(options).args([role, &device.0]));
        both_show(Path::new(&device.0));
        both_show(&file);
        let refused = run(&["make", role, &device.0]);
        assert_eq!(
            refused.status.code(),
            Some(1),
            "an existing superblock is not overwritten unasked"
        );
        must(ubcache().args(["make", "--bucket", "64k", "--wipe-bcache", role, &device.0]));
        both_show(Path::new(&device.0));
        must(tool("wipefs").args(["-a", &device.0]));
    }
}

#[test]
fn make_prints_the_new_superblocks() {
    let directory = scratch();
    let (cache, disk) = (directory.path().join("c.img"), directory.path().join("d.img"));
    let uuid = "0f0e0d0c-0b0a-0908-0706-050403020100";
    let sizes = ["--cache-size", "600m", "--bdev-size", "1g", "--cset-uuid", uuid, "-l", "data"];
    let said = must(ubcache().arg("make").args(sizes).arg("-C").arg(&cache).arg("-B").arg(&disk));
    for line in [
        "Type\t\t\tcache",
        "Type\t\t\tdata",
        &format!("Set UUID:\t\t{uuid}"),
        "nbuckets:\t\t1200",
        "block_size_in_sectors:\t8",
        "bucket_size_in_sectors:\t1024",
        "first_bucket:\t\t1",
        "Label\t\t\tdata",
        "data_offset_in_sectors:\t16",
    ] {
        assert!(said.lines().any(|found| found == line), "\"{line}\" is missing in:\n{said}");
    }
    assert_eq!(std::fs::metadata(&disk).expect("the new file").len(), 1 << 30);
    let json = must(ubcache().args(["make", "--json", "--wipe-bcache", "-B"]).arg(&disk));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["devices"][0]["data_offset_bytes"], 8192);
    let json = must(ubcache().args(["show", "--json"]).arg(&cache));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["cset.uuid"], uuid);
    assert_eq!(json["dev.cache.total_sectors"], 1_228_800);
}

#[test]
fn make_refuses_a_device_with_data() {
    let directory = scratch();
    let disk = directory.path().join("d.img");
    for (at, magic, name) in [
        (1080, &[0x53_u8, 0xef][..], "ext4"),
        (0, b"XFSB", "XFS"),
        (65_600, b"_BHRfS_M", "btrfs"),
        (512, b"EFI PART", "GPT"),
    ] {
        sparse(&disk, 64 << 20);
        let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, magic, at).expect("room");
        for options in [&[][..], &["--wipe-bcache"]] {
            let output = ubcache()
                .arg("make")
                .args(options)
                .args(["-B", text(&disk)])
                .output()
                .expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(name) && said.contains("--force"), "{said}");
        }
        must(ubcache().args(["make", "--force", "-B"]).arg(&disk));
        assert!(run(&["show", text(&disk)]).status.success());
    }
}

#[test]
fn a_set_that_is_made_again_with_its_uuid_has_an_empty_journal() {
    let directory = scratch();
    let uuid = ["--cset-uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f"];
    let (cache, backings) = make_set(directory.path(), &[16], &uuid);
    // Or the backing device has the data soon.
    let options = ["--mode", "writeback", "--set", "writeback_running=0"];
    let daemon = support::Daemon::start("pool", directory.path(), &cache, &backings, &options);
    daemon.client("disk0.img").write(0, &[7; 4096], true).expect("a write");
    daemon.kill();
    must(
        ubcache()
            .args(["make", "--bucket", "64k", "--force"])
            .args(uuid)
            .arg("-C")
            .arg(&cache)
            .arg("-B")
            .arg(&backings[0]),
    );
    let daemon = support::Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let mut content = vec![1; 4096];
    daemon.client("disk0.img").read(0, &mut content).expect("a read");
    assert!(content.iter().all(|byte| *byte == 0), "what the old set had cached is gone");
    daemon.stop();
}
