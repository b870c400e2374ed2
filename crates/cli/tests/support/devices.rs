//! Loop devices and small file systems, where this user may make some.

use std::path::{Path, PathBuf};

use super::{Mount, skipped, tool};

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
