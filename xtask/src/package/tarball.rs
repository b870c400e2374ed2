//! An archive that runs on every Linux: the program linked statically with musl, and what the
//! package has beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Choice, PARTS, bill, must};

/// Directory of archives.
const ARCHIVES: &str = "target/tarball";

/// Files and folders of the archive: the place there, and the source.
const CONTENT: &[(&str, &str)] = &[
    ("share/bash-completion/completions/ubcache", "target/package/completions/ubcache.bash"),
    ("share/zsh/site-functions/_ubcache", "target/package/completions/_ubcache"),
    ("share/fish/vendor_completions.d/ubcache.fish", "target/package/completions/ubcache.fish"),
    ("lib/systemd/system/ubcached.service", "packaging/systemd/ubcached.service"),
    ("lib/systemd/system/ubcache@.service", "packaging/systemd/ubcache@.service"),
    ("lib/systemd/system/ubcache@.socket", "packaging/systemd/ubcache@.socket"),
    ("lib/systemd/system/ubcache-nbd@.service", "packaging/systemd/ubcache-nbd@.service"),
    (
        "lib/systemd/system/ubcache-nbd@.service.d/ubcached.conf",
        "packaging/systemd/ubcache-nbd@.service.d/ubcached.conf",
    ),
    ("lib/systemd/system/ubcache-scrub.service", "packaging/systemd/ubcache-scrub.service"),
    ("lib/systemd/system/ubcache-scrub.timer", "packaging/systemd/ubcache-scrub.timer"),
    ("lib/tmpfiles.d/ubcache.conf", "packaging/systemd/tmpfiles.conf"),
    ("lib/udev/rules.d/68-ubcache.rules", "packaging/udev/68-ubcache.rules"),
    ("share/ubcache/67-ublk-users.rules", "packaging/udev/67-ublk-users.rules"),
    ("etc/ubcache/example.toml.sample", "packaging/etc/example.toml.sample"),
    ("etc/ubcache/example.env", "packaging/etc/example.env"),
    ("etc/ubcache/example.nbd", "packaging/etc/example.nbd"),
    ("share/doc/ubcache/README.md", "README.md"),
    ("share/doc/ubcache/CHANGELOG.md", "CHANGELOG.md"),
    ("share/doc/ubcache/LICENSE-MIT", "LICENSE-MIT"),
    ("share/doc/ubcache/LICENSE-APACHE", "LICENSE-APACHE"),
    ("share/doc/ubcache/prometheus/ubcache.rules.yml", "contrib/prometheus/ubcache.rules.yml"),
    ("share/doc/ubcache/grafana/ubcache.json", "contrib/grafana/ubcache.json"),
];

/// Makes the archive.
pub fn make(cargo: &str, arguments: &[String]) -> Result<(), String> {
    let choice = Choice::of(arguments);
    let host = super::triple(cargo)?;
    let machine = host.split('-').next().unwrap_or("x86_64");
    let triple = format!("{machine}-unknown-linux-musl");
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "-p", "ubcache-cli", "--bin", "ubcache"]);
    must(build.args(["--profile", choice.profile, "--target", &triple]))?;
    super::parts(cargo, &choice)?;
    let name = format!("ubcache-{}-{machine}-linux", super::version(cargo)?);
    let tree = Path::new(ARCHIVES).join(&name);
    let _ = fs::remove_dir_all(&tree);
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let profile = if choice.profile == "dev" { "debug" } else { choice.profile };
    let program = Path::new(&target).join(&triple).join(profile).join("ubcache");
    copy(&program, &tree.join("bin/ubcache"))?;
    must(Command::new("strip").arg(tree.join("bin/ubcache")))?;
    super::link("ubcache", &tree.join("bin/ubcached"))?;
    for (place, source) in CONTENT {
        copy(Path::new(source), &tree.join(place))?;
    }
    let pages = fs::read_dir(Path::new(PARTS).join("man")).map_err(|error| error.to_string())?;
    for page in pages.flatten().map(|entry| entry.path()) {
        let section = page.extension().unwrap_or_default().to_string_lossy().into_owned();
        let folder = tree.join("share/man").join(format!("man{section}"));
        copy(&page, &folder.join(page.file_name().unwrap_or_default()))?;
    }
    bill::write(cargo, &triple, &tree.join("share/doc/ubcache").join(bill::NAME))?;
    let file = choice.output.map(PathBuf::from);
    let file = file.unwrap_or_else(|| Path::new(ARCHIVES).join(format!("{name}.tar.xz")));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=root:0", "--group=root:0"]);
    tar.args(["--mode=u=rwX,go=rX", &format!("--mtime={}", super::date()), "-C", ARCHIVES]);
    let level = if choice.is_fast { "xz -0" } else { "xz -6" };
    must(tar.args(["--use-compress-program", level, "--file"]).arg(&file).arg(&name))?;
    println!("xtask: {}", file.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let folder = to.parent().unwrap_or(to);
    let copied = fs::create_dir_all(folder).and_then(|()| fs::copy(from, to));
    copied.map(drop).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}
