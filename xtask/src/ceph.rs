//! `cargo xtask ceph`: the test over an image of Ceph, which is no part of the others. It installs
//! what it takes, some 100 MB, and needs root.

use std::path::Path;
use std::process::Command;

/// A program, and the package of Debian that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("rbd", "ceph-common"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdcopy", "libnbd-bin"),
];

/// The driver for RBD of QEMU, below a directory of an architecture, and its package.
const DRIVER: (&str, &str) = ("qemu/block-rbd.so", "qemu-block-extra");

/// Packages that this machine lacks.
fn missing(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    let directories = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut places = directories.map(|entry| entry.path()).chain([Path::new("/usr/lib").into()]);
    if !places.any(|directory| directory.join(DRIVER.0).is_file()) {
        missing.push(DRIVER.1);
    }
    missing
}

/// Installs what is missing by `install`, and runs the test.
pub fn run(cargo: &str, has: impl Fn(&str) -> bool, install: impl Fn(&str) -> bool) -> bool {
    let missing = missing(has);
    if !missing.is_empty() && !install(&missing.join(" ")) {
        return false;
    }
    let mut test = Command::new(cargo);
    test.args(["test", "-p", "ubcache-cli", "--test", "ceph"]);
    test.args(["--", "--ignored", "--nocapture"]);
    test.status().is_ok_and(|status| status.success())
}
