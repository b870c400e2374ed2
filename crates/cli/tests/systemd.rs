//! The units and the rule of udev. A machine that boots with them, mounts a file system of a set,
//! crashes and ends: `package.rs`, and tests/kernel-vm, case 19.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::devices::Loop;
use support::machine::Machine;
use support::{must, tool};

/// Directory of the files of packages.
fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

/// A machine with the program and the files of the package.
fn machine() -> Machine {
    let machine = Machine::new();
    let file = |path: &str| std::fs::read(packaging().join(path)).expect("a file of the package");
    let program = std::fs::read(env!("CARGO_BIN_EXE_ubcache")).expect("the program");
    machine.write("usr/bin/ubcache", program);
    machine.write("usr/lib/tmpfiles.d/ubcache.conf", file("systemd/tmpfiles.conf"));
    machine.write("lib/udev/rules.d/68-ubcache.rules", file("udev/68-ubcache.rules"));
    for unit in units() {
        machine.write(&format!("lib/systemd/system/{unit}"), file(&format!("systemd/{unit}")));
    }
    machine.run("ln -s ubcache /usr/bin/ubcached");
    machine
}

fn units() -> Vec<String> {
    let mut names = support::names_in(&packaging().join("systemd"));
    names.retain(|name| [".service", ".socket", ".timer"].iter().any(|kind| name.ends_with(kind)));
    names
}

/// systemd-analyze exits with 0 whatever it says.
#[test]
fn units_have_no_fault() {
    let machine = machine();
    machine.write("etc/ubcache/x.env", "OPTIONS=\n");
    for unit in units() {
        let instance = unit.replace('@', "@x");
        let output = machine.try_run(&format!("systemd-analyze verify --man=no {instance}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{unit}: {said}");
        // No unit removes the directory of another one when it stops.
        let content = std::fs::read_to_string(packaging().join("systemd").join(&unit));
        let content = content.expect("a unit");
        let shared = content.contains("RuntimeDirectory=ubcache\n");
        assert!(!shared || content.contains("RuntimeDirectoryPreserve=yes\n"), "{unit}");
        if unit.contains("nbd") || !unit.ends_with(".service") {
            continue;
        }
        let path = packaging().join("systemd").join(&unit);
        let mut analyze = tool("systemd-analyze");
        analyze.args(["security", "--offline=true", "--threshold=26"]).arg(path);
        // 2.6 of 10, as docs/guide/install.md says.
        must(&mut analyze);
    }
}

/// The rule of bcache-tools, which comes after ours, gives every device of a set to the kernel,
/// except those of sets that are claimed.
#[test]
fn rule_of_udev_names_devices_and_claims_sets() {
    let machine = machine();
    let (file, rule) = (machine.root.with_file_name("file"), "lib/udev/rules.d/69-bcache.rules");
    let kernels = "ENV{ID_FS_TYPE}==\"bcache\", ENV{GIVEN_TO_KERNEL}=\"1\"\n";
    machine.write(rule, format!("SUBSYSTEM==\"block\", {kernels}"));
    // The rule for devices of users is in force only where it was copied.
    let users = std::fs::read(packaging().join("udev/67-ublk-users.rules")).expect("the rule");
    machine.write("etc/udev/rules.d/67-ublk-users.rules", users);
    machine.run("groupadd --system ublk");
    let words = ["make", "--bucket", "64k", "--size", "64M", "--label", "my data", "-B"];
    must(support::ubcache().args(words).arg(&file));
    let device = Loop::new(&file, &[]).expect("a loop device, for a test of the rule of udev");
    let name = device.0.file_name().expect("a name").to_string_lossy().into_owned();
    let test = format!(
        "mount -o remount,rw /sys && udevadm test --action=change /sys/class/block/{name} 2>&1"
    );
    let shown = must(support::ubcache().args(["show", "--json"]).arg(&file));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let [uuid, set] = ["dev.uuid", "cset.uuid"].map(|name| shown[name].as_str().expect("a UUID"));
    let said = machine.run_with_device(&device.0, &test);
    let of_users = said.lines().filter(|line| line.contains("67-ublk-users.rules"));
    let of_users: Vec<&str> = of_users.collect();
    // A line that can't be read is named with its number.
    assert!(matches!(of_users[..], [read] if read.contains("Reading rules file")), "{of_users:?}");
    for line in [
        "UBCACHE_ROLE=backing".to_owned(),
        format!("UBCACHE_UUID={uuid}"),
        format!("UBCACHE_SET_UUID={set}"),
        "ID_FS_TYPE=bcache".to_owned(),
        "GIVEN_TO_KERNEL=1".to_owned(),
    ] {
        assert!(said.lines().any(|found| found == line), "{line} in:\n{said}");
    }
    for link in [format!("disk/by-uuid/{uuid}"), "disk/by-label/my\\x20data".to_owned()] {
        assert!(said.contains(&format!("/dev/ubcache/{link}")), "{link} in:\n{said}");
    }
    machine.write(&format!("etc/ubcache/claim/{set}"), "");
    let said = machine.run_with_device(&device.0, &test);
    assert!(said.contains("UBCACHE_CLAIMED=1") && said.contains("ID_FS_TYPE=ubcache"), "{said}");
    assert!(!said.contains("GIVEN_TO_KERNEL"), "{said}");
}
