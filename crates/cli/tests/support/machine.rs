//! A small Debian: a tree that is made once (mmdebstrap) and stays in the target directory, and for
//! each test a layer over it, used by chroot or booted with systemd-nspawn.
//!
//! The machine has no console: a pty that nobody reads stops the first of its processes. It mounts
//! nothing of a set, so that no thread of the host's kernel waits for a process of the machine:
//! mounts are tested in a virtual machine (tests/kernel-vm). A wait ends when its condition holds,
//! when the machine is gone, or when the machine has nothing more to do; the last two are failures,
//! and print the journal.
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
const PACKAGES: &str = "systemd-sysv,udev,libnbd-bin,nbd-client,e2fsprogs,kmod,curl";

/// Programs of this machine that are needed.
const PROGRAMS: [&str; 6] =
    ["mmdebstrap", "systemd-nspawn", "journalctl", "nsenter", "mount", "chroot"];

/// Command of a wait: its exit code is 0 if the condition holds, `BUSY` while systemd has something
/// under way, and `OVER` if it has not; a unit that has failed may be about to start again.
const WAIT: &str = r#"
holds() { (CONDITION); }
holds && exit 0
under_way=$(systemctl list-jobs --plain --no-legend
    systemctl list-units --plain --no-legend --state=activating,deactivating,reloading)
[ -z "$under_way" ] || exit 3
[ -z "$(systemctl --failed --plain --no-legend)" ] || exit 4
holds || exit 4
"#;

/// See [`WAIT`].
const BUSY: i32 = 3;

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
        nspawn.arg(format!("--machine={}", self.name()));
        nspawn.arg(format!("--bind={}", device.display())).arg("-D").arg(&self.root);
        must(nspawn.args(["sh", "-c", words]))
    }

    /// Boots it, and waits until systemd has started everything.
    pub fn boot(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.expect("a log");
        let mut nspawn = tool("systemd-nspawn");
        nspawn.args(["--quiet", "--register=no", "--keep-unit", "--console=pipe", "--boot"]);
        // systemd-nspawn has a directory for each name.
        nspawn.arg(format!("--machine={}", self.name())).arg("-D").arg(&self.root);
        nspawn.arg("systemd.show_status=no").stdin(Stdio::null());
        nspawn.stdout(log.try_clone().expect("a log")).stderr(log);
        let child = nspawn.spawn().expect("systemd-nspawn runs");
        let list = format!("/proc/{0}/task/{0}/children", child.id());
        self.running = Some((child, 0));
        loop {
            self.must_live();
            // The first child is a helper that ends soon.
            let children = fs::read_to_string(&list).unwrap_or_default();
            let last = children.split_whitespace().last().and_then(|last| last.parse().ok());
            if let (Some(last), Some((_, leader))) = (last, &mut self.running) {
                *leader = last;
                let state = self.try_run("systemctl is-system-running --wait");
                match String::from_utf8_lossy(&state.stdout).trim() {
                    "running" => break,
                    "degraded" => self.fail("a unit has failed at boot"),
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a command succeeds there, for as long as systemd has something under way.
    pub fn until(&mut self, words: &str) {
        let wait = WAIT.replace("CONDITION", words);
        loop {
            match self.try_run(&wait).status.code() {
                Some(0) => return,
                Some(BUSY) => {}
                _ => {
                    self.must_live();
                    self.fail(&format!("this will not come true: {words}"));
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `kill -9` of the process of a service; returns when systemd knows it.
    pub fn kill(&self, unit: &str) {
        self.run(&format!(
            "process=$(systemctl show -P MainPID {unit}) && kill -9 $process && \
             while [ -e /proc/$process ]; do sleep 0.02; done"
        ));
    }

    /// Output of systemd-nspawn.
    fn log(&self) -> PathBuf {
        self.root.with_file_name("console")
    }

    /// A name that no other machine has.
    fn name(&self) -> String {
        let directory = self.root.parent().and_then(Path::file_name).unwrap_or_default();
        format!("m-{}", directory.to_string_lossy().replace('.', ""))
    }

    /// Fails if systemd-nspawn has ended.
    fn must_live(&mut self) {
        let ended = match &mut self.running {
            Some((child, _)) => child.try_wait().expect("a child"),
            None => return,
        };
        if let Some(status) = ended {
            self.fail(&format!("the machine is gone: systemd-nspawn: {status}"));
        }
    }

    /// Ends the test with what the machine and systemd-nspawn have logged.
    fn fail(&self, why: &str) -> ! {
        let mut journalctl = tool("journalctl");
        journalctl.arg("--directory").arg(self.root.join("var/log/journal"));
        let journal =
            journalctl.args(["--no-pager", "-o", "short-monotonic", "-n", "200"]).output();
        let journal = journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let units = self.try_run("systemctl --failed; systemctl list-jobs").stdout;
        panic!(
            "{why}\n{}\n{}\n{}",
            String::from_utf8_lossy(&units),
            fs::read_to_string(self.log()).unwrap_or_default(),
            journal.unwrap_or_default()
        );
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

/// The tree of a Debian, made unless it is there.
pub fn base() -> PathBuf {
    let missing: Vec<&str> =
        PROGRAMS.into_iter().filter(|program| !super::is_installed(program)).collect();
    assert!(
        missing.is_empty(),
        "needed for a test of the package: {}; `cargo xtask packages` installs them",
        missing.join(", ")
    );
    let id = must(tool("id").arg("-u"));
    assert_eq!(id.trim(), "0", "a test of the package makes a system with mmdebstrap: run as root");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a target directory");
    let base = target.join("machine");
    fs::create_dir_all(&base).expect("a directory");
    let lock = fs::File::create(base.join("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let (tree, new) = (base.join("system"), base.join("new"));
    if !tree.is_dir() {
        let _ = fs::remove_dir_all(&new);
        let _ = writeln!(std::io::stdout(), "making a Debian in {}", tree.display());
        let mut mmdebstrap = tool("mmdebstrap");
        mmdebstrap.args(["--quiet", "--mode=root", "--variant=apt", "--format=directory"]);
        mmdebstrap.arg("--dpkgopt=force-unsafe-io").arg(format!("--include={PACKAGES}"));
        must(mmdebstrap.arg("bookworm").arg(&new));
        fs::create_dir_all(new.join("var/log/journal")).expect("a directory");
        // Recommended packages would come over the network.
        let own = new.join("etc/apt/apt.conf.d/no-recommends");
        fs::write(own, "APT::Install-Recommends \"false\";\n").expect("room");
        fs::rename(&new, &tree).expect("a tree");
    }
    tree
}
