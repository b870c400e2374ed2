//! Shared parts of the end-to-end tests: running the real binary, a daemon that is stopped or
//! killed at the end of its test, scratch directories, the report, and reporting why a test is
//! skipped.
#![allow(dead_code, reason = "every test file uses its own part of it")]

pub mod adopted;
pub mod blocks;
pub mod crashed;
pub mod devices;
pub mod file_system;
pub mod guide;
pub mod http;
pub mod machine;
#[path = "../../../../tests/support/moto.rs"]
pub mod moto;
pub mod nbd_server;
pub mod pieces;
pub mod steps;
pub mod store_front;
pub mod volume_by_hand;
pub mod walk;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use ubcache_cli::nbd_client::Client;

/// Ways of a daemon's I/O: every client test runs over both.
pub const IO: [&str; 2] = ["ring", "pool"];

/// Longest time that a daemon may take to start or to stop.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Kills of a test of `kill -9` over each way of doing I/O; `UBCACHE_TEST_KILLS` asks for more.
pub fn kills(default: u64) -> u64 {
    let more = std::env::var("UBCACHE_TEST_KILLS").ok();
    more.map_or(default, |more| more.parse().expect("UBCACHE_TEST_KILLS is a number"))
}

/// Settings for `serve`: every request goes through the cache, also on a machine so busy that the
/// cache device seems slow.
pub const NO_BYPASS: [&str; 6] = [
    "--set",
    "sequential_cutoff=0",
    "--set",
    "congested_read_threshold_us=0",
    "--set",
    "congested_write_threshold_us=0",
];

/// The same in writeback, and what is dirty stays in the cache.
pub const STAYS_DIRTY: [&str; 10] = [
    "--mode",
    "writeback",
    "--set",
    "writeback_running=0",
    "--set",
    "sequential_cutoff=0",
    "--set",
    "congested_read_threshold_us=0",
    "--set",
    "congested_write_threshold_us=0",
];

/// Runs a test over each way of doing I/O that this machine allows, in a scratch directory of its
/// own.
pub fn each_io(test: &str, body: impl Fn(&str, &Path)) {
    for io in IO {
        if io == "ring" && !ring_works() {
            skipped(test, "over io_uring: not allowed here");
            continue;
        }
        println!("{test}: over {io}");
        let directory = scratch();
        body(io, directory.path());
    }
}

/// Returns true if a daemon can be started over io_uring.
pub fn ring_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let directory = scratch();
        let (cache, backings) = make_set(directory.path(), &[1], &[]);
        match Daemon::try_start("ring", directory.path(), &cache, &backings, &[]) {
            Ok(_) => true,
            Err((_, output)) => {
                assert!(output.contains("UBCACHE_IO"), "serve over io_uring: {output}");
                false
            }
        }
    })
}

/// Reports that a test is skipped, in a line that `cargo xtask test` collects. Written past the
/// capture of the test harness: a plain `cargo test` shows it as well.
pub fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "SKIPPED: {test}: {reason}");
}

/// Returns true if all programs are installed; if not, the test is reported as skipped.
pub fn have(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<&str> =
        programs.iter().filter(|program| !is_installed(program)).copied().collect();
    if missing.is_empty() {
        return true;
    }
    skipped(test, &format!("not installed: {}", missing.join(", ")));
    false
}

/// Returns true if a program is installed.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Cargo, in the root of the workspace. Variables that cargo has set for this test would make
/// build scripts run again.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(workspace());
    let of_cargo =
        ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars() {
        if of_cargo.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The names in a directory, in order.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A scratch directory, on the file system of the build: `/tmp` may be one without O_DIRECT. It
/// stays if `UBCACHE_TEST_KEEP` is set.
pub fn scratch() -> tempfile::TempDir {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let keep = std::env::var_os("UBCACHE_TEST_KEEP").is_some();
    let directory = tempfile::Builder::new().prefix("e2e").disable_cleanup(keep).tempdir_in(base);
    directory.expect("a scratch directory")
}

/// The `ubcache` command.
pub fn ubcache() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ubcache"))
}

/// Runs `ubcache` to its end.
pub fn run(arguments: &[&str]) -> Output {
    ubcache().args(arguments).output().expect("ubcache runs")
}

/// Returns true if a process ("self" or a number) has CAP_SYS_RESOURCE. Root in a container may be
/// without it.
pub fn may_use_resources(process: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line of it");
    let capabilities = u64::from_str_radix(line.trim(), 16).expect("a hexadecimal number");
    capabilities & CAP_SYS_RESOURCE != 0
}

/// Runs a command that has to succeed and gives its standard output.
pub fn must(command: &mut Command) -> String {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program of the system, found also where only root looks.
pub fn tool(program: &str) -> Command {
    let mut command = Command::new("env");
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(program);
    command
}

/// Copies a program that will be run. A child does it, as a file that a process has open for
/// writing can't be run ("Text file busy"), and other tests of this process fork at any time and so
/// keep its descriptors open for a moment.
pub fn copy_program(from: &Path, to: &Path) {
    must(tool("cp").arg(from).arg(to));
}

/// Runs a script with libnbd's own shell; false if Python has no libnbd.
pub fn nbdsh(uri: &str, script: &str) -> bool {
    // The Python of the system, whatever else is installed.
    let mut command = Command::new("env");
    command.args(["PATH=/usr/bin:/bin", "nbdsh", "-u", uri, "-c", script]);
    let output = command.output().expect("env runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named") {
        return false;
    }
    assert!(output.status.success(), "{script}: {said}");
    true
}

/// The path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

/// Makes a cache of 64 MiB with small buckets and backing files of the given sizes in `directory`.
pub fn make_set(directory: &Path, backing_mib: &[u64], extra: &[&str]) -> (PathBuf, Vec<PathBuf>) {
    make_set_sized(directory, 64, backing_mib, extra)
}

/// Makes a set like [`make_set`], with a cache of any size.
pub fn make_set_sized(
    directory: &Path,
    cache_mib: u64,
    backing_mib: &[u64],
    extra: &[&str],
) -> (PathBuf, Vec<PathBuf>) {
    let cache = directory.join("cache.img");
    sparse(&cache, cache_mib << 20);
    let backings: Vec<PathBuf> =
        (0..backing_mib.len()).map(|number| directory.join(format!("disk{number}.img"))).collect();
    let mut command = ubcache();
    command.arg("make").args(extra).arg("-C").arg(&cache);
    if !extra.contains(&"--bucket") {
        command.args(["--bucket", "64k"]);
    }
    for (path, mib) in backings.iter().zip(backing_mib) {
        sparse(path, mib << 20);
        command.arg("-B").arg(path);
    }
    must(&mut command);
    (cache, backings)
}

/// Makes an empty sparse file.
pub fn sparse(path: &Path, bytes: u64) {
    let file = std::fs::File::create(path).expect("a file in the scratch directory");
    file.set_len(bytes).expect("a sparse file");
}

/// SHA-256 of everything a reader gives.
pub fn sha256(mut from: impl Read) -> String {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer).expect("readable data") {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file.
pub fn sha256_of(path: &Path) -> String {
    sha256(std::fs::File::open(path).expect("a readable file"))
}

/// Fills a buffer with numbers that depend on the seed only.
pub fn pseudo_random(seed: u64, into: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in into.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// The command of a daemon, its two sockets and its log.
pub fn serve_command(
    io: &str,
    directory: &Path,
    cache: &Path,
    backings: &[PathBuf],
    extra: &[&str],
) -> (Command, PathBuf, PathBuf, PathBuf) {
    let socket = directory.join("nbd.sock");
    let control = directory.join("control.sock");
    let log = directory.join("serve.log");
    let stderr = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .expect("a log in the scratch directory");
    let mut command = ubcache();
    command.env("UBCACHE_IO", io).arg("serve").arg("-C").arg(cache);
    for backing in backings {
        command.arg("-B").arg(backing);
    }
    command
        .arg("--nbd")
        .arg(format!("unix:{}", socket.display()))
        .arg("--control")
        .arg(&control)
        .args(extra);
    // All tests may be run with lanes: UBCACHE_TEST_THREADS=2.
    if let Ok(threads) = std::env::var("UBCACHE_TEST_THREADS")
        && !extra.contains(&"--threads")
    {
        command.args(["--threads", &threads]);
    }
    command.stdout(Stdio::piped()).stderr(stderr);
    (command, socket, control, log)
}

/// A running `ubcache serve`.
pub struct Daemon {
    child: Child,
    /// The NBD socket.
    pub socket: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Output of the daemon up to the line that reports that it is ready.
    pub greeting: Vec<String>,
}

impl Daemon {
    /// Starts `ubcache serve` over the given way of I/O and waits until it is ready.
    pub fn start(
        io: &str,
        directory: &Path,
        cache: &Path,
        backings: &[PathBuf],
        extra: &[&str],
    ) -> Daemon {
        Daemon::try_start(io, directory, cache, backings, extra).unwrap_or_else(
            |(status, output)| panic!("serve ended with {status} before it was ready:\n{output}"),
        )
    }

    /// Starts `ubcache serve` likewise; `Err` with status and output if it ends instead of becoming
    /// ready.
    pub fn try_start(
        io: &str,
        directory: &Path,
        cache: &Path,
        backings: &[PathBuf],
        extra: &[&str],
    ) -> Result<Daemon, (ExitStatus, String)> {
        Daemon::try_start_command(serve_command(io, directory, cache, backings, extra))
    }

    /// Starts what [`serve_command`] made.
    pub fn try_start_command(
        (mut command, socket, control, log): (Command, PathBuf, PathBuf, PathBuf),
    ) -> Result<Daemon, (ExitStatus, String)> {
        let mut child = command.spawn().expect("ubcache runs");
        let (send, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("standard output is a pipe");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut greeting = Vec::new();
        let end = Instant::now() + SERVE_TIMEOUT;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let ready = line.starts_with("ready");
                    greeting.push(line);
                    if ready {
                        return Ok(Daemon { child, socket, control, greeting });
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    panic!("serve is not ready after {SERVE_TIMEOUT:?}: {}", tail(&log));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = child.wait().expect("a child can be waited for");
                    return Err((status, format!("{}\n{}", greeting.join("\n"), tail(&log))));
                }
            }
        }
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// The report of `status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.look(&["--json"]).1).expect("status --json prints JSON")
    }

    /// Exit code and output of `ubcache status`, which has found out the state.
    pub fn look(&self, extra: &[&str]) -> (i32, String) {
        let mut command = ubcache();
        command.arg("status").args(extra).arg("--control").arg(&self.control);
        let output = command.output().expect("ubcache runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code().expect("an exit code");
        assert!((0..=2).contains(&code), "status: {}\n{said}", output.status);
        (code, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One number of a volume's report, by its path as in `/backing/read_bytes`.
    pub fn number(&self, volume: usize, pointer: &str) -> u64 {
        let status = self.status();
        let volume = &status["sets"][0]["volumes"][volume];
        volume
            .pointer(pointer)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_else(|| panic!("{pointer} in {volume}"))
    }

    /// `ubcache set`.
    pub fn set(&self, assignment: &str) {
        must(ubcache().arg("set").arg(assignment).arg("--control").arg(&self.control));
    }

    /// `ubcache stop`, then waits for the end of the process.
    pub fn stop(self) {
        must(ubcache().arg("stop").arg("--control").arg(&self.control));
        self.wait();
    }

    /// Waits for a process that is stopping.
    pub fn wait(self) {
        let status = self.wait_for_status();
        assert!(status.success(), "serve ended with {status}");
    }

    /// Waits for a process that is about to end.
    pub fn wait_for_status(mut self) -> ExitStatus {
        let end = Instant::now() + SERVE_TIMEOUT;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("serve does not end after it was told to");
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// The socket of NBD clients, connected to an export.
    pub fn client(&self, export: &str) -> Client {
        Client::connect(&self.socket, export)
            .unwrap_or_else(|error| panic!("connecting to {export}: {error}"))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After `stop` and `kill` both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &Path) -> String {
    if !log.is_file() {
        return format!("{} is no file", log.display());
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// The wait status of a killed child is irrelevant; a mount that stays is not: unmounts at the end
/// of a test.
pub struct Mount {
    point: PathBuf,
    command: &'static str,
}

impl Mount {
    /// Takes care of a mount point; `command` is `umount` or `fusermount3`.
    pub fn new(point: PathBuf, command: &'static str) -> Mount {
        Mount { point, command }
    }

    /// Unmounts now.
    pub fn unmount(self) {
        drop(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..50 {
            let mut command = tool(self.command);
            if self.command == "fusermount3" {
                command.arg("-u");
            }
            let output = command.arg(&self.point).output();
            if output.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A child process that is ended with its test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Mounts an export as a file, by nbdfuse; none if that can't mount here.
pub fn export_as_file(
    daemon: &Daemon,
    directory: &Path,
    export: &str,
) -> Option<(Mount, Guard, PathBuf)> {
    let point = directory.join("fuse");
    std::fs::create_dir_all(&point).expect("a directory");
    let file = point.join("disk");
    let child = tool("nbdfuse")
        .arg(&file)
        .arg(daemon.uri(export))
        .stderr(Stdio::null())
        .spawn()
        .expect("nbdfuse runs");
    let mut guard = Guard(child);
    let end = Instant::now() + Duration::from_secs(10);
    while !file.exists() {
        let ended = guard.0.try_wait().expect("a child can be waited for").is_some();
        if ended || Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((Mount::new(point, "fusermount3"), guard, file))
}
