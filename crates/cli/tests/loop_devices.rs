//! Block devices: sets that Debian's make-bcache has made on loop devices are served, and given
//! back in a state that its tools read.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::devices::Loop;
use support::{Daemon, each_io, have, must, pseudo_random, skipped, sparse, tool, ubcache};

fn super_show(device: &Path) -> String {
    must(tool("bcache-super-show").arg(device))
}

#[test]
fn set_of_make_bcache_is_served() {
    let test = "set_of_make_bcache_is_served";
    if !have(test, &["losetup", "make-bcache", "bcache-super-show"]) {
        return;
    }
    each_io(test, |io, directory| {
        let files = [("cache", 64_u64), ("disk", 32), ("disk2", 16)].map(|(name, mib)| {
            let file = directory.join(name);
            sparse(&file, mib << 20);
            file
        });
        let loops: Option<Vec<Loop>> = files.iter().map(|file| Loop::new(file, &[])).collect();
        let Some(loops) = loops else {
            skipped(test, "no loop devices here");
            return;
        };
        let devices: Vec<PathBuf> = loops.iter().map(|device| device.0.clone()).collect();
        must(
            tool("make-bcache")
                .args(["--bucket", "64k", "--block", "512", "-C"])
                .arg(&devices[0])
                .arg("-B")
                .args(&devices[1..])
                .args(["--writeback"]),
        );
        let mut expected = vec![0; 3 << 20];
        pseudo_random(5, &mut expected);
        let names: Vec<String> = devices[1..]
            .iter()
            .map(|device| {
                device.file_name().expect("a device has a name").to_string_lossy().into_owned()
            })
            .collect();

        let daemon = Daemon::start(
            io,
            directory,
            &devices[0],
            &devices[1..],
            &["--set", "writeback_running=0"],
        );
        for (number, name) in names.iter().enumerate() {
            let at = 512 * (1 + number as u64);
            let mut client = daemon.client(name);
            for (index, piece) in expected.chunks(64 << 10).enumerate() {
                client.write(at + (index as u64) * (64 << 10), piece, false).expect("a write");
            }
            client.flush().expect("a flush");
        }
        // Other programs are refused the devices meanwhile.
        let refused =
            ubcache().args(["make", "--force", "-B"]).arg(&devices[1]).output().expect("it runs");
        assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
        daemon.stop();

        let (shown, shown_disk) = (super_show(&devices[0]), super_show(&devices[1]));
        assert!(shown.contains("[match]") && shown.contains("dev.cache.ordered\tyes"), "{shown}");
        assert!(shown_disk.contains("[match]") && shown_disk.contains("2 [dirty]"), "{shown_disk}");

        let daemon = Daemon::start(io, directory, &devices[0], &devices[1..], &[]);
        for (number, name) in names.iter().enumerate() {
            let mut found = vec![0; expected.len()];
            let mut client = daemon.client(name);
            client.read(512 * (1 + number as u64), &mut found).expect("a read");
            assert!(found == expected, "the data of {name} is there after the restart");
        }
        daemon.set("writeback_percent=0");
        daemon.set("writeback_delay=0");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while (0..2).any(|volume| daemon.number(volume, "/dirty_bytes") > 0) {
            assert!(
                std::time::Instant::now() < end,
                "writeback comes to an end: {:#}",
                daemon.status()
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        daemon.stop();
        // Everything is on the backing devices now, behind their superblocks.
        for (number, file) in files[1..].iter().enumerate() {
            let content = std::fs::read(file).expect("the backing file");
            let at = 8192 + 512 * (1 + number);
            assert!(
                content[at..at + expected.len()] == expected,
                "written back to {}",
                file.display()
            );
        }
    });
}

/// A repair in place of a block device, and one to a new image; the set is one that the driver left
/// behind a power cut.
#[test]
fn a_damaged_block_device_is_repaired() {
    let test = "a_damaged_block_device_is_repaired";
    if !have(test, &["losetup"]) {
        return;
    }
    let directory = support::scratch();
    let case =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures/writeback-crash");
    let files = ["cache", "backing"].map(|name| {
        let packed = std::fs::read(case.join(format!("{name}.img.xz"))).expect("an image");
        let mut bytes = Vec::new();
        let mut reader = lzma_rust2::XzReader::new(packed.as_slice(), false);
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("a whole image");
        if name == "cache" {
            bytes[4096..8192].fill(0);
        }
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).expect("room");
        file
    });
    let loops: Option<Vec<Loop>> = files.iter().map(|file| Loop::new(file, &[])).collect();
    let Some(loops) = loops else {
        skipped(test, "no loop devices here");
        return;
    };
    let (cache, disk) = (&loops[0].0, &loops[1].0);
    let run = |arguments: &[&str], code: i32| {
        let output = ubcache().args(arguments).output().expect("ubcache runs");
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let (cache, disk) = (cache.to_str().expect("a path"), disk.to_str().expect("a path"));
    let new = directory.path().join("new");
    run(&["check", cache, "-B", disk], 1);
    run(&["repair", cache, "-B", disk, "--out", new.to_str().expect("a path")], 1);
    run(&["check", new.to_str().expect("a path"), "-B", disk], 0);
    run(&["repair", cache, "-B", disk, "--in-place", "--confirm", cache], 1);
    run(&["check", cache, "-B", disk], 0);
    run(&["repair", cache, "-B", disk, "--dry-run"], 0);
}
