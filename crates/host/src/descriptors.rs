//! File descriptors of the process: how many there may be.

use std::io;

use crate::sys;

/// Raises the soft limit on open descriptors to the hard one, and returns it.
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = sys::descriptor_limits()?;
    if soft < hard {
        sys::set_descriptor_limits(hard, hard)?;
    }
    Ok(hard)
}

/// Descriptors that are open.
pub fn open_now() -> io::Result<u64> {
    // One of them reads the directory.
    let listed = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    Ok(listed.saturating_sub(1))
}
