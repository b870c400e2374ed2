//! Measures against a daemon that waits for its own clients when memory is short.
//!
//! A kernel on the same machine that writes dirty pages to a volume waits for the daemon; if the
//! daemon needs memory for that and the kernel, to find some, writes dirty pages, they wait for
//! each other.

use std::io;

use crate::sys;

/// Makes the kernel give memory to this process, and to threads that it starts from now on, without
/// writing to file systems or devices for it (`PR_SET_IO_FLUSHER`). Needs CAP_SYS_RESOURCE.
pub fn become_io_flusher() -> io::Result<()> {
    sys::set_io_flusher()
}

/// Returns true if the calling thread is one ([`become_io_flusher`]). An error: it may not be.
pub fn is_io_flusher() -> io::Result<bool> {
    sys::is_io_flusher()
}

/// Keeps in memory what this process has used once, now and later (`mlockall`). Needs a `memlock`
/// limit that is none, or root: with less, the process would end when it reaches it.
pub fn lock_memory() -> io::Result<()> {
    if !sys::may_lock_all_memory() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    sys::lock_all_memory()
}

/// Gives a new file room for all of its bytes. False: its file system can't do that.
pub fn allocate(file: &std::fs::File, bytes: u64) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    match sys::fallocate(file.as_raw_fd(), 0, 0, bytes) {
        0 => Ok(true),
        code if code == -libc::EOPNOTSUPP => Ok(false),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Bytes that are free on the file system of a file, for this user.
pub fn free_bytes(file: &std::fs::File) -> Option<u64> {
    sys::free_bytes(file)
}

/// A file of zeroes in memory, which is gone when the last one closes it.
pub fn file_in_memory(bytes: u64) -> io::Result<std::fs::File> {
    let file = std::fs::File::from(sys::memory_file()?);
    file.set_len(bytes)?;
    Ok(file)
}

/// The path by which this process opens an open file once more.
pub fn path_of(file: &std::fs::File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
