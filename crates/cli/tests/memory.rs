//! Memory of the machine that the daemon takes, and keeps from being paged out.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::{
    Daemon, copy_program, each_io, have, make_set, make_set_sized, must, nbdsh, skipped, text,
    tool, ubcache,
};

/// A number of /proc/PID/status, in KiB.
fn kib(daemon: &Daemon, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of that name");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Requests to bring something into the cache read all of it at once: forty of them took more than
/// a gigabyte, and what did not fit was read and thrown away.
#[test]
fn forty_requests_to_cache_32_mib_take_little_memory() {
    let test = "forty_requests_to_cache_32_mib_take_little_memory";
    if !have(test, &["nbdsh"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set_sized(directory, 400, &[320], &[]);
        let daemon = Daemon::start(
            io,
            directory,
            &cache,
            &backings,
            &["--set", "congested_read_threshold_us=0"],
        );
        let before = kib(&daemon, "VmRSS");
        // Ten of them for each of four places, all sent before any is answered.
        let script = "
cookies = [h.aio_cache(32 << 20, (n % 4) * (32 << 20)) for n in range(40)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
";
        if !nbdsh(&daemon.uri("disk0.img"), script) {
            return skipped(test, "no libnbd for Python");
        }
        let most = kib(&daemon, "VmHWM") - before;
        println!("{most} KiB more at most");
        assert!(most < 256 << 10, "{most} KiB for forty requests of 32 MiB");
        daemon.stop();
    });
}

/// The flags of a process as the kernel has them, the ninth field of /proc/PID/stat.
fn process_flags(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.id())).expect("it runs");
    let behind_name = stat.rsplit_once(") ").expect("the name is in brackets").1;
    behind_name.split(' ').nth(6).and_then(|flags| flags.parse().ok()).expect("flags")
}

/// Bug: memory that the daemon asked for could wait for a disk that waited for the daemon, where
/// the kernel of the same machine is its client. Fix: it says that it is one who writes such disks
/// back, and the kernel does not have it write anything while it asks for memory.
#[test]
fn privileged_daemon_is_an_io_flusher() {
    const NO_IO_FOR_MEMORY: u64 = 0x0008_0000;
    let test = "privileged_daemon_is_an_io_flusher";
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        if !support::may_use_resources(&daemon.id().to_string()) {
            return skipped(test, "no CAP_SYS_RESOURCE");
        }
        let flags = process_flags(&daemon);
        assert!(flags & NO_IO_FOR_MEMORY != 0, "flags {flags:#x}");
        daemon.stop();
    });
}

#[test]
fn lock_memory_locks_or_refuses() {
    let test = "lock_memory_locks_or_refuses";
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        match Daemon::try_start(io, directory, &cache, &backings, &["--lock-memory"]) {
            Ok(daemon) => {
                assert!(kib(&daemon, "VmLck") > 1024, "{} KiB are locked", kib(&daemon, "VmLck"));
                daemon.client("disk0.img").write(0, &[1; 4096], true).expect("a write");
                daemon.stop();
            }
            Err((status, said)) => {
                assert_eq!(status.code(), Some(2), "{said}");
                assert!(said.contains("--lock-memory") && said.contains("LimitMEMLOCK"), "{said}");
            }
        }
    });
    if !have(test, &["setpriv", "prlimit"]) {
        return;
    }
    // A user that is not root, and has a limit.
    let Ok(directory) = tempfile::tempdir() else { return };
    let program = directory.path().join("ubcache");
    copy_program(Path::new(env!("CARGO_BIN_EXE_ubcache")), &program);
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("it is ours");
    let output = tool("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "prlimit",
            "--memlock=65536:65536",
        ])
        .arg(&program)
        .args(["serve", "--lock-memory", "-C", text(&cache), "-B", text(&backings[0])])
        .output()
        .expect("setpriv runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("setpriv") || said.contains("prlimit") {
        return skipped(test, "the part with a limit: may not become somebody else");
    }
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in ["--lock-memory", "expected:", "root", "ulimit -l", "LimitMEMLOCK"] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    must(ubcache().arg("check").arg(&cache));
}
