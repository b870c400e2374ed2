//! Opening of files and block devices: one way for the engine's devices and for commands.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ubcache_env::DeviceLimits;

use crate::claims;
use crate::limits::{Alignment, survey};
use crate::sys;

/// The devices that are used through the kernel's page cache.
///
/// When the kernel can't write a page, the next flush fails, once, and the page counts as clean
/// from then on: reads go on returning it until the memory is needed, and then what the device has.
/// So a device that is used that way takes no writes and no flushes any more once a flush has
/// failed, and what is in the page cache when it is opened is given up.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum PageCache {
    /// None: what can't be opened with O_DIRECT is refused.
    #[default]
    Never,
    /// Devices that can't be opened with O_DIRECT; the log names them.
    Needed,
    /// All.
    Always,
}

const OPENING: &str = "opening it";

/// Options for opening a file or device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    /// Use of the page cache.
    pub page_cache: PageCache,
    /// Allow writes.
    pub write: bool,
    /// Fail if another process uses it: O_EXCL for block devices, a lock (`flock`) for files.
    pub exclusive: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions { page_cache: PageCache::Never, write: false, exclusive: false }
    }
}

/// A file or device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing of this name.
    #[error("{path}: not found; check the name, or create the file first")]
    NotFound {
        /// The file or device.
        path: PathBuf,
    },
    /// The user may not open it.
    #[error("{path}: permission denied for {mode}; run as root or give the user access to it")]
    Permission {
        /// The file or device.
        path: PathBuf,
        /// "reading" or "reading and writing".
        mode: &'static str,
    },
    /// Another process, or the kernel, uses it.
    #[error("{path}: in use by {by}; {hint}")]
    InUse {
        /// The file or device.
        path: PathBuf,
        /// By whom, as far as is known.
        by: &'static str,
        /// Advice.
        hint: &'static str,
    },
    /// Its file system has no O_DIRECT.
    #[error(
        "{path}: no direct I/O (O_DIRECT); use a file system that supports it, or a block device"
    )]
    NoDirectIo {
        /// The file or device.
        path: PathBuf,
    },
    /// It takes no writes.
    #[error("{path}: a read-only device; `blockdev --setrw`, or work on a copy")]
    ReadOnly {
        /// The file or device.
        path: PathBuf,
    },
    /// It is a directory, a pipe, a character device, …
    #[error("{path}: is {found}; a regular file or a block device is needed")]
    WrongKind {
        /// The file or device.
        path: PathBuf,
        /// Its kind.
        found: &'static str,
    },
    /// The operating system gave another error.
    #[error("{path}: {doing} failed: {source}")]
    Os {
        /// The file or device.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// A file or block device that was opened, and what is known of it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) is_block_device: bool,
    /// Past the page cache.
    pub(crate) direct: bool,
    pub(crate) limits: DeviceLimits,
    pub(crate) alignment: Alignment,
}

/// Opens `path`. Blocks for as long as the kernel takes.
pub(crate) fn open(path: &Path, options: OpenOptions) -> Result<Opened, OpenError> {
    let failed = |doing| move |source| failure(path, options, doing, source);
    let metadata = std::fs::metadata(path).map_err(failed("reading its type"))?;
    let kind = metadata.file_type();
    if let Some(found) = unsuitable(kind) {
        return Err(OpenError::WrongKind { path: path.to_owned(), found });
    }
    let is_block_device = kind.is_block_device();
    if options.write && is_block_device && claims::is_read_only(&metadata) {
        return Err(OpenError::ReadOnly { path: path.to_owned() });
    }
    let (fd, direct) = open_any(path, options, is_block_device).map_err(failed(OPENING))?;
    if options.exclusive && !is_block_device {
        sys::lock_exclusive(&fd).map_err(failed("locking it"))?;
    }
    if options.exclusive && claims::loop_in_use(path).is_some() {
        return Err(OpenError::InUse {
            path: path.to_owned(),
            by: "a loop device over it",
            hint: "unmount the file system on the loop device (`losetup --associated` with \
                   the path names it)",
        });
    }
    if options.exclusive && is_block_device && claims::under_loop_in_use(path).is_some() {
        return Err(OpenError::InUse {
            path: path.to_owned(),
            by: "a user of the file under this loop device, or another loop device over it",
            hint: "`losetup --list` names the file; stop that process first",
        });
    }
    if !direct && options.write {
        empty_page_cache(&fd).map_err(failed("writing its page cache back"))?;
    }
    let (limits, alignment) =
        survey(&fd, direct, options.write).map_err(failed("reading its size"))?;
    Ok(Opened { fd, is_block_device, direct, limits, alignment })
}

/// A file or block device for a command that reads and writes it with blocking calls.
#[derive(Debug)]
pub struct PlainFile {
    /// The open file, used through the page cache.
    pub file: File,
    /// Returns true if it is a block device.
    pub is_block_device: bool,
    /// Size, and smallest unit of I/O.
    pub limits: DeviceLimits,
}

impl PlainFile {
    /// Opens `path`, to look at it while others may use it, or to change it alone.
    pub fn open(path: &Path, change: bool) -> Result<PlainFile, OpenError> {
        let options =
            OpenOptions { page_cache: PageCache::Always, write: change, exclusive: change };
        let Opened { fd, is_block_device, limits, .. } = open(path, options)?;
        Ok(PlainFile { file: File::from(fd), is_block_device, limits })
    }

    /// Drops a clean part from the page cache, so that the next read comes from the device: the
    /// kernel's own drivers write past the page cache, and leave older content there.
    pub fn forget(&self, at: u64, bytes: u64) {
        if let (Ok(at), Ok(bytes)) = (i64::try_from(at), i64::try_from(bytes)) {
            sys::forget_pages_of(self.file.as_raw_fd(), at, bytes);
        }
    }
}

/// Names the kind of a file that can't keep blocks.
fn unsuitable(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() || kind.is_block_device() => None,
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_char_device() => Some("a character device"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("neither a file nor a device"),
    }
}

/// Writes the page cache back and drops it, so that reads come from the device: a former user may
/// have left data there that the device refused.
fn empty_page_cache(fd: &OwnedFd) -> io::Result<()> {
    match sys::fdatasync(fd.as_raw_fd()) {
        0 => {
            sys::forget_pages(fd.as_raw_fd());
            Ok(())
        }
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Opens with O_DIRECT if wanted and possible; says whether it was.
fn open_any(
    path: &Path,
    options: OpenOptions,
    is_block_device: bool,
) -> io::Result<(OwnedFd, bool)> {
    let mut flags = if options.write { libc::O_RDWR } else { libc::O_RDONLY };
    if options.exclusive && is_block_device {
        flags |= libc::O_EXCL;
    }
    if options.page_cache != PageCache::Always {
        match sys::open(path, flags | libc::O_DIRECT) {
            Err(error) if options.page_cache == PageCache::Needed && has_no_direct_io(&error) => {
                tracing::warn!(path = %path.display(), "no direct I/O on this file system; I/O \
                    goes through the page cache");
            }
            opened => return Ok((opened?, true)),
        }
    }
    Ok((sys::open(path, flags)?, false))
}

fn has_no_direct_io(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

fn failure(path: &Path, options: OpenOptions, doing: &'static str, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.raw_os_error() {
        _ if doing == OPENING
            && options.page_cache == PageCache::Never
            && has_no_direct_io(&source) =>
        {
            OpenError::NoDirectIo { path }
        }
        Some(libc::ENOENT) => OpenError::NotFound { path },
        Some(libc::EACCES | libc::EPERM) => {
            let mode = if options.write { "reading and writing" } else { "reading" };
            OpenError::Permission { path, mode }
        }
        Some(libc::EBUSY) => OpenError::InUse {
            path,
            by: "the kernel or another process",
            hint: "unmount it, stop the device mapper, md or bcache device on it, or the process \
                that has it open",
        },
        Some(libc::EAGAIN) => OpenError::InUse {
            path,
            by: "another process (it holds the lock of the file)",
            hint: "stop that process first; `fuser -v` on the file names it",
        },
        _ => OpenError::Os { path, doing, source },
    }
}
