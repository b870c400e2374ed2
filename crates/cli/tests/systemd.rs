//! The units and the rule of udev, in a machine that boots: start, `kill -9`, order of boot and
//! shutdown.
//!
//! The kernel of the host need not have NBD: a script stands in for nbd-client
//! (support/machine.rs).
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::devices::Loop;
use support::machine::{Machine, NBD_CLIENT};
use support::{must, tool};

/// Directory of the files of packages.
fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

/// A machine with the program and the files of the package, and a set.
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
    machine.write("usr/sbin/nbd-client", NBD_CLIENT);
    machine.run("ln -s ubcache /usr/bin/ubcached && mkdir -p /var/below /srv/below /srv/above");
    machine
        .run("cd /var/below && ubcache make --bucket 64k --size 64M --label data -C cache -B disk");
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

/// Position of the first line that has these words; lines before it are left out.
fn find(lines: &[String], words: &str) -> usize {
    let found = lines.iter().position(|line| line.contains(words));
    found.unwrap_or_else(|| panic!("no line \"{words}\" in:\n{}", lines.join("\n")))
}

/// All of a life: the file system above is mounted after the device is there, and unmounted before
/// that goes; files of the set are on a file system that is mounted before, and unmounted after.
#[test]
#[ignore = "file systems of FUSE in a machine that boots: see RELEASING.md"]
fn mounted_set_survives_crash_and_reboot() {
    let mut machine = machine();
    machine.write(
        "etc/ubcache/one.env",
        "OPTIONS=-C /srv/below/cache -B /srv/below/disk --nbd unix:/run/ubcache/one.nbd\n",
    );
    machine.write("etc/ubcache/nbd0.nbd", "SOCKET=/run/ubcache/one.nbd\nEXPORT=data\n");
    machine.write(
        "etc/systemd/system/ubcache@one.service.d/files.conf",
        "[Service]\nReadWritePaths=/srv/below\n",
    );
    machine.write(
        "etc/systemd/system/ubcache-nbd@nbd0.service.d/set.conf",
        "[Unit]\nPartOf=ubcache@one.service\nAfter=ubcache@one.service\n",
    );
    machine.write("etc/fstab", "/var/below /srv/below none bind\n");
    machine.run("systemctl enable ubcache@one.service");
    machine.boot();
    machine.run("systemctl start ubcache-nbd@nbd0.service");
    machine.run("mkfs.ext4 -q -O ^has_journal /run/stand-in/nbd0/disk");
    // A path in /dev is left out by systemd in a container, and ext4 is that of FUSE; the rest is
    // as in the unit's comment.
    machine.write(
        "etc/fstab",
        "/var/below /srv/below none bind\n/run/stand-in/nbd0/disk /srv/above fuse.fuse2fs \
         _netdev,x-systemd.requires=ubcache-nbd@nbd0.service 0 0\n",
    );
    machine.power_off();

    machine.boot();
    let lines = machine.journal("0");
    let order = [
        "Mounted srv-below.mount",
        "Started ubcache@one.service",
        "Started ubcache-nbd@nbd0.service",
        "Mounted srv-above.mount",
    ];
    let places = order.map(|words| find(&lines, words));
    assert!(places.is_sorted(), "{places:?}\n{}", lines.join("\n"));
    machine.run("echo before > /srv/above/file && sync /srv/above/file");

    // `kill -9`: everything above is taken down and put up again.
    let daemon = "systemctl show -P MainPID ubcache@one.service";
    let before = machine.run(daemon);
    machine.kill("ubcache@one.service");
    machine.until("[ $(systemctl show -P NRestarts ubcache@one.service) = 1 ]");
    for unit in ["ubcache@one.service", "ubcache-nbd@nbd0.service", "srv-above.mount"] {
        machine.until(&format!("systemctl is-active {unit}"));
    }
    assert_ne!(machine.run(daemon), before);
    assert_eq!(machine.run("cat /srv/above/file"), "before\n");
    machine.run("echo after > /srv/above/file && sync /srv/above/file");
    let status = machine.run("ubcache status --json");
    assert!(status.contains("\"health\": \"healthy\""), "{status}");
    machine.power_off();

    machine.boot();
    let lines = machine.journal("-1");
    let begin = find(&lines, "Unmounting srv-above.mount");
    let last = lines.iter().rposition(|line| line.contains("Unmounting srv-above.mount"));
    let lines = &lines[last.unwrap_or(begin)..];
    let order = [
        "Unmounted srv-above.mount",
        "Stopped ubcache-nbd@nbd0.service",
        "Stopped ubcache@one.service",
        "Unmounted srv-below.mount",
    ];
    let places = order.map(|words| find(lines, words));
    assert!(places.is_sorted(), "{places:?}\n{}", lines.join("\n"));
    let unclean = lines.iter().find(|line| line.contains("not cleanly"));
    assert_eq!(unclean, None);
    assert_eq!(machine.run("cat /srv/above/file"), "after\n");

    // Another set is started by its first client.
    machine.run(
        "cd /var/lib/ubcache && ubcache make --bucket 64k --size 64M --label more -C c -B d && \
         echo 'OPTIONS=-C /var/lib/ubcache/c -B /var/lib/ubcache/d' > /etc/ubcache/two.env && \
         systemctl start ubcache@two.socket",
    );
    let info = machine.run("nbdinfo --size 'nbd+unix:///more?socket=/run/ubcache/two.nbd'");
    assert_eq!(info.trim(), ((64 << 20) - 8192).to_string());
    machine.run("systemctl is-active ubcache@two.service && systemctl is-active srv-above.mount");
}

/// The rule of bcache-tools, which comes after ours, gives every device of a set to the kernel,
/// except those of sets that are claimed.
#[test]
fn rule_of_udev_names_devices_and_claims_sets() {
    let machine = machine();
    let (file, rule) = (machine.root.with_file_name("file"), "lib/udev/rules.d/69-bcache.rules");
    let kernels = "ENV{ID_FS_TYPE}==\"bcache\", ENV{GIVEN_TO_KERNEL}=\"1\"\n";
    machine.write(rule, format!("SUBSYSTEM==\"block\", {kernels}"));
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
