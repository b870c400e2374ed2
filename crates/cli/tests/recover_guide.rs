//! The guide to recovery (docs/guide/recover.md): its commands, in its order, on sets that are
//! broken.

#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Daemon, make_set, scratch, sha256_of, text, ubcache};

/// The commands of the guide's blocks, a list for each block.
fn blocks() -> Vec<Vec<String>> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/recover.md");
    let section = std::fs::read_to_string(guide).expect("a guide");
    let blocks = section.split("```\n").skip(1).step_by(2);
    let command = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    blocks
        .map(|block| block.lines().map(command).filter(|line| !line.is_empty()).collect())
        .collect()
}

/// Runs a command of the guide in a directory that has the files `CACHE` and `DISK`; returns its
/// output.
fn run(directory: &Path, command: &str, code: i32) -> String {
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("ubcache"), "{command}");
    let output = ubcache().args(words).current_dir(directory).output().expect("ubcache runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command}\n{said}");
    said
}

/// A set that the Linux driver left behind a power cut; the digest of its volume.
fn a_set(directory: &Path) -> String {
    let case =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures/writeback-crash");
    for (name, file) in [("CACHE", "cache.img.xz"), ("DISK", "backing.img.xz")] {
        let packed = std::fs::read(case.join(file)).expect("an image");
        let mut bytes = Vec::new();
        let mut reader = lzma_rust2::XzReader::new(packed.as_slice(), false);
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("a whole image");
        std::fs::write(directory.join(name), bytes).expect("room");
    }
    let manifest = std::fs::read(case.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    manifest["devices"][0]["sha256"].as_str().expect("a digest").to_owned()
}

/// Content of the disk behind the superblock, as `losetup --offset 8192` shows it.
fn volume_on_the_disk(directory: &Path) -> String {
    let bytes = std::fs::read(directory.join("DISK")).expect("the disk").split_off(8192);
    std::fs::write(directory.join("volume"), bytes).expect("room");
    sha256_of(&directory.join("volume"))
}

fn damage(directory: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(directory.join("CACHE")).expect("the cache");
    change(&mut bytes);
    std::fs::write(directory.join("CACHE"), bytes).expect("room");
}

/// Every block, and the exit codes of its commands when the set is damaged; nothing for the block
/// that is not for that.
const DAMAGED: [Option<&[i32]>; 5] =
    [Some(&[0, 0]), Some(&[1]), None, Some(&[1]), Some(&[1, 1, 0, 0])];

#[test]
fn an_undamaged_set_goes_to_the_disk() {
    let directory = scratch();
    let directory = directory.path();
    let digest = a_set(directory);
    let blocks = blocks();
    assert_eq!(blocks.len(), DAMAGED.len(), "{blocks:?}");
    for command in blocks.iter().take(3).flatten() {
        run(directory, command, 0);
    }
    assert_eq!(volume_on_the_disk(directory), digest);
}

#[test]
fn a_damaged_set_is_read_and_repaired() {
    let directory = scratch();
    let directory = directory.path();
    a_set(directory);
    let map = ubcache()
        .args(["dump", "CACHE", "--what", "btree", "--json"])
        .current_dir(directory)
        .output();
    let lines = String::from_utf8(map.expect("it runs").stdout).expect("text");
    let leaf: Value = lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|line: &Value| line["type"] == "node" && line["level"] == 0)
        .expect("a leaf");
    let sector = leaf["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize;
    damage(directory, |bytes| bytes[sector * 512 + 40] ^= 1);
    // No version of the leaf's extents is left: in place, they are dropped only on request.
    let before = sha256_of(&directory.join("CACHE"));
    let said = run(directory, "ubcache repair CACHE -B DISK --in-place --confirm CACHE", 2);
    assert!(said.contains("no version of the cached data was found"), "{said}");
    assert_eq!(sha256_of(&directory.join("CACHE")), before, "nothing was written");
    for (commands, codes) in blocks().iter().zip(DAMAGED) {
        let Some(codes) = codes else { continue };
        assert_eq!(commands.len(), codes.len(), "{commands:?}");
        for (command, code) in commands.iter().zip(codes) {
            let said = run(directory, command, *code);
            if command.starts_with("ubcache check CACHE") {
                assert!(said.contains("DAMAGED") && said.contains("`ubcache repair"), "{said}");
            }
        }
    }
    let report = std::fs::read(directory.join("repair.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert!(report["kept_sectors"].as_u64().is_some_and(|kept| kept > 0), "{report}");
    assert!(report["uncertain"].as_array().is_some_and(|list| !list.is_empty()), "{report}");
    assert!(std::fs::metadata(directory.join("rescued.img")).is_ok_and(|file| file.len() > 0));
}

/// The superblock is gone: nothing is lost, and the last block is all that is needed.
#[test]
fn overwritten_superblock_is_found_again_without_loss() {
    let directory = scratch();
    let directory = directory.path();
    let digest = a_set(directory);
    damage(directory, |bytes| bytes[4096..8192].fill(0));
    let blocks = blocks();
    run(directory, &blocks[1][0], 1);
    for (command, code) in blocks[4].iter().zip([1, 1, 0, 0]) {
        run(directory, command, code);
    }
    assert_eq!(volume_on_the_disk(directory), digest);
}

/// The cache is gone, and a new one takes its place (5c). A disk that was made to forget its cache
/// is served without one: the guide ended there.
#[test]
fn disk_without_its_cache_gets_a_new_one() {
    let scratch = scratch();
    let directory = scratch.path();
    a_set(directory);
    std::fs::remove_file(directory.join("CACHE")).expect("the cache is lost");
    support::sparse(&directory.join("NEW"), 300 << 20);
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/recover.md");
    let guide = std::fs::read_to_string(guide).expect("a guide");
    let section = guide.split("**5c.").nth(1).expect("a section");
    let section = section.split("**6.").next().expect("its end");
    let spans = section.split('`').skip(1).step_by(2);
    let commands: Vec<String> = spans
        .filter(|span| span.starts_with("ubcache"))
        .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let [forget, discard, make, serve, attach] = &commands[..] else { panic!("{commands:?}") };
    run(directory, forget, 1);
    run(directory, discard, 0);
    run(directory, make, 0);
    assert_eq!(serve, "ubcache serve -C NEW -B DISK");
    let (new, disks) = (directory.join("NEW"), [directory.join("DISK")]);
    let daemon = Daemon::start("pool", directory, &new, &disks, &[]);
    let state = || daemon.status()["sets"][0]["volumes"][0]["state"].clone();
    assert_eq!(state(), "no cache");
    run(directory, &format!("{attach} --control {}", text(&daemon.control)), 0);
    assert_eq!(state(), "clean");
    daemon.stop();
}

/// Superblock and journal are gone: the message of `repair` was that `repair` would find the
/// superblock again.
#[test]
fn unrecoverable_superblock_is_reported_as_lost() {
    let directory = scratch();
    let directory = directory.path();
    a_set(directory);
    damage(directory, |bytes| bytes[4096..8192].fill(0));
    for arguments in ["--dry-run", "--out new.img"] {
        let said = run(directory, &format!("ubcache repair CACHE {arguments}"), 1);
        assert!(said.contains("with -B") && !said.contains("finds the superblock"), "{said}");
    }
    damage(directory, |bytes| bytes[..4 << 20].fill(0));
    for arguments in ["--dry-run", "--out new.img"] {
        let said = run(directory, &format!("ubcache repair CACHE -B DISK {arguments}"), 1);
        assert!(said.contains("step 5c") && !said.contains("finds the superblock"), "{said}");
    }
    assert!(!directory.join("new.img").exists());
}

/// A lost volume table was a warning, and a repair in place wrote a new one over the only hint at
/// whose the dirty data is.
#[test]
fn in_place_repair_refuses_dirty_data_without_an_owner() {
    let directory = scratch();
    let directory = directory.path();
    a_set(directory);
    let lines = ubcache().args(["dump", "CACHE", "--json"]).current_dir(directory).output();
    let lines = String::from_utf8(lines.expect("it runs").stdout).expect("text");
    let line = |wanted: &dyn Fn(&Value) -> bool| -> Value {
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| wanted(line)).expect("such a line")
    };
    let sector =
        |line: &Value| line["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize;
    let leaf = sector(&line(&|line| line["type"] == "node" && line["level"] == 0));
    let table = sector(&line(&|line| line["type"] == "volume_table"));
    damage(directory, |bytes| bytes[table * 512..table * 512 + 4096].fill(0));
    let said = run(directory, "ubcache check CACHE", 1);
    assert!(said.contains("slot-lost"), "{said}");
    run(directory, "ubcache repair CACHE --out without.img", 1);
    let said = run(directory, "ubcache check without.img", 1);
    assert!(said.contains("slot-lost"), "{said}");
    damage(directory, |bytes| bytes[leaf * 512 + 40] ^= 1);
    let before = sha256_of(&directory.join("CACHE"));
    let command = "ubcache repair CACHE --in-place --drop-uncertain --confirm CACHE";
    let said = run(directory, command, 2);
    assert!(said.contains("volume table") && said.contains("-B"), "{said}");
    let other = "ubcache repair CACHE --in-place --use-uncertain --confirm CACHE";
    run(directory, other, 2);
    assert_eq!(sha256_of(&directory.join("CACHE")), before, "nothing was written");
    run(directory, "ubcache repair CACHE --out copy.img", 1);
    run(directory, &format!("{command} -B DISK"), 1);
    // No older table has the slot. The data stays, and the report says so.
    let said = run(directory, "ubcache check CACHE", 1);
    assert!(said.contains("slot-lost") && said.contains("DAMAGED: 1 error"), "{said}");
}

/// The volume table is gone, and all older ones: with all disks named and --all-disks, all data is
/// found again.
#[test]
fn lost_volume_table_is_rebuilt_from_the_disks() {
    let directory = scratch();
    let directory = directory.path();
    let digest = a_set(directory);
    let lines = ubcache()
        .args(["dump", "CACHE", "--what", "uuids", "--json"])
        .current_dir(directory)
        .output();
    let lines = String::from_utf8(lines.expect("it runs").stdout).expect("text");
    let table: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    let at = table["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize * 512;
    damage(directory, |bytes| bytes[at..at + 4096].fill(0));
    let said = run(directory, "ubcache repair CACHE -B DISK --dry-run", 1);
    assert!(said.contains("slot 0 may be that of") && said.contains("--all-disks"), "{said}");
    // Not unasked: there might be another disk.
    let refused = "ubcache repair CACHE -B DISK --in-place --confirm CACHE";
    assert!(run(directory, refused, 2).contains("--all-disks"));
    run(directory, "ubcache repair CACHE -B DISK --out without.img", 1);
    assert!(run(directory, "ubcache check without.img", 1).contains("slot-lost"));
    run(directory, "ubcache repair CACHE --all-disks --out none.img", 2);
    let said = run(directory, "ubcache repair CACHE -B DISK --all-disks --out new.img --json", 1);
    assert!(said.contains("\"slots_by_choice\": 1"), "{said}");
    run(directory, "ubcache check new.img -B DISK", 0);
    run(directory, &format!("{refused} --all-disks"), 1);
    run(directory, "ubcache check CACHE -B DISK", 0);
    run(directory, "ubcache recover -C CACHE -B DISK --detach", 0);
    assert_eq!(volume_on_the_disk(directory), digest);
}

/// Two disks, each with dirty data in the cache: its owner is ambiguous, so none of it is assigned.
/// One lost slot leaves no choice.
#[test]
fn ambiguous_slots_are_not_assigned() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, disks) = make_set(directory, &[16, 24], &[]);
    // A device that is slow just now would be bypassed, and an idle one written to.
    let always = ["congested_write_threshold_us=0", "writeback_running=0"];
    let always = always.map(|setting| ["--set", setting]).concat();
    let daemon = Daemon::start(
        "pool",
        directory,
        &cache,
        &disks,
        &[&["--mode", "writeback"], always.as_slice()].concat(),
    );
    for (disk, byte) in [("disk0.img", 1), ("disk1.img", 2)] {
        daemon.client(disk).write(65536, &[byte; 65536], true).expect("a write");
    }
    assert_eq!(
        [0, 1].map(|volume| daemon.number(volume, "/dirty_bytes")),
        [65536; 2],
        "{}",
        daemon.status()
    );
    daemon.kill();
    let cat = |cache: &str, disk: &str| {
        let output =
            ubcache().args(["cat", "-C", cache, "-B", disk]).current_dir(directory).output();
        output.expect("it runs").stdout
    };
    let image = text(&cache);
    let before = ["disk0.img", "disk1.img"].map(|disk| cat(image, disk));
    assert!(
        before
            .iter()
            .all(|volume| volume.len() > 1 << 20 && volume.contains(&2) != volume.contains(&1))
    );
    let whole = std::fs::read(&cache).expect("the cache");
    let forget = |disks: &[&str]| {
        let mut bytes = whole.clone();
        for disk in disks {
            let uuid = std::fs::read(directory.join(disk)).expect("the disk")[4096 + 40..4096 + 56]
                .to_vec();
            bytes
                .chunks_mut(128)
                .filter(|slot| slot.starts_with(&uuid))
                .for_each(|slot| slot.fill(0));
        }
        std::fs::write(&cache, bytes).expect("room");
    };
    let report = |arguments: &str| -> (u64, usize) {
        let said = run(directory, &format!("ubcache repair {image} --json {arguments}"), 1);
        let report: Value =
            serde_json::from_str(said.split("ubcache: ").next().unwrap_or_default()).expect("JSON");
        let number = report["slots_by_choice"].as_u64().expect("a number");
        (number, report["without_slot"].as_array().expect("a list").len())
    };
    forget(&["disk0.img"]);
    assert_eq!(report("-B disk0.img disk1.img --dry-run"), (0, 1));
    assert_eq!(report("-B disk0.img disk1.img --all-disks --out one.img"), (1, 0));
    assert_eq!(["disk0.img", "disk1.img"].map(|disk| cat("one.img", disk)), before);
    forget(&["disk0.img", "disk1.img"]);
    assert_eq!(report("-B disk0.img disk1.img --all-disks --dry-run"), (0, 2));
    // The unnamed disk does exist, so the statement is wrong, and there are two volumes with data.
    assert_eq!(report("-B disk1.img --all-disks --out two.img"), (0, 1));
    assert!(run(directory, "ubcache check two.img", 1).contains("slot-lost"));
}
