//! The permitted dependencies (ARCHITECTURE.md). A dependency in the wrong direction would give the
//! engine access to the operating system, or a protocol access to the cache logic: the simulator
//! could no longer run the code that is shipped.

use std::collections::BTreeMap;
use std::process::Command;

/// A crate and the crates of this workspace that it may use; for its tests, too.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ubcache-format", &[]),
    ("ubcache-env", &["ubcache-format"]),
    ("ubcache-engine", &["ubcache-format", "ubcache-env"]),
    ("ubcache-nbd", &["ubcache-format", "ubcache-env"]),
    ("ubcache-ublk", &["ubcache-format", "ubcache-env"]),
    ("ubcache-vhost", &["ubcache-format", "ubcache-env"]),
    ("ubcache-host", &["ubcache-format", "ubcache-env"]),
    ("ubcache-tls", &["ubcache-format", "ubcache-env"]),
    ("ubcache-objects", &["ubcache-format", "ubcache-env"]),
    (
        "ubcache-sim",
        &[
            "ubcache-format",
            "ubcache-env",
            "ubcache-engine",
            "ubcache-nbd",
            "ubcache-objects",
            "ubcache-ublk",
            "ubcache-vhost",
            "ubcache-offline",
        ],
    ),
    (
        "ubcache-daemon",
        &[
            "ubcache-format",
            "ubcache-env",
            "ubcache-engine",
            "ubcache-nbd",
            "ubcache-objects",
            "ubcache-host",
            "ubcache-tls",
            "ubcache-ublk",
            "ubcache-vhost",
        ],
    ),
    ("ubcache-offline", &["ubcache-format", "ubcache-env"]),
    // A second opinion: it shares nothing with what it is about.
    ("ubcache-model", &[]),
    // The offline tools run on the devices themselves, with no daemon.
    (
        "ubcache-cli",
        &["ubcache-format", "ubcache-env", "ubcache-daemon", "ubcache-offline", "ubcache-host"],
    ),
    // The engine alone is measured in a world of its own.
    (
        "ubcache-bench",
        &[
            "ubcache-format",
            "ubcache-env",
            "ubcache-engine",
            "ubcache-nbd",
            "ubcache-ublk",
            "ubcache-vhost",
        ],
    ),
    (
        "ubcache-torture",
        &[
            "ubcache-format",
            "ubcache-env",
            "ubcache-engine",
            "ubcache-nbd",
            "ubcache-offline",
            "ubcache-sim",
            "ubcache-vhost",
        ],
    ),
    ("xtask", &[]),
];

/// Dependencies that only tests may have: the simulator drives the engine, protocols are tested
/// over real sockets.
const ALLOWED_IN_TESTS: &[(&str, &[&str])] = &[
    ("ubcache-engine", &["ubcache-sim"]),
    ("ubcache-nbd", &["ubcache-host", "ubcache-sim"]),
    ("ubcache-vhost", &["ubcache-host"]),
    ("ubcache-tls", &["ubcache-sim"]),
    ("ubcache-objects", &["ubcache-host", "ubcache-sim"]),
];

/// Crates that make a world: the engine and all below it must not see them.
const OF_THE_REAL_WORLD: &[&str] =
    &["libc", "nix", "rustix", "io-uring", "tokio", "async-io", "mio", "rand", "getrandom"];

fn metadata() -> serde_json::Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

/// Crate → (its dependency, whether only its tests use it).
fn dependencies() -> BTreeMap<String, Vec<(String, bool)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    packages
        .iter()
        .map(|package| {
            let list = package["dependencies"].as_array().into_iter().flatten();
            (
                text(&package["name"]),
                list.map(|it| (text(&it["name"]), it["kind"] == "dev")).collect(),
            )
        })
        .collect()
}

fn row<'a>(table: &'a [(&str, &'a [&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, list)| *list)
}

#[test]
fn dependencies_point_one_way() {
    let all = dependencies();
    for (name, list) in &all {
        let allowed =
            row(ALLOWED, name).unwrap_or_else(|| panic!("{name} is new: give it a row in ALLOWED"));
        let in_tests = row(ALLOWED_IN_TESTS, name).unwrap_or_default();
        for (dependency, dev) in list.iter().filter(|(dependency, _)| all.contains_key(dependency))
        {
            let dependency = dependency.as_str();
            assert!(
                allowed.contains(&dependency)
                    || (*dev && (dependency == name || in_tests.contains(&dependency))),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn the_engine_does_not_see_the_operating_system() {
    let all = dependencies();
    for name in ["ubcache-format", "ubcache-env", "ubcache-engine", "ubcache-nbd"] {
        for (dependency, dev) in &all[name] {
            assert!(
                *dev || !OF_THE_REAL_WORLD.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
        }
    }
}
