//! Claims on a device that opening it does not show: it can't be written, or a loop device over it,
//! or the file under it, is in use.
//!
//! The kernel asks for a file, or for a device, under a loop device only for a moment: whoever
//! opens it alone afterwards succeeds, though a file system may be mounted from it.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Limit of loop devices over each other that are followed.
const LOOPS_MAX: usize = 8;

/// The loop device over a file or block device that is in use, or can't be opened.
pub fn loop_in_use(path: &Path) -> Option<PathBuf> {
    loop_held(path, None)
}

/// Returns what is in use under a loop device: its file, or another loop device over that.
pub fn under_loop_in_use(path: &Path) -> Option<PathBuf> {
    let (mut device, mut path) = (std::fs::metadata(path).ok()?, path.to_owned());
    // Loop devices may be over each other.
    for _ in 0..LOOPS_MAX {
        let under = backing_file(&device)?;
        if is_held(&under) || is_locked(&under) {
            return Some(under);
        }
        if let Some(other) = loop_held(&under, Some(&path)) {
            return Some(other);
        }
        (device, path) = (std::fs::metadata(&under).ok()?, under);
    }
    None
}

/// The directory of a block device in sysfs.
pub fn sysfs_directory(device: &Metadata) -> Option<PathBuf> {
    let number = device.file_type().is_block_device().then(|| device.rdev())?;
    let (major, minor) = (libc::major(number), libc::minor(number));
    Some(PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

/// The file under a loop device, or under the loop device that it is a part of.
fn backing_file(device: &Metadata) -> Option<PathBuf> {
    let node = sysfs_directory(device)?;
    let names = [node.join("loop/backing_file"), node.join("../loop/backing_file")];
    let name = names.iter().find_map(|name| std::fs::read_to_string(name).ok())?;
    Some(PathBuf::from(name.trim_end_matches('\n')))
}

/// Returns true if a process holds the lock of a file. A file that can't be opened counts as free.
fn is_locked(file: &Path) -> bool {
    let Ok(file) = File::open(file) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

fn loop_held(path: &Path, except: Option<&Path>) -> Option<PathBuf> {
    let except = except.and_then(|path| std::fs::metadata(path).ok());
    let wanted = std::fs::metadata(path).ok()?;
    let blocks = std::fs::read_dir("/sys/block").ok()?;
    blocks.filter_map(Result::ok).find_map(|block| {
        let over = std::fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
        let under = std::fs::metadata(over.trim_end_matches('\n')).ok()?;
        let device = Path::new("/dev").join(block.file_name());
        let is_other = except.as_ref().is_none_or(|except| {
            std::fs::metadata(&device).is_ok_and(|device| device.rdev() != except.rdev())
        });
        (is_other && is_same(&wanted, &under) && is_held(&device)).then_some(device)
    })
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino()) || a.rdev() != 0 && a.rdev() == b.rdev()
}

/// Returns true if the block device is open exclusively: by a mount, or a driver.
fn is_held(device: &Path) -> bool {
    if !std::fs::metadata(device).is_ok_and(|device| device.rdev() != 0) {
        return false;
    }
    let opened: io::Result<File> =
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    match opened {
        Ok(_) => false,
        // A missing node is not in use.
        Err(error) => {
            error.raw_os_error() == Some(libc::EBUSY)
                || error.kind() == io::ErrorKind::PermissionDenied
        }
    }
}

/// Returns true if a block device takes no writes: it can be opened for writing all the same.
pub(crate) fn is_read_only(device: &Metadata) -> bool {
    let read_only = sysfs_directory(device).map(|node| std::fs::read_to_string(node.join("ro")));
    read_only.is_some_and(|text| text.is_ok_and(|text| text.trim() == "1"))
}
