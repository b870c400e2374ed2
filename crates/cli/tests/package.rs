//! The package for Debian: made, checked by lintian, installed, used, upgraded, removed and purged
//! in a Debian of its own; and the manual pages.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::machine::Machine;
use support::{must, names_in, scratch, text, tool};

/// Root of the workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Makes the package of the program under test.
fn package(directory: &Path, version: &str) -> PathBuf {
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let file = directory.join(format!("ubcache_{version}.deb"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace()).args(["run", "-q", "-p", "xtask", "--", "package", "--fast"]);
    cargo.args(["--profile", profile, "--deb-version", version, "--output", text(&file)]);
    // Variables that cargo sets for this test would make build scripts run again.
    for (name, _) in std::env::vars().filter(|(name, _)| {
        ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    }) {
        cargo.env_remove(name);
    }
    must(&mut cargo);
    file
}

fn put(machine: &Machine, package: &Path, name: &str) {
    std::fs::copy(package, machine.root.join(name)).expect("room");
}

#[test]
#[ignore = "boots a Debian, in minutes: cargo test -p ubcache-cli --test package -- --ignored"]
fn package_is_installed_used_upgraded_and_purged() {
    let directory = scratch();
    let (new, old) = (package(directory.path(), "0.1.0-1"), directory.path().join("old.deb"));
    // The same package as an older version.
    let tree = directory.path().join("old");
    must(tool("dpkg-deb").arg("--raw-extract").arg(&new).arg(&tree));
    must(
        tool("sed")
            .args(["-i", "s/^Version: .*/Version: 0.0.9-1/"])
            .arg(tree.join("DEBIAN/control")),
    );
    must(tool("dpkg-deb").args(["-Znone", "--build"]).arg(&tree).arg(&old));
    let missing = "lintian, mandoc: `cargo xtask packages` installs them";
    assert!(support::is_installed("lintian") && support::is_installed("mandoc"), "{missing}");
    let mut lintian = tool("lintian");
    must(
        lintian.args(["--fail-on", "error", "--allow-root", "--tag-display-limit", "0"]).arg(&new),
    );
    let pages = workspace().join("target/package/man");
    for page in names_in(&pages) {
        must(tool("mandoc").args(["-T", "lint", "-W", "warning"]).arg(pages.join(page)));
    }

    let mut machine = Machine::new();
    let before = machine.run("dpkg-query -W");
    put(&machine, &old, "old.deb");
    put(&machine, &new, "new.deb");
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
        "/lib/systemd/system/ubcached.service",
        "/lib/udev/rules.d/68-ubcache.rules",
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
    machine.run("kill -9 $(systemctl show -P MainPID ubcached.service)");
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
