//! Waiting for rights on a file that somebody else gives.

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access, inotify};

/// Waits until this process may read and write a file: false if it may not after `patience`.
/// Blocks: not for the thread of a host.
///
/// # Errors
/// The directory of the file can't be watched.
pub fn wait_for_access(path: &Path, patience: Duration) -> io::Result<bool> {
    let may_use = || access(path, Access::READ_OK | Access::WRITE_OK).is_ok();
    if may_use() {
        return Ok(true);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let kinds = inotify::WatchFlags::ATTRIB | inotify::WatchFlags::CREATE;
    inotify::add_watch(&changes, directory, kinds)?;
    let end = Instant::now() + patience;
    let mut room = [MaybeUninit::uninit(); 4096];
    while !may_use() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Every change leads to another look at the file.
        let mut events = inotify::Reader::new(&changes, &mut room);
        while events.next().is_ok() {}
    }
    Ok(true)
}
