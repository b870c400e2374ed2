//! System calls as safe functions. Everything here is stateless; memory is passed as slices or
//! owned by the caller's operation, as each function says.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use ubcache_env::Nanos;

/// Longest scatter list the kernel takes.
pub(crate) const IOV_MAX: usize = 1024;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The present value of `errno`, negated as in a completion of io_uring.
fn outcome(result: isize) -> i32 {
    if result < 0 {
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made this descriptor, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new file in memory.
pub(crate) fn memory_file() -> io::Result<OwnedFd> {
    // SAFETY: the name is a string that ends with a zero; the kernel copies it.
    own(unsafe { libc::memfd_create(c"ubcache".as_ptr(), libc::MFD_CLOEXEC) })
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    // SAFETY: no memory is passed, and it can't fail.
    unsafe { libc::geteuid() }
}

/// A non-blocking eventfd with count 0.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Adds one to an eventfd. Async-signal-safe. A full counter is as good as one more.
pub(crate) fn eventfd_signal(fd: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: `one` is 8 readable bytes; a wrong descriptor only gives an error.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

/// Takes the count of an eventfd; 0 if there is none.
pub(crate) fn eventfd_take(fd: RawFd) -> u64 {
    let mut count = [0_u8; 8];
    // SAFETY: `count` is 8 writable bytes; a wrong descriptor only gives an error.
    let read = unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
    if read == 8 { u64::from_ne_bytes(count) } else { 0 }
}

/// Makes sleeps of the calling thread precise: by default the kernel lets them end up to 50 µs
/// late, to merge wake-ups.
pub(crate) fn sleep_precisely() {
    let one_nanosecond: libc::c_ulong = 1;
    // SAFETY: changes a number of the calling thread; no memory is passed. It can't fail.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, one_nanosecond) };
}

/// `prctl(PR_SET_IO_FLUSHER)`.
pub(crate) fn set_io_flusher() -> io::Result<()> {
    /// From <linux/prctl.h>.
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (on, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: changes a flag of the calling thread; no memory is passed.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, none, none, none) }).map(drop)
}

/// `prctl(PR_GET_IO_FLUSHER)`.
pub(crate) fn is_io_flusher() -> io::Result<bool> {
    /// From <linux/prctl.h>.
    const PR_GET_IO_FLUSHER: libc::c_int = 58;
    let none: libc::c_ulong = 0;
    // SAFETY: reads a flag of the calling thread; no memory is passed.
    check(unsafe { libc::prctl(PR_GET_IO_FLUSHER, none, none, none, none) }).map(|is| is == 1)
}

/// Returns true if no limit stands against locking whatever memory there will be.
pub(crate) fn may_lock_all_memory() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable memory of the right type.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0;
    // SAFETY: no memory is passed; it can't fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    is_root || known && limit.rlim_cur == libc::RLIM_INFINITY
}

/// The soft and the hard limit on open descriptors.
pub(crate) fn descriptor_limits() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable memory of the right type.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets both limits on open descriptors.
pub(crate) fn set_descriptor_limits(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is readable memory of the right type.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// `mlockall` of present and later memory, page by page when it is first used.
pub(crate) fn lock_all_memory() -> io::Result<()> {
    // SAFETY: no memory is passed; what is in memory stays as it is.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
        .map(drop)
}

/// Free bytes of the file system by `fstatvfs`, as an unprivileged user may use them.
pub(crate) fn free_bytes(file: &std::fs::File) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `stat` is writable memory of the right type.
    let done = unsafe { libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: the kernel has filled it, and zeroes are a valid value.
    let stat = unsafe { stat.assume_init() };
    (done == 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `clock_gettime(CLOCK_MONOTONIC)`.
pub(crate) fn monotonic_now() -> Nanos {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable memory of the right type; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// Lets a program that this process starts have the descriptor, or not.
pub(crate) fn set_inherited(fd: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let flags = if inherited { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) }).map(drop)
}

/// Lets a signal wait in this thread, and in what it starts, or lets it come.
pub(crate) fn block_signal(signal: i32, block: bool) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` is writable memory of the right type.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was made by the call before.
    check(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) })?;
    let how = if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: `set` was made above; null says that the former mask is not wanted.
    match unsafe { libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Number of this thread, as the kernel has it.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends a signal to a thread of this process; returns true if that is done.
pub(crate) fn signal_thread(thread: i32, signal: i32) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal) == 0 }
}

/// Returns true if a signal waits for this thread, or for the process.
#[cfg(test)]
pub(crate) fn is_pending(signal: i32) -> bool {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` is writable memory of the right type.
    let done = unsafe { libc::sigpending(set.as_mut_ptr()) };
    // SAFETY: the call before has filled it.
    done == 0 && unsafe { libc::sigismember(set.as_ptr(), signal) } == 1
}

/// Pointers to strings, with the null behind them that `execve` wants.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain(std::iter::once(std::ptr::null())).collect()
}

/// `execve(2)`; returns only with an error.
pub(crate) fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all are strings that end in 0, in lists that end in a null pointer, and outlive the
    // call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// `fexecve(3)`; returns only with an error.
pub(crate) fn exec_open(fd: &OwnedFd, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all are strings that end in 0, in lists that end in a null pointer, and outlive the
    // call.
    unsafe { libc::fexecve(fd.as_raw_fd(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// A seed from the kernel.
pub(crate) fn random_seed() -> u64 {
    let mut seed = [0_u8; 8];
    // SAFETY: `seed` is 8 writable bytes.
    let read = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if read == 8 { u64::from_ne_bytes(seed) } else { 0x9e37_79b9_7f4a_7c15 }
}

// ---------------------------------------------------------------------------- files

/// `open(2)` with O_CLOEXEC.
pub(crate) fn open(path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a string that ends in 0 and outlives the call.
    own(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// `flock(LOCK_EX | LOCK_NB)`.
pub(crate) fn lock_exclusive(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Returns true if the file system of a file is in memory.
pub(crate) fn is_in_memory(fd: &OwnedFd) -> bool {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` is writable memory of the right type.
    let result = unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a valid statfs.
    let kind = unsafe { stat.assume_init() }.f_type;
    // The two have one type with glibc, and two with musl.
    check(result).is_ok() && i128::from(kind) == i128::from(libc::TMPFS_MAGIC)
}

/// Alignment of direct I/O by `statx`: (memory, offset); `None` if the kernel does not say.
pub(crate) fn direct_io_alignment(fd: &OwnedFd) -> Option<(u32, u32)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let (mask, flags) = (libc::STATX_DIOALIGN, libc::AT_EMPTY_PATH);
    // SAFETY: the path is an empty string, `stat` is writable memory of the right type.
    let result =
        unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, stat.as_mut_ptr()) };
    check(result).ok()?;
    // SAFETY: it was zeroed, which is a valid statx, and the kernel has filled it.
    let stat = unsafe { stat.assume_init() };
    let known = stat.stx_mask & mask != 0 && stat.stx_dio_offset_align != 0;
    known.then_some((stat.stx_dio_mem_align.max(1), stat.stx_dio_offset_align))
}

const BLKGETSIZE64: libc::c_ulong = request_code(2, 0x72, size_of::<usize>());
const BLKDISCARD: libc::c_ulong = request_code(0, 0x77, 0);
const BLKZEROOUT: libc::c_ulong = request_code(0, 0x7f, 0);

/// Number of an ioctl of the block layer (type 0x12) as the generic Linux ABI makes it.
const fn request_code(direction: u64, number: u64, size: usize) -> libc::c_ulong {
    (direction << 30 | (size as u64) << 16 | 0x12 << 8 | number) as libc::c_ulong
}

/// Size of a block device in bytes.
pub(crate) fn block_device_bytes(fd: &OwnedFd) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the request writes one u64 through the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) })?;
    Ok(bytes)
}

/// Logical block size of a block device in bytes.
pub(crate) fn block_device_logical_block(fd: &OwnedFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET as _, &raw mut bytes) })?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Discards bytes of a block device; blocks. Returns 0 or a negative errno.
pub(crate) fn block_device_discard(fd: RawFd, at: u64, len: u64) -> i32 {
    let range = [at, len];
    // SAFETY: the request reads two u64 through the pointer.
    outcome(unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) } as isize)
}

/// Zeroes bytes of a block device; blocks. Returns 0 or a negative errno.
pub(crate) fn block_device_zero(fd: RawFd, at: u64, len: u64) -> i32 {
    let range = [at, len];
    // SAFETY: the request reads two u64 through the pointer.
    outcome(unsafe { libc::ioctl(fd, BLKZEROOUT as _, range.as_ptr()) } as isize)
}

/// `fallocate(2)`. Returns 0 or a negative errno.
pub(crate) fn fallocate(fd: RawFd, mode: i32, at: u64, len: u64) -> i32 {
    // SAFETY: no memory is passed.
    outcome(unsafe { libc::fallocate64(fd, mode, at as i64, len as i64) } as isize)
}

/// `fdatasync(2)`. Returns 0 or a negative errno.
pub(crate) fn fdatasync(fd: RawFd) -> i32 {
    // SAFETY: no memory is passed.
    outcome(unsafe { libc::fdatasync(fd) } as isize)
}

/// `posix_fadvise(POSIX_FADV_DONTNEED)` for all of it: clean pages leave the page cache, unless a
/// process has them mapped.
pub(crate) fn forget_pages(fd: RawFd) {
    forget_pages_of(fd, 0, 0);
}

/// The same for a part; length 0 means up to the end.
pub(crate) fn forget_pages_of(fd: RawFd, at: i64, bytes: i64) {
    // SAFETY: no memory is passed; it is advice, so what becomes of it does not matter.
    unsafe { libc::posix_fadvise(fd, at, bytes, libc::POSIX_FADV_DONTNEED) };
}

/// `preadv2(2)`. Returns bytes or a negative errno.
///
/// # Safety
/// `list` points to `count` entries, which name memory that is writable and not used otherwise
/// until the call returns.
pub(crate) unsafe fn preadv(
    fd: RawFd,
    list: *const libc::iovec,
    count: usize,
    at: u64,
    flags: i32,
) -> i32 {
    // SAFETY: as promised by the caller.
    outcome(unsafe { libc::preadv2(fd, list, count as i32, at as i64, flags) })
}

/// `preadv2(2)` with RWF_NOWAIT: of what can be had without waiting for a device. Returns bytes or
/// a negative errno, EAGAIN if that is nothing.
pub(crate) fn read_now(fd: RawFd, into: &mut [u8], at: u64) -> i32 {
    let list = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the list names the slice, which is writable memory.
    outcome(unsafe { libc::preadv2(fd, &raw const list, 1, at as i64, libc::RWF_NOWAIT) })
}

/// Copies from position `at` of a character device. Returns bytes or a negative errno.
pub(crate) fn copy_out(fd: RawFd, into: &mut [u8], at: u64) -> i32 {
    // SAFETY: the memory is writable and as long as is said.
    outcome(unsafe { libc::pread(fd, into.as_mut_ptr().cast(), into.len(), at as i64) })
}

/// `pwritev2(2)`. Returns bytes or a negative errno.
///
/// # Safety
/// `list` points to `count` entries, which name memory that is readable until the call returns.
pub(crate) unsafe fn pwritev(
    fd: RawFd,
    list: *const libc::iovec,
    count: usize,
    at: u64,
    flags: i32,
) -> i32 {
    // SAFETY: as promised by the caller.
    outcome(unsafe { libc::pwritev2(fd, list, count as i32, at as i64, flags) })
}

// ---------------------------------------------------------------------------- sockets

/// A stream socket: non-blocking, CLOEXEC.
pub(crate) fn stream_socket(family: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    own(unsafe { libc::socket(family, kind, 0) })
}

/// Starts to connect a non-blocking socket.
pub(crate) fn connect(fd: &OwnedFd, address: &Address) -> io::Result<()> {
    let target = (&raw const address.storage).cast();
    // SAFETY: `target` points to `address.len` initialised bytes.
    check(unsafe { libc::connect(fd.as_raw_fd(), target, address.len) }).map(drop)
}

/// Gives a socket its address.
pub(crate) fn bind(fd: &OwnedFd, address: &Address) -> io::Result<()> {
    let name = (&raw const address.storage).cast();
    // SAFETY: `name` points to `address.len` initialised bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), name, address.len) }).map(drop)
}

/// `listen(2)`; may be repeated to change the backlog.
pub(crate) fn listen(fd: &OwnedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Takes a connection; CLOEXEC, blocking.
pub(crate) fn accept(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let (fd, nobody) = (fd.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: null says that the address of the peer is not wanted.
    own(unsafe { libc::accept4(fd, nobody, std::ptr::null_mut(), libc::SOCK_CLOEXEC) })
}

/// `lseek(2)` with SEEK_DATA or SEEK_HOLE; an errno otherwise.
pub(crate) fn seek(fd: &OwnedFd, at: u64, whence: libc::c_int) -> Result<u64, i32> {
    let at = libc::off64_t::try_from(at).map_err(|_| libc::EINVAL)?;
    // SAFETY: no memory is passed.
    let found = unsafe { libc::lseek64(fd.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// An integer option of a socket.
pub(crate) fn socket_option(fd: &OwnedFd, option: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let (into, fd) = ((&raw mut value).cast(), fd.as_raw_fd());
    // SAFETY: `into` is a writable int and `len` its size.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, into, &raw mut len) })?;
    Ok(value)
}

/// Takes over a descriptor that the parent process passed to this one; it is CLOEXEC from then on.
pub(crate) fn take_passed(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and was passed for this process to own; the caller takes each once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of a group; none if there is no group of that name.
pub(crate) fn group_number(name: &CStr) -> io::Result<Option<u32>> {
    let mut strings = vec![0 as libc::c_char; 64 << 10];
    // SAFETY: all-zero bytes are a valid group: null pointers and a number.
    let mut group: libc::group = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut found = std::ptr::null_mut();
    let (into, len) = (strings.as_mut_ptr(), strings.len());
    // SAFETY: `into` has room for `len` bytes, the others are valid for a write each.
    let errno =
        unsafe { libc::getgrnam_r(name.as_ptr(), &raw mut group, into, len, &raw mut found) };
    match errno {
        0 | libc::ENOENT | libc::ESRCH if found.is_null() => Ok(None),
        0 => Ok(Some(group.gr_gid)),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// `fchmod(2)`.
pub(crate) fn set_mode(fd: &OwnedFd, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// The error that a socket holds, taken from it.
pub(crate) fn take_socket_error(fd: &OwnedFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let (into, fd) = ((&raw mut error).cast(), fd.as_raw_fd());
    // SAFETY: `into` is a writable int and `len` its size.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, into, &raw mut len) })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Sets an integer option of a socket.
pub(crate) fn set_socket_option(
    fd: &OwnedFd,
    level: i32,
    option: i32,
    value: i32,
) -> io::Result<()> {
    let from = (&raw const value).cast();
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `from` is a readable int and `len` its size.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, from, len) }).map(drop)
}

/// Ends both directions of a socket; pending calls return.
pub(crate) fn shutdown(fd: &OwnedFd) {
    // SAFETY: no memory is passed. A socket that is not connected gives an error, which is fine.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// `recv(2)` without blocking. Returns bytes or a negative errno.
pub(crate) fn recv_now(fd: RawFd, into: &mut [u8]) -> i32 {
    // SAFETY: the slice is writable memory.
    outcome(unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) })
}

/// `sendmsg(2)` without blocking. Returns bytes or a negative errno.
///
/// # Safety
/// The header's scatter list is valid and names readable memory until the call returns.
pub(crate) unsafe fn sendmsg_now(fd: RawFd, header: &libc::msghdr) -> i32 {
    // SAFETY: as promised by the caller.
    outcome(unsafe { libc::sendmsg(fd, header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// Sends what the list names, as much as there is room for. Returns bytes or a negative errno.
///
/// # Safety
/// The list names memory that is readable until the call returns.
pub(crate) unsafe fn send_now(fd: &OwnedFd, list: &[libc::iovec]) -> i32 {
    let mut header = empty_message_header();
    header.msg_iov = list.as_ptr().cast_mut();
    header.msg_iovlen = list.len() as _;
    // SAFETY: as promised by the caller.
    unsafe { sendmsg_now(fd.as_raw_fd(), &header) }
}

/// A message header without anything in it.
pub(crate) fn empty_message_header() -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid msghdr: null pointers with length 0.
    unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() }
}

/// A socket address in the kernel's form.
pub(crate) struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Address {
    fn from_raw<T: Copy>(raw: T) -> Address {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        assert!(
            size_of::<T>() <= size_of::<libc::sockaddr_storage>(),
            "sockaddr_storage holds every address"
        );
        // SAFETY: the storage is at least as large and at least as aligned as every sockaddr.
        unsafe { (&raw mut storage).cast::<T>().write(raw) };
        Address { storage, len: size_of::<T>() as libc::socklen_t }
    }

    /// The address family.
    pub(crate) fn family(&self) -> i32 {
        i32::from(self.storage.ss_family)
    }

    /// A path of a Unix socket.
    pub(crate) fn unix(path: &Path) -> io::Result<Address> {
        let bytes = path.as_os_str().as_bytes();
        let mut sun_path = [0 as libc::c_char; 108];
        if bytes.len() >= sun_path.len() || bytes.contains(&0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a socket path has at most 107 bytes",
            ));
        }
        for (to, from) in sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Address::from_raw(libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path }))
    }

    /// An IP address and port.
    pub(crate) fn ip(address: std::net::SocketAddr) -> Address {
        match address {
            std::net::SocketAddr::V4(v4) => Address::from_raw(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            std::net::SocketAddr::V6(v6) => Address::from_raw(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }
}

/// Sets or clears O_NONBLOCK.
pub(crate) fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

// ---------------------------------------------------------------------------- epoll

/// A new epoll instance.
pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Adds `fd` or changes what is waited for.
pub(crate) fn epoll_set(epoll: &OwnedFd, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: token };
    let epoll = epoll.as_raw_fd();
    // SAFETY: `event` is valid for the call.
    let changed = check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, &raw mut event) });
    match changed {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // SAFETY: `event` is valid for the call.
            check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })
                .map(drop)
        }
        other => other.map(drop),
    }
}

/// Waits for events, at most until the timeout; `None`: for ever. An interrupted wait gives none.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut Vec<libc::epoll_event>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    events.clear();
    let milliseconds = match timeout {
        None => -1,
        Some(Duration::ZERO) => 0,
        Some(timeout) => {
            // epoll_wait counts milliseconds, ppoll nanoseconds; an epoll instance can be polled.
            let limit = libc::timespec {
                tv_sec: timeout.as_secs().min(1 << 30) as _,
                tv_nsec: timeout.subsec_nanos() as _,
            };
            let mut poll = libc::pollfd { fd: epoll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd and one timespec that live through the call; no signal mask.
            unsafe { libc::ppoll(&raw mut poll, 1, &raw const limit, std::ptr::null()) };
            0
        }
    };
    let room = events.capacity() as i32;
    let into = events.as_mut_ptr();
    // SAFETY: the vector has room for `room` events.
    let found = unsafe { libc::epoll_wait(epoll.as_raw_fd(), into, room, milliseconds) };
    match check(found) {
        // SAFETY: the kernel has filled `found` events.
        Ok(found) => unsafe { events.set_len(found as usize) },
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Returns true if `fd` has any of `events` right now.
pub(crate) fn poll_now(fd: RawFd, events: u32) -> bool {
    let mut poll = libc::pollfd { fd, events: events as i16, revents: 0 };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// Waits until one of the descriptors can be read, or a signal was handled.
pub(crate) fn wait_readable(fds: &[RawFd]) -> io::Result<()> {
    let poll = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut polls: Vec<libc::pollfd> = fds.iter().map(poll).collect();
    // SAFETY: the pollfds live through the call.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

// ---------------------------------------------------------------------------- signals

/// Installs a handler for a signal, with SA_RESTART.
pub(crate) fn install_signal_handler(
    signal: i32,
    handler: extern "C" fn(libc::c_int),
) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction: default action, empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does only what is allowed in one (see `signal`); `action` is valid.
    check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }).map(drop)
}
