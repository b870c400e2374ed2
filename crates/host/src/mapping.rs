//! Memory that a file or a driver shares with this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// A shared mapping, taken away when it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes from position `at` of the descriptor, to be read, and written as well if
    /// `writable`.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        at: u64,
        len: usize,
        writable: bool,
    ) -> io::Result<Mapping> {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let (protection, flags) = (libc::PROT_READ | write, libc::MAP_SHARED | libc::MAP_POPULATE);
        let (place, fd) = (std::ptr::null_mut(), fd.as_raw_fd());
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { libc::mmap(place, len, protection, flags, fd, at as i64) };
        match NonNull::new(start.cast::<u8>()) {
            Some(place) if start != libc::MAP_FAILED => Ok(Mapping { start: place, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Maps `len` bytes of new memory at an address below 4 GiB.
    #[cfg(feature = "testing")]
    pub(crate) fn low(len: usize) -> io::Result<Mapping> {
        const STEP: usize = 256 << 20;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        for address in (STEP..1 << 32).step_by(STEP) {
            let wanted = std::ptr::without_provenance_mut(address);
            // SAFETY: the mapping is put where nothing is, or is refused.
            let start = unsafe { libc::mmap(wanted, len, protection, flags, -1, 0) };
            if let Some(place) = NonNull::new(start.cast::<u8>())
                && start != libc::MAP_FAILED
            {
                return Ok(Mapping { start: place, len });
            }
        }
        Err(io::Error::last_os_error())
    }

    /// The place of a byte of it, or of its end.
    pub(crate) fn place(&self, at: usize) -> *mut u8 {
        assert!(at <= self.len, "a place in the mapping");
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`.
        unsafe { self.start.as_ptr().add(at) }
    }

    /// Copies bytes from position `at`.
    pub(crate) fn copy_to(&self, at: usize, into: &mut [u8]) {
        assert!(at.checked_add(into.len()).is_some_and(|end| end <= self.len), "in the mapping");
        // SAFETY: both are as long as is said, and `into` is no part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.place(at), into.as_mut_ptr(), into.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of that length, and nothing borrows from it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
