//! A small Debian: a tree that is made once (debootstrap) and stays in the target directory, and
//! for each test a layer over it, used by chroot or booted with systemd-nspawn.
//!
//! A test of a package that is skipped would prove nothing, so what is missing is an error here.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::{must, text, tool};

/// Packages beside the smallest system.
const PACKAGES: &str = "systemd-sysv,udev,libnbd-bin,fuse3,e2fsprogs";

/// Programs of this machine that are needed.
const PROGRAMS: [&str; 5] = ["debootstrap", "systemd-nspawn", "nsenter", "mount", "chroot"];

/// The tree of a machine, and the machine if it runs.
pub struct Machine {
    /// Root of its file systems, as the host sees it.
    pub root: PathBuf,
    running: Option<(Child, u32)>,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// A tree that has nothing of ubcache.
    pub fn new() -> Machine {
        let base = base();
        let directory = super::scratch();
        let [root, upper, work] = ["root", "upper", "work"].map(|name| directory.path().join(name));
        for part in [&root, &upper, &work] {
            fs::create_dir(part).expect("a directory");
        }
        let options =
            format!("lowerdir={},upperdir={},workdir={}", text(&base), text(&upper), text(&work));
        must(tool("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&root));
        Machine { root, running: None, _directory: directory }
    }

    /// Writes a file of the tree; programs begin with `#!`.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, &content).expect("room");
        if content.as_ref().starts_with(b"#!") || content.as_ref().starts_with(b"\x7fELF") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
    }

    /// Command inside of the tree, or of the machine if it runs.
    pub fn command(&self, words: &str) -> Command {
        let mut command = match &self.running {
            Some((_, leader)) => {
                let mut command = tool("nsenter");
                command.args(["-t", &leader.to_string(), "-a"]);
                command
            }
            None => {
                let mut command = tool("chroot");
                command.arg(&self.root);
                command
            }
        };
        command.args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", words]);
        command
    }

    /// Runs a command there, whatever becomes of it.
    pub fn try_run(&self, words: &str) -> Output {
        self.command(words).output().expect("it runs")
    }

    /// Runs a command there that has to succeed; its output.
    pub fn run(&self, words: &str) -> String {
        must(&mut self.command(words))
    }

    /// Runs a command in a container over the tree that does not boot, with one device of the host.
    pub fn run_with_device(&self, device: &Path, words: &str) -> String {
        let mut nspawn = tool("systemd-nspawn");
        nspawn.args(["--quiet", "--register=no", "--keep-unit", "--console=pipe"]);
        nspawn.arg(format!("--bind={}", device.display())).arg("-D").arg(&self.root);
        must(nspawn.args(["sh", "-c", words]))
    }

    /// Boots it, and waits until systemd has started everything.
    pub fn boot(&mut self) {
        let log = self.root.with_file_name("console");
        let console = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut nspawn = tool("systemd-nspawn");
        nspawn.args(["--quiet", "--register=no", "--keep-unit", "--console=passive", "--boot"]);
        nspawn.args(["--bind=/dev/fuse", "--bind=/dev/loop-control"]);
        for number in 0..64 {
            let node = format!("/dev/loop{number}");
            if Path::new(&node).exists() {
                nspawn.arg(format!("--bind={node}"));
            }
        }
        nspawn.arg("-D").arg(&self.root).stdin(Stdio::null());
        nspawn.stdout(console.try_clone().expect("a log")).stderr(console);
        let child = nspawn.spawn().expect("systemd-nspawn runs");
        let list = format!("/proc/{0}/task/{0}/children", child.id());
        self.running = Some((child, 0));
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let (child, leader) = self.running.as_mut().expect("it runs");
            if child.try_wait().expect("a child").is_some() {
                panic!("systemd-nspawn: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            // The first child is a helper that ends soon.
            let children = fs::read_to_string(&list).unwrap_or_default();
            let last = children.split_whitespace().last().and_then(|last| last.parse().ok());
            let Some(last) = last else { continue };
            *leader = last;
            let state = self.try_run("systemctl is-system-running --wait");
            match String::from_utf8_lossy(&state.stdout).trim() {
                "running" => break,
                "degraded" => panic!("{}", self.run("systemctl --failed; journalctl -b -n 80")),
                _ => {}
            }
        }
    }

    /// Shuts it down.
    pub fn power_off(&mut self) {
        self.try_run("systemctl poweroff");
        let (mut child, _) = self.running.take().expect("it runs");
        child.wait().expect("a child");
    }

    /// Lines of the journal of the boot before, or of this one, by message.
    pub fn journal(&self, boot: &str) -> Vec<String> {
        let all = self.run(&format!("journalctl --no-pager -o cat -b {boot}"));
        all.lines().map(str::to_owned).collect()
    }

    /// Waits until a command succeeds there.
    pub fn until(&self, words: &str) {
        while !self.try_run(words).status.success() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((mut child, leader)) = self.running.take() {
            // Without systemd-nspawn the system would go on; it ends with the first of its
            // processes.
            if leader != 0 {
                let _ = tool("kill").args(["-KILL", &leader.to_string()]).output();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = tool("umount").arg("--lazy").arg(&self.root).output();
    }
}

/// Makes the tree, unless it is there.
fn base() -> PathBuf {
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|program| !super::is_installed(program)).collect();
    assert!(
        missing.is_empty(),
        "needed for a test of the package: {}; `cargo xtask packages` installs them",
        missing.join(", ")
    );
    let id = must(tool("id").arg("-u"));
    assert_eq!(
        id.trim(),
        "0",
        "a test of the package makes a system with debootstrap: run as root"
    );
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target directory");
    let base = target.join("machine");
    fs::create_dir_all(&base).expect("a directory");
    let lock = fs::File::create(base.join("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let (tree, new) = (base.join("tree"), base.join("new"));
    if !tree.is_dir() {
        let _ = fs::remove_dir_all(&new);
        let _ = writeln!(std::io::stdout(), "making a Debian in {}", tree.display());
        must(
            tool("debootstrap")
                .args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"])
                .arg(&new),
        );
        fs::create_dir_all(new.join("var/log/journal")).expect("a directory");
        fs::rename(&new, &tree).expect("a tree");
    }
    tree
}
