//! Development tasks.
//!
//! | task | does |
//! |---|---|
//! | `cargo xtask test` | runs all tests and the simulator; names the packages that tests lack |
//! | `cargo xtask fuzz [TARGET…] [--for TIME] [--seed N]` | the fuzz targets, on a stable compiler (fuzz/README.md) |
//! | `cargo xtask damage [--seeds FROM..TO]` | damages sets, repairs them and compares (docs/internals/simulation.md) |
//! | `cargo xtask ceph` | installs a Ceph, and runs the test over an image of it (200 seconds) |
//! | `cargo xtask tidy` | widths, openings of comments, links, pointers, spelling, commit subjects (STYLE.md) |
//! | `cargo xtask packages` | installs the programs that tests call |
//! | `cargo xtask instructions [--update]` | compares the engine's instruction counts with those in xtask/instructions.txt |
//! | `cargo xtask bench [--quick] [--trace FILE]` | measures everything and writes docs/generated/performance.md |
//! | `cargo xtask man [DIRECTORY]` | writes the manual pages, by default to target/man |
//! | `cargo xtask package [--tarball]` | makes the package for Debian, or an archive with a static program |
//!
//! Tests that lack a tool or a right say `SKIPPED: …` and why; the summary at the end repeats these
//! lines, so that a skipped test is never taken for a passed one.

#![allow(clippy::disallowed_methods, reason = "tasks live in the real world, with its clock")]

mod bench;
mod ceph;
mod instructions;
mod manual;
mod package;
mod suite;
mod tidy;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// A program that tests call, the Debian package that has it.
const NEEDED: &[(&str, &str)] = &[
    ("fio", "fio"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nbdkit", "nbdkit"),
    ("qemu-img", "qemu-utils"),
    ("certtool", "gnutls-bin"),
    ("nbd-client", "nbd-client"),
    ("openssl", "openssl"),
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("make-bcache", "bcache-tools"),
    ("valgrind", "valgrind"),
    ("fusermount3", "fuse3"),
    ("losetup", "mount"),
    ("sqlite3", "sqlite3"),
    ("pgbench", "postgresql"),
    ("xz", "xz-utils"),
    ("promtool", "prometheus"),
    ("chromium", "chromium"),
    ("codespell", "codespell"),
    ("mmdebstrap", "mmdebstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("systemd-analyze", "systemd"),
    ("lintian", "lintian"),
    ("mandoc", "mandoc"),
    ("musl-gcc", "musl-tools"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("dmsetup", "dmsetup"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
];

/// A program that tests call and Debian does not have: its crate, and the version.
const FSX: [&str; 2] = ["fsx", "0.3.2"];

/// Version of the tester of the control API, which PyPI has.
const SCHEMATHESIS: &str = "4.32.5";

/// The same of the object store.
const MOTO: &str = "5.2.1";

/// Directory of programs that are installed for the tests of this checkout only.
const TOOLS: &str = "target/tools";

/// Their build, where they share what they depend on.
const TOOLS_BUILD: &str = "target/tools-build";

/// Runs crates/torture.
const TORTURE: [&str; 6] = ["run", "--quiet", "--release", "-p", "ubcache-torture", "--"];

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let done = match task.as_str() {
        "test" => {
            say_missing();
            suite::run(&cargo())
        }
        "packages" => {
            install();
            true
        }
        "man" => man(),
        "bench" => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            say_missing();
            bench::run(&cargo(), &arguments)
        }
        "instructions" => {
            let update = std::env::args().nth(2).as_deref() == Some("--update");
            instructions::compare(&cargo(), update).is_some()
        }
        "tidy" => tidy::run(),
        "ceph" => ceph::run(&cargo(), has, apt_install),
        "package" => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            package::run(&cargo(), &arguments)
        }
        "fuzz" | "damage" => torture(&task),
        _ => {
            eprintln!(
                "usage: cargo xtask test | fuzz … | damage … | packages | ceph | tidy | \
                 instructions [--update] | bench [--quick] | man [DIRECTORY] | package [--tarball]"
            );
            return ExitCode::from(2);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Writes the manual pages.
fn man() -> bool {
    let directory = std::env::args().nth(2).unwrap_or_else(|| "target/man".to_owned());
    let written = package::pages(&cargo(), Path::new(&directory), package::Example::Run("dev"));
    if let Err(why) = &written {
        eprintln!("xtask: {why}");
    }
    let done = written.is_ok();
    println!("xtask: manual pages in {directory}: {}", if done { "written" } else { "FAILED" });
    done
}

/// Runs a task of crates/torture with the rest of the arguments.
fn torture(task: &str) -> bool {
    let mut command = Command::new(cargo());
    command.args(TORTURE).arg(task).args(std::env::args().skip(2));
    command.status().is_ok_and(|status| status.success())
}

/// Packages with programs that tests call and this machine lacks.
fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    missing
}

/// Names the packages without which some tests are skipped.
fn say_missing() {
    let missing = missing_packages();
    if !missing.is_empty() {
        println!("xtask: some tests will be skipped; for all of them: cargo xtask packages");
        println!("xtask: or: sudo apt-get install {}", missing.join(" "));
    }
}

/// Installs the programs that tests lack.
fn install() {
    packages();
    // Without features: xz is a program of Debian's, which does its work faster than code that is
    // not optimized.
    for ([program, version], features) in [
        (FSX, &[][..]),
        (package::CARGO_DEB, &["--no-default-features"]),
        (package::bill::CARGO_CYCLONEDX, &[]),
    ] {
        if has(program) {
            continue;
        }
        println!("xtask: installing {program} {version} in {TOOLS}");
        let mut command = Command::new(cargo());
        command.args(["install", program, "--version", version, "--locked", "--root", TOOLS]);
        command.args(["--debug"]).args(features).env("CARGO_TARGET_DIR", TOOLS_BUILD);
        if !command.status().is_ok_and(|status| status.success()) {
            println!("xtask: tests that need {program} will fail, or say that they are skipped");
        }
    }
    python_tool("schemathesis", "schemathesis", SCHEMATHESIS);
    python_tool("moto_server", "moto[server,s3]", MOTO);
    musl();
}

/// Installs the standard library of Rust for static programs, where rustup is there to do it.
fn musl() {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut add = Command::new("rustup");
    if !add.args(["target", "add", &target]).status().is_ok_and(|status| status.success()) {
        println!("xtask: no {target}: `cargo xtask package --tarball`, and its test, fail");
    }
}

/// Installs missing packages where that is possible, else prints their names.
fn packages() {
    let missing = missing_packages();
    if missing.is_empty() {
        return;
    }
    let names = missing.join(" ");
    if !apt_install(&names) {
        println!("xtask: tests that need {names} will say that they are skipped");
    }
}

/// Installs packages. Returns false, and says what to do, where that is not possible.
fn apt_install(names: &str) -> bool {
    let Some(prefix) = root_prefix() else {
        println!("xtask: to run every test, install: sudo apt-get install {names}");
        return false;
    };
    println!("xtask: installing {names}");
    let script = format!(
        "{prefix} apt-get update -q && {prefix} env DEBIAN_FRONTEND=noninteractive apt-get install \
         -y -q \
         --no-install-recommends {names}"
    );
    let installed =
        Command::new("sh").args(["-c", &script]).status().is_ok_and(|status| status.success());
    if !installed {
        println!("xtask: apt-get did not succeed");
    }
    installed
}

/// Installs a program that tests call, with a Python environment of its own.
fn python_tool(program: &str, package: &str, version: &str) {
    if has(program) {
        return;
    }
    println!("xtask: installing {package} {version} in {TOOLS}");
    let venv = format!("python3 -m venv --clear target/tools/{program}");
    let more = root_prefix().map_or_else(String::new, |prefix| {
        format!(" || ({prefix} apt-get install -y -q python3-venv && {venv})")
    });
    let script = format!(
        "({venv}{more}) && target/tools/{program}/bin/pip install -q '{package}=={version}' && \
         mkdir -p target/tools/bin && ln -sf ../{program}/bin/{program} target/tools/bin/"
    );
    let installed =
        Command::new("sh").args(["-c", &script]).status().is_ok_and(|status| status.success());
    if !installed {
        println!("xtask: {program} is not there, and a test that needs it fails");
    }
}

/// Command prefix for running as root; nothing if that is not possible without a password.
fn root_prefix() -> Option<&'static str> {
    if !has("apt-get") {
        return None;
    }
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.starts_with(b"0\n") {
        return Some("");
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
    sudo.is_ok_and(|status| status.success()).then_some("sudo -n")
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), Path::new(TOOLS).join("bin")])
        .any(|directory| directory.join(program).is_file())
}
