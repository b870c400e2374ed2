//! `cargo xtask package`: a package for Debian, in target/debian.
//!
//! cargo-deb makes the package, from crates/cli/Cargo.toml; what it needs beside the program is
//! written here: manual pages, completions, a changelog in Debian's form.

use std::path::Path;
use std::process::Command;

use crate::manual;

/// Directory of the parts.
pub const PARTS: &str = "target/package";

/// The program that makes packages: its crate, and the version.
pub const CARGO_DEB: [&str; 2] = ["cargo-deb", "3.8.0"];

/// Makes the package. `--fast` is for the tests: it builds as they are built, in the profile after
/// `--profile`, so that little is built anew, and compresses little.
pub fn run(cargo: &str, arguments: &[String]) -> bool {
    let made = package(cargo, arguments);
    if let Err(why) = &made {
        eprintln!("xtask: package: {why}");
    }
    made.is_ok()
}

fn package(cargo: &str, arguments: &[String]) -> Result<(), String> {
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).map(String::as_str)
    };
    let profile = after("--profile").unwrap_or("release");
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--bin", "ubcache", "--profile", profile]);
    // All crates together have other features than the one that is packed.
    build.args(if has("--fast") {
        &["--workspace", "--example", "man", "--example", "completions"][..]
    } else {
        &["-p", "ubcache-cli"]
    });
    must(&mut build)?;
    let how = if has("--fast") { Examples::Built(profile) } else { Examples::Run(profile) };
    pages(cargo, &Path::new(PARTS).join("man"), how)?;
    example(cargo, "completions", &Path::new(PARTS).join("completions"), how)?;
    let version = version(cargo)?;
    link("ubcache", &Path::new(PARTS).join("ubcached"))?;
    changelog(after("--deb-version").unwrap_or(&format!("{version}-1")))?;
    let here = Path::new("target/tools/bin/cargo-deb");
    let mut deb = Command::new(if here.is_file() { here } else { Path::new("cargo-deb") });
    deb.args(["--no-build", "-p", "ubcache-cli", "--profile", profile]);
    for option in ["--deb-version", "--output"] {
        if let Some(value) = after(option) {
            deb.args([option, value]);
        }
    }
    deb.args(if has("--fast") {
        ["--fast", "--no-dbgsym", "--strip"].as_slice()
    } else {
        &["--dbgsym"]
    });
    // It warns of every file that no build makes.
    must(deb.arg("--quiet"))
}

/// The name by which the program is the daemon of all sets.
fn link(program: &str, name: &Path) -> Result<(), String> {
    let _ = std::fs::remove_file(name);
    std::os::unix::fs::symlink(program, name)
        .map_err(|error| format!("{}: {error}", name.display()))
}

/// Writes the manual pages of commands and of files.
pub fn pages(cargo: &str, directory: &Path, how: Examples<'_>) -> Result<(), String> {
    // Pages of commands that are gone.
    let _ = std::fs::remove_dir_all(directory);
    example(cargo, "man", directory, how)?;
    let written = manual::write(directory, &version(cargo)?, &date());
    written.map_err(|error| format!("{}: {error}", directory.display()))
}

/// Day of the last commit, or of the release.
fn date() -> String {
    let mut git = Command::new("git");
    let shown = git.args(["log", "-1", "--format=%cs"]).output();
    let shown = shown.ok().filter(|output| output.status.success());
    let day = shown.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    day.filter(|day| !day.is_empty()).unwrap_or_else(|| "2026-11-29".to_owned())
}

/// A way to run the examples of crates/cli, which write manual pages and completions.
#[derive(Copy, Clone)]
pub enum Examples<'a> {
    /// By cargo, in that profile.
    Run(&'a str),
    /// The build that is there, of that profile.
    Built(&'a str),
}

fn example(cargo: &str, name: &str, directory: &Path, how: Examples<'_>) -> Result<(), String> {
    let mut run = match how {
        Examples::Run(profile) => {
            let mut run = Command::new(cargo);
            run.args(["run", "--quiet", "-p", "ubcache-cli", "--profile", profile]);
            run.args(["--example", name, "--"]);
            run
        }
        Examples::Built(profile) => {
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            let place = if profile == "dev" { "debug" } else { profile };
            Command::new(Path::new(&target).join(place).join("examples").join(name))
        }
    };
    must(run.arg(directory).env("UBCACHE_DATE", date()))
}

fn version(cargo: &str) -> Result<String, String> {
    let mut id = Command::new(cargo);
    let output = id.args(["pkgid", "-p", "ubcache-cli"]).output().map_err(|it| it.to_string())?;
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = id.rsplit(['#', '@']).next().map(str::to_owned);
    version.filter(|it| !it.is_empty()).ok_or_else(|| format!("no version in \"{id}\""))
}

/// The newest entry of CHANGELOG.md has the news; Debian wants its own form.
fn changelog(version: &str) -> Result<(), String> {
    let mut format = Command::new("date");
    format.args(["--utc", "-R", "-d", &date()]);
    let output = format.output().map_err(|error| format!("date: {error}"))?;
    let day = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let text = format!(
        "ubcache ({version}) unstable; urgency=medium\n\n  * See https://github.com/ubcache/ubcache\
         /blob/main/CHANGELOG.md\n\n -- The ubcache developers \
         <ubcache@users.noreply.github.com>  {day}\n"
    );
    let path = Path::new(PARTS).join("changelog");
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn must(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => {
            Err(format!("{command:?}: {error}; `cargo xtask packages` installs what is missing"))
        }
    }
}
