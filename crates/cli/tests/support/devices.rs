//! Loop devices, small file systems, and files behind a filter of nbdkit, where this user may make
//! some.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Guard, Mount, have, skipped, tool};

/// A loop device for a file, detached at the end.
pub struct Loop(pub PathBuf);

impl Loop {
    /// A loop device with these options of losetup; none if this user may not.
    pub fn new(file: &Path, options: &[&str]) -> Option<Loop> {
        let output =
            tool("losetup").args(["-f", "--show"]).args(options).arg(file).output().ok()?;
        output.status.success().then(|| Loop(String::from_utf8_lossy(&output.stdout).trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup").arg("-d").arg(&self.0).output();
    }
}

/// A small file system in memory; none if this user may not mount one.
pub fn small(test: &str, directory: &Path, mib: u64) -> Option<(PathBuf, Mount)> {
    in_memory(test, directory, "tmpfs", &format!("size={mib}m"))
}

/// A file system in memory that has no O_DIRECT.
pub fn without_direct_io(test: &str, directory: &Path) -> Option<(PathBuf, Mount)> {
    in_memory(test, directory, "ramfs", "mode=700")
}

fn in_memory(test: &str, directory: &Path, kind: &str, options: &str) -> Option<(PathBuf, Mount)> {
    let point = directory.join("small");
    std::fs::create_dir(&point).expect("a directory");
    let mounted = tool("mount").args(["-t", kind, "-o", options, "none"]).arg(&point).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        return Some((point.clone(), Mount::new(point, "umount")));
    }
    skipped(test, "may not mount a file system");
    None
}

/// A file behind a filter of nbdkit, as a file again by nbdfuse; none if this user may not mount
/// it. The guards keep it.
pub fn filtered(
    directory: &Path,
    file: &Path,
    filter: &str,
    settings: &[&str],
) -> Option<(Mount, [Guard; 2], PathBuf)> {
    let socket = directory.join(format!("{filter}.sock"));
    let mut nbdkit = tool("nbdkit");
    nbdkit
        .args(["-f", "-U"])
        .arg(&socket)
        .args([&format!("--filter={filter}"), "file"])
        .arg(file)
        .args(settings);
    as_file(directory, filter, nbdkit, &socket)
}

/// The only export of a server, as a file by nbdfuse, in a directory of that name.
pub fn as_file(
    directory: &Path,
    name: &str,
    mut nbdkit: Command,
    socket: &Path,
) -> Option<(Mount, [Guard; 2], PathBuf)> {
    let nbdkit = Guard(nbdkit.stderr(Stdio::null()).spawn().expect("nbdkit runs"));
    wait_for(|| socket.exists())?;
    let point = directory.join(name);
    std::fs::create_dir_all(&point).expect("a directory");
    let disk = point.join("disk");
    let mut nbdfuse = tool("nbdfuse");
    nbdfuse.arg(&disk).arg(format!("nbd+unix:///?socket={}", socket.display()));
    let nbdfuse = Guard(nbdfuse.stderr(Stdio::null()).spawn().expect("nbdfuse runs"));
    wait_for(|| disk.exists())?;
    Some((Mount::new(point, "fusermount3"), [nbdfuse, nbdkit], disk))
}

fn wait_for(done: impl Fn() -> bool) -> Option<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(())
}

/// A file whose requests fail as soon as the file `failing` exists.
pub struct Fragile {
    /// The file.
    pub path: PathBuf,
    failing: PathBuf,
    _parts: (Mount, [Guard; 2]),
}

impl Fragile {
    /// A file before another one; none, and reported as skipped, where that can't be had.
    pub fn new(test: &str, directory: &Path, file: &Path) -> Option<Fragile> {
        if !have(test, &["nbdkit", "nbdfuse", "fusermount3"]) {
            return None;
        }
        let failing = directory.join("failing");
        let switch = format!("error-file={}", failing.display());
        let settings = ["error=EIO", "error-rate=100%", &switch];
        let Some((mount, guards, path)) = filtered(directory, file, "error", &settings) else {
            skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
            return None;
        };
        Some(Fragile { path, failing, _parts: (mount, guards) })
    }

    /// From now on every request fails.
    pub fn fail(&self) {
        std::fs::write(&self.failing, "").expect("a file");
    }

    /// Requests succeed again.
    pub fn mend(&self) {
        std::fs::remove_file(&self.failing).expect("the file");
    }
}
