//! The package for Debian: made, checked by lintian, installed, used, upgraded, removed and purged
//! in a Debian of its own; the manual pages; and the guide to the first hour, from the package to a
//! disk that is mounted at boot.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use support::machine::{Machine, base};
use support::{cargo, must, names_in, scratch, text, tool, workspace};

/// The package of the program under test, which is made once.
static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join(DEB);
    package(&file, "0.1.0-1");
    file
});

const DEB: &str = "ubcache_0.1.0-1_amd64.deb";

/// Makes the package of the program under test.
fn package(file: &Path, version: &str) {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let mut cargo = cargo();
    cargo.args(["run", "-q", "-p", "xtask", "--", "package", "--fast", "--profile", profile]);
    cargo.args(["--deb-version", version, "--output", text(file)]);
    must(&mut cargo);
}

fn put(machine: &Machine, package: &Path, name: &str) {
    std::fs::copy(package, machine.root.join(name)).expect("room");
}

#[test]
fn package_is_installed_used_upgraded_and_purged() {
    let directory = scratch();
    let (new, old) = (MADE.as_path(), directory.path().join("old.deb"));
    // The same package as an older version.
    let tree = directory.path().join("old");
    must(tool("dpkg-deb").arg("--raw-extract").arg(new).arg(&tree));
    must(
        tool("sed")
            .args(["-i", "s/^Version: .*/Version: 0.0.9-1/"])
            .arg(tree.join("DEBIAN/control")),
    );
    must(tool("dpkg-deb").args(["-Znone", "--build"]).arg(&tree).arg(&old));
    let missing = "lintian, mandoc: `cargo xtask packages` installs them";
    assert!(support::is_installed("lintian") && support::is_installed("mandoc"), "{missing}");
    let mut lintian = tool("lintian");
    must(lintian.args(["--fail-on", "error", "--allow-root", "--tag-display-limit", "0"]).arg(new));
    let pages = workspace().join("target/package/man");
    for page in names_in(&pages) {
        must(tool("mandoc").args(["-T", "lint", "-W", "warning"]).arg(pages.join(page)));
    }

    let mut machine = Machine::new();
    let before = machine.run("dpkg-query -W");
    put(&machine, &old, "old.deb");
    put(&machine, new, "new.deb");
    machine.run("dpkg -i /old.deb");
    for file in [
        "/usr/bin/ubcached",
        "/usr/share/man/man1/ubcache-list.1.gz",
        "/usr/share/man/man5/ubcache.toml.5.gz",
        "/usr/share/man/man7/ubcache-metrics.7.gz",
        "/usr/share/bash-completion/completions/ubcache",
        "/usr/share/zsh/vendor-completions/_ubcache",
        "/usr/share/fish/vendor_completions.d/ubcache.fish",
        "/usr/share/doc/ubcache/copyright",
        "/usr/share/doc/ubcache/ubcache.cdx.json",
        "/lib/systemd/system/ubcached.service",
        "/lib/udev/rules.d/68-ubcache.rules",
        "/usr/share/ubcache/67-ublk-users.rules",
        "/etc/ubcache/example.toml.sample",
    ] {
        machine.run(&format!("dpkg -S {file} && test -e {file}"));
    }
    let conffiles = machine.run("dpkg-query -W -f '${Conffiles}' ubcache");
    assert!(conffiles.contains("/etc/ubcache/example.env"), "{conffiles}");

    // Used: the example of the package is the configuration of a set.
    machine.run(
        "mkdir -p /var/lib/ubcache && cd /var/lib/ubcache && \
         ubcache make --bucket 64k --size 64M --label data -C cache -B disk && \
         sed -e 's,^cache = .*,cache = \"/var/lib/ubcache/cache\",' \
         -e 's,^backing = .*,backing = \"/var/lib/ubcache/disk\",' \
         /etc/ubcache/example.toml.sample > /etc/ubcache/data.toml && ubcache config check",
    );
    machine.boot();
    machine.run(
        "systemctl enable --now ubcached.service && ubcache status && cd /var/lib/ubcache && \
         ubcache list cache disk",
    );
    let size = "nbdinfo --size 'nbd+unix:///data?socket=/run/ubcache/data.nbd'";
    machine.run(size);
    let process = machine.run("systemctl show -P MainPID ubcached.service");
    machine.kill("ubcached.service");
    machine.until("[ $(systemctl show -P NRestarts ubcached.service) = 1 ]");
    machine.until("systemctl is-active ubcached.service");
    assert_ne!(machine.run("systemctl show -P MainPID ubcached.service"), process);

    // A changed conffile stays.
    machine.run("echo '# ours' >> /etc/ubcache/example.env && dpkg -i --force-confold /new.deb");
    assert!(machine.run("cat /etc/ubcache/example.env").contains("# ours"));
    assert_eq!(machine.run("dpkg-query -W -f '${Version}' ubcache"), "0.1.0-1");
    machine.run(&format!("systemctl is-active ubcached.service && ubcache status && {size}"));

    machine.run("dpkg -r ubcache");
    machine.run("! test -e /usr/bin/ubcache && test -e /etc/ubcache/data.toml");
    machine.run("! readlink /proc/[0-9]*/exe | grep ubcache");
    machine.run("dpkg -P ubcache");
    // Neither data nor what the administrator wrote is removed.
    machine.run("test -e /var/lib/ubcache/disk && test -e /etc/ubcache/data.toml");
    let left = machine.run("ls /etc/ubcache /var/lib/ubcache && ! test -e /run/ubcache");
    assert!(!left.contains("example"), "{left}");
    assert_eq!(machine.run("dpkg-query -W"), before);
    machine.run(
        "rm -r /etc/ubcache /var/lib/ubcache && ! find / -xdev -path /proc -prune -o -name \
                 '*ubcache*' -print | grep -v '/journal/' | grep .",
    );
}

/// Text of the first block of a kind.
fn block_of(guide: &str, kind: &str) -> String {
    let path = workspace().join("docs/guide").join(guide);
    let words = std::fs::read_to_string(path).expect("a guide");
    let block = words.split(&format!("\n```{kind}\n")).nth(1).expect("a block");
    block.split("\n```").next().expect("its end").to_owned()
}

/// All blocks up to the section without a package, in a virtual machine whose kernel has real disks
/// and NBD; and order at boot and at the end.
#[test]
fn first_hour_leads_from_the_package_to_a_disk_mounted_at_boot() {
    let name = "first_hour_leads_from_the_package_to_a_disk_mounted_at_boot";
    let programs = ["qemu-system-x86_64", "busybox", "cpio", "depmod", "make-bcache", "dmsetup"];
    if !support::have(name, &programs) {
        return;
    }
    let work = scratch();
    let mut case = tool(text(&workspace().join("tests/kernel-vm/run-all")));
    case.arg("21").env("UBCACHE", env!("CARGO_BIN_EXE_ubcache")).env("UBCACHE_DEB", &*MADE);
    case.env("UBCACHE_VM_TREE", base()).env("UBCACHE_VM_WORK", work.path());
    // Other tests run beside it.
    case.env("UBCACHE_VM_START", "600");
    let said = must(&mut case);
    assert!(said.contains("RIGHT"), "{said}");
}

#[test]
fn configuration_of_prometheus_in_the_first_hour_is_right() {
    let machine = Machine::new();
    put(&machine, &MADE, "new.deb");
    machine.run("dpkg-deb --extract /new.deb /");
    let prometheus = scratch();
    let file = prometheus.path().join("prometheus.yml");
    let content = block_of("first-hour.md", "yaml")
        .replace("/usr/share", text(&machine.root.join("usr/share")));
    std::fs::write(&file, content).expect("room");
    must(tool("promtool").args(["check", "config"]).arg(&file));
}
