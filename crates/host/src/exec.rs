//! The start of another program in this process, with descriptors that it inherits.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ubcache_env::Nanos;

use crate::{signal, sys};

/// A program.
#[derive(Copy, Clone, Debug)]
pub enum Program<'a> {
    /// A file, as it is now.
    File(&'a Path),
    /// An open file, whatever has become of its path.
    Open(&'a OwnedFd),
}

/// The program of this process, whatever becomes of its file.
pub fn own_program() -> io::Result<OwnedFd> {
    File::open("/proc/self/exe").map(OwnedFd::from)
}

/// Time of the clock that all programs on this machine share, and which is never set.
pub fn monotonic_now() -> Nanos {
    sys::monotonic_now()
}

/// Makes this process run another program. `keep`: the descriptors that it inherits, by their
/// numbers; all others are closed. Returns only if the system refuses.
pub fn exec<'a>(
    program: Program<'_>,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
    keep: impl Iterator<Item = BorrowedFd<'a>> + Clone,
) -> io::Error {
    let arguments = match strings(arguments.iter().map(|argument| argument.as_bytes().to_vec())) {
        Ok(arguments) => arguments,
        Err(error) => return error,
    };
    let variable = |(name, value): &(OsString, OsString)| {
        [name.as_os_str(), OsStr::new("="), value.as_os_str()]
            .iter()
            .flat_map(|part| part.as_bytes().iter().copied())
            .collect()
    };
    let environment = match strings(environment.iter().map(variable)) {
        Ok(environment) => environment,
        Err(error) => return error,
    };
    let inherit = |inherited| keep.clone().try_for_each(|fd| sys::set_inherited(fd, inherited));
    let prepared = inherit(true).and_then(|()| signal::keep_for_next(true));
    let error = prepared.err().unwrap_or_else(|| match program {
        Program::Open(fd) => sys::exec_open(fd, &arguments, &environment),
        Program::File(path) => match CString::new(path.as_os_str().as_bytes()) {
            Ok(path) => sys::exec(&path, &arguments, &environment),
            Err(_) => io::Error::from_raw_os_error(libc::EINVAL),
        },
    });
    // Of all errors the first one counts.
    let _ = inherit(false);
    let _ = signal::keep_for_next(false);
    error
}

fn strings(texts: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<CString>> {
    texts.map(|text| CString::new(text).map_err(io::Error::from)).collect()
}
