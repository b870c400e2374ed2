//! What opening a device does not tell: whether it can be written, and whether a loop device over it is in use.
//!
//! The kernel asks for a file, or for a device, under a loop device only for a moment: whoever opens it alone afterwards
//! succeeds, though a file system may be mounted from it.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The loop device over a file or block device that somebody holds, or that can't be asked.
pub fn loop_in_use(path: &Path) -> Option<PathBuf> {
    let wanted = std::fs::metadata(path).ok()?;
    let blocks = std::fs::read_dir("/sys/block").ok()?;
    blocks.filter_map(Result::ok).find_map(|block| {
        let over = std::fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
        let under = std::fs::metadata(over.trim_end_matches('\n')).ok()?;
        let device = Path::new("/dev").join(block.file_name());
        (is_same(&wanted, &under) && is_held(&device)).then_some(device)
    })
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino()) || a.rdev() != 0 && a.rdev() == b.rdev()
}

/// Whether somebody has it open for himself: a mount, or a driver.
fn is_held(device: &Path) -> bool {
    let opened: io::Result<File> = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    match opened {
        Ok(_) => false,
        // A node that is not there is nobody's.
        Err(error) => {
            error.raw_os_error() == Some(libc::EBUSY) || error.kind() == io::ErrorKind::PermissionDenied
        }
    }
}

/// Whether a block device takes no writes: it is opened for writing all the same.
pub(crate) fn is_read_only(device: &Metadata) -> bool {
    let (major, minor) = (libc::major(device.rdev()), libc::minor(device.rdev()));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}
