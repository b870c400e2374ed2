//! Processor time of the calling thread: what others on the machine do does not count, except through its caches.
#![allow(unsafe_code, reason = "one system call")]

use std::time::Duration;

/// Processor time that this thread has used.
pub fn of_thread() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "Linux has the clock of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
