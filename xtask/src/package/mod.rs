//! `cargo xtask package`: a package for Debian, in target/debian; `--tarball`: the same for every
//! Linux, linked statically, in target/tarball.
//!
//! cargo-deb makes the package, from crates/cli/Cargo.toml; what it needs beside the program is
//! written here: manual pages, completions, a changelog in Debian's form, the bill of materials.
//!
//! | module | holds |
//! |---|---|
//! | here | the package for Debian, and the parts that both have |
//! | `tarball` | the archive |
//! | `bill` | the bill of materials: each crate that is in the program |

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::manual;

pub mod bill;
mod tarball;

/// Directory of the parts.
pub const PARTS: &str = "target/package";

/// The program that makes packages: its crate, and the version.
pub const CARGO_DEB: [&str; 2] = ["cargo-deb", "3.8.0"];

/// Makes the package. `--fast` is for the tests: it packs what they have built, in the profile
/// after `--profile`, and compresses little.
pub fn run(cargo: &str, arguments: &[String]) -> bool {
    let wants_tarball = arguments.iter().any(|argument| argument == "--tarball");
    let made = if wants_tarball { tarball::make } else { package }(cargo, arguments);
    if let Err(why) = &made {
        eprintln!("xtask: package: {why}");
    }
    made.is_ok()
}

/// Options of the command line.
struct Choice<'a> {
    profile: &'a str,
    is_fast: bool,
    version: Option<&'a str>,
    output: Option<&'a str>,
}

impl Choice<'_> {
    fn of(arguments: &[String]) -> Choice<'_> {
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).map(String::as_str)
        };
        Choice {
            profile: after("--profile").unwrap_or("release"),
            is_fast: arguments.iter().any(|argument| argument == "--fast"),
            version: after("--deb-version"),
            output: after("--output"),
        }
    }

    /// A file that cargo has built for this machine.
    fn built(&self, name: &str) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let profile = if self.profile == "dev" { "debug" } else { self.profile };
        Path::new(&target).join(profile).join(name)
    }
}

fn package(cargo: &str, arguments: &[String]) -> Result<(), String> {
    let choice = Choice::of(arguments);
    if !choice.is_fast || !choice.built("ubcache").is_file() {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "ubcache-cli", "--bin", "ubcache"]);
        must(build.args(["--profile", choice.profile]))?;
    }
    parts(cargo, &choice)?;
    bill::write(cargo, &triple(cargo)?, &Path::new(PARTS).join(bill::NAME))?;
    link("ubcache", &Path::new(PARTS).join("ubcached"))?;
    changelog(choice.version.unwrap_or(&format!("{}-1", version(cargo)?)))?;
    let mut deb = Command::new(installed("cargo-deb"));
    deb.args(["--no-build", "-p", "ubcache-cli", "--profile", choice.profile]);
    for (option, value) in [("--deb-version", choice.version), ("--output", choice.output)] {
        if let Some(value) = value {
            deb.args([option, value]);
        }
    }
    deb.args(if choice.is_fast {
        ["--fast", "--no-dbgsym", "--strip"].as_slice()
    } else {
        &["--dbgsym"]
    });
    // It warns of every file that no build makes.
    must(deb.arg("--quiet"))
}

/// Writes manual pages and completions.
fn parts(cargo: &str, choice: &Choice<'_>) -> Result<(), String> {
    // `cargo test` builds examples, unless it is for one test.
    let built = ["man", "completions"].map(|name| choice.built("examples").join(name));
    let are_built = choice.is_fast && built.iter().all(|example| example.is_file());
    let [man, completions] = match &built {
        [man, completions] if are_built => [Example::Built(man), Example::Built(completions)],
        _ => [Example::Run(choice.profile); 2],
    };
    pages(cargo, &Path::new(PARTS).join("man"), man)?;
    example(cargo, "completions", &Path::new(PARTS).join("completions"), completions)
}

/// A program of the directory of tools, or of the machine.
fn installed(name: &str) -> PathBuf {
    let here = Path::new(crate::TOOLS).join("bin").join(name);
    if here.is_file() { here } else { name.into() }
}

/// The platform of this machine, as rustc names it.
fn triple(cargo: &str) -> Result<String, String> {
    let output = Command::new(cargo).arg("-vV").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("{cargo} -vV names no host"))
}

/// The name by which the program is the daemon of all sets.
fn link(program: &str, name: &Path) -> Result<(), String> {
    let _ = std::fs::remove_file(name);
    std::os::unix::fs::symlink(program, name)
        .map_err(|error| format!("{}: {error}", name.display()))
}

/// Writes the manual pages of commands and of files.
pub fn pages(cargo: &str, directory: &Path, how: Example<'_>) -> Result<(), String> {
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

/// A way to run an example of crates/cli, which writes manual pages or completions.
#[derive(Copy, Clone)]
pub enum Example<'a> {
    /// By cargo, in that profile.
    Run(&'a str),
    /// The program that is there.
    Built(&'a Path),
}

fn example(cargo: &str, name: &str, directory: &Path, how: Example<'_>) -> Result<(), String> {
    let mut run = match how {
        Example::Run(profile) => {
            let mut run = Command::new(cargo);
            run.args(["run", "--quiet", "-p", "ubcache-cli", "--profile", profile]);
            run.args(["--example", name, "--"]);
            run
        }
        Example::Built(program) => Command::new(program),
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

/// Seconds from 1970 to a day.
fn seconds(day: &str) -> Result<String, String> {
    let mut date = Command::new("date");
    let output = date.args(["--utc", "-d", day, "+%s"]).output();
    let output = output.map_err(|error| format!("date: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
