//! The archive for every Linux: its program runs where nothing else is, and its bill of materials
//! is what Cargo.lock says.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Guard, cargo, must, scratch, text, tool, workspace};
use ubcache_cli::nbd_client::Client;

/// Makes the archive, and unpacks it; its tree, in which nothing else is.
fn unpacked(directory: &Path) -> PathBuf {
    let file = directory.join("ubcache.tar.xz");
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let mut make = cargo();
    make.args(["run", "-q", "-p", "xtask", "--", "package", "--tarball", "--fast"]);
    must(make.args(["--profile", profile, "--output", text(&file)]));
    let root = directory.join("root");
    std::fs::create_dir(&root).expect("a directory");
    must(tool("tar").arg("-C").arg(&root).arg("-xf").arg(&file).arg("--strip-components=1"));
    root
}

#[test]
#[ignore = "builds all crates for another target, which takes minutes: see RELEASING.md"]
fn the_archive_runs_in_an_empty_root_and_lists_its_crates() {
    let directory = scratch();
    let root = unpacked(directory.path());
    for file in [
        "bin/ubcached",
        "share/man/man1/ubcache-list.1",
        "share/man/man5/ubcache.toml.5",
        "share/man/man7/ubcache-metrics.7",
        "share/bash-completion/completions/ubcache",
        "share/zsh/site-functions/_ubcache",
        "share/fish/vendor_completions.d/ubcache.fish",
        "lib/systemd/system/ubcached.service",
        "lib/systemd/system/ubcache-nbd@.service",
        "lib/udev/rules.d/68-ubcache.rules",
        "share/ubcache/67-ublk-users.rules",
        "share/doc/ubcache/LICENSE-MIT",
        "share/doc/ubcache/LICENSE-APACHE",
    ] {
        assert!(root.join(file).is_file(), "{file}");
    }
    let units = support::names_in(&workspace().join("packaging/systemd"));
    for unit in units.iter().filter(|unit| unit.contains(".s") && !unit.ends_with(".d")) {
        assert!(root.join("lib/systemd/system").join(unit).is_file(), "{unit}");
    }
    let output = tool("ldd").arg(root.join("bin/ubcache")).output().expect("ldd runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("statically linked") || said.contains("not a dynamic"), "{said}");
    serves_alone(&root);
    bill_is_that_of_the_lock(&root.join("share/doc/ubcache/ubcache.cdx.json"));
}

/// Makes a set, serves it, reads what was written, and stops, in a root with the archive only.
fn serves_alone(root: &Path) {
    let alone = |words: &str| {
        let mut command = tool("chroot");
        command.arg(root).arg("/bin/ubcache").args(words.split_whitespace());
        command
    };
    must(&mut alone("make --bucket 64k --size 64M --label data -C /cache -B /disk"));
    let mut serve = alone("serve -C /cache -B /disk --nbd unix:/data.sock --control /control.sock");
    let mut child = serve.stdout(Stdio::piped()).spawn().expect("it runs");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let _guard = Guard(child);
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("ready")), "it is ready");
    let mut client = Client::connect(&root.join("data.sock"), "data").expect("it serves");
    client.write(4096, &[7; 4096], true).expect("a write");
    let mut read = [0; 4096];
    client.read(4096, &mut read).expect("a read");
    assert_eq!(read, [7; 4096]);
    let status = must(&mut alone("status --control /control.sock"));
    assert!(status.contains("healthy"), "{status}");
    must(&mut alone("stop --control /control.sock"));
    must(&mut alone("check /cache -B /disk"));
}

/// Crates with what identifies them: version, and digest if they come from a registry.
type Crates = BTreeMap<(String, String), Option<String>>;

/// Entries of Cargo.lock.
fn lock() -> Crates {
    let words = std::fs::read_to_string(workspace().join("Cargo.lock")).expect("Cargo.lock");
    let entries = words.split("[[package]]\n").skip(1).map(|entry| {
        let value = |key: &str| {
            let line = entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        ((value("name").expect("a name"), value("version").expect("one")), value("checksum"))
    });
    entries.collect()
}

/// All crates that are linked into the program, with version, licence and digest. A few more are
/// listed: optional ones, which other crates of the workspace would have.
fn bill_is_that_of_the_lock(file: &Path) {
    let words = std::fs::read_to_string(file).expect("a bill of materials");
    assert!(!words.contains(text(&workspace().canonicalize().expect("a path"))), "{words}");
    let bill: Value = serde_json::from_str(&words).expect("JSON");
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["name"], "ubcache-cli");
    let lock = lock();
    let mut listed = Vec::new();
    for component in bill["components"].as_array().expect("components") {
        let of = |key: &str| component[key].as_str().expect("a text").to_owned();
        let id = (of("name"), of("version"));
        let digest = lock.get(&id).unwrap_or_else(|| panic!("{id:?} is not in Cargo.lock"));
        let hash = &component["hashes"][0];
        assert_eq!(hash["content"].as_str(), digest.as_deref(), "{id:?}");
        assert!(digest.is_none() || hash["alg"] == "SHA-256", "{component}");
        let licence = &component["licenses"][0];
        let named = licence["expression"].as_str().or(licence["license"]["id"].as_str());
        assert!(named.is_some_and(|name| !name.is_empty()), "{component}");
        listed.push(format!("{} v{}", id.0, id.1));
    }
    let mut tree = cargo();
    tree.args(["tree", "-p", "ubcache-cli", "--edges", "normal", "--prefix", "none"]);
    tree.args(["--format", "{p}", "--target", &format!("{ARCH}-unknown-linux-musl")]);
    let words = must(tree.arg("--locked"));
    let linked = words.lines().map(|line| line.split(" (").next().unwrap_or(line));
    let missing = |name: &&str| !listed.iter().any(|it| it == name);
    let missing: Vec<&str> =
        linked.filter(|name| !name.starts_with("ubcache-cli ")).filter(missing).collect();
    assert_eq!(missing, [""; 0]);
    assert!(words.lines().count() > 50 && listed.len() < lock.len());
}

const ARCH: &str = std::env::consts::ARCH;
