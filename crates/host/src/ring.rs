//! The io_uring backend: entries collect in the submission queue and go to the kernel once a turn.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use crate::op::{IoRequest, Memory, Op};
use crate::places::{PLACES, Places};
use crate::queue::Shared;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;

/// Threads of the kernel that copy to sockets, at most. They leave half of the processors to the
/// clients that receive.
const SENDING_THREADS_MAX: usize = 4;

/// Completions without a waiter.
const IGNORED: u64 = u64::MAX;
/// The eventfd of other threads is readable.
const WOKEN: u64 = u64::MAX - 1;

/// A receive waits before its first attempt.
const RECVSEND_POLL_FIRST: u16 = 1;
/// io_uring_enter: run deferred work and post completions.
const ENTER_GETEVENTS: u32 = 1;

/// An io_uring with what does not fit into it at the moment.
pub(crate) struct Ring {
    ring: IoUring,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    features: String,
    /// A receive need not be attempted before there is something to receive (Linux 5.19).
    polls_first: bool,
    places: Places,
}

impl Ring {
    /// Sets a ring up that wakes when `eventfd` becomes readable. An error says in words why this
    /// machine can't have one.
    pub(crate) fn new(eventfd: &OwnedFd) -> Result<Ring, String> {
        let (ring, features, polls_first) =
            set_up().map_err(|error| format!("io_uring_setup: {error}"))?;
        let params = ring.params();
        if !params.is_feature_nodrop()
            || !params.is_feature_ext_arg()
            || !params.is_feature_fast_poll()
        {
            return Err("this kernel's io_uring is older than Linux 5.11".to_owned());
        }
        probe(&ring)?;
        let (backlog, places) = (VecDeque::new(), Places::default());
        let mut ring = Ring { ring, backlog, features, polls_first, places };
        ring.watch(eventfd);
        // Kernels before 5.15 have no limit, and more threads are no harm.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let senders = (processors / 2).clamp(1, SENDING_THREADS_MAX) as u32;
        let _ = ring.ring.submitter().register_iowq_max_workers(&mut [0, senders]);
        ring.enter(None).map_err(|error| format!("io_uring_enter: {error}"))?;
        Ok(ring)
    }

    /// The setup flags in use, for the log.
    pub(crate) fn features(&self) -> &str {
        &self.features
    }

    /// Numbers for so many places in memory of others; `None`: the kernel has no table for them, or
    /// it is full.
    pub(crate) fn take_places(&mut self, count: u16) -> Option<Range<u16>> {
        let submitter = self.ring.submitter();
        self.places.take(count, || match submitter.register_buffers_sparse(u32::from(PLACES)) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "io_uring has no table of buffers");
                false
            }
        })
    }

    /// Takes numbers back.
    pub(crate) fn give_places_back(&mut self, numbers: &Range<u16>) {
        self.places.give_back(numbers);
    }

    /// Puts memory under a number that was taken, or takes it away from there (`None`).
    ///
    /// # Safety
    /// The memory stays where it is until it is taken away, and reads to it have ended by then.
    #[cfg(feature = "testing")]
    pub(crate) unsafe fn put_memory(
        &self,
        number: u16,
        memory: Option<libc::iovec>,
    ) -> io::Result<()> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let memory = [memory.unwrap_or(nothing)];
        // SAFETY: the caller keeps the memory.
        unsafe { self.ring.submitter().register_buffers_update(number.into(), &memory, None) }
    }

    /// Waits (again) for the eventfd.
    fn watch(&mut self, eventfd: &OwnedFd) {
        let entry =
            opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(entry.user_data(WOKEN));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: what the entry points to is owned by an operation that stays in the slab until
        // its completion has come.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Queues the next attempt of an operation; one that copies many bytes goes to a thread of the
    /// kernel.
    pub(crate) fn attempt(&mut self, key: usize, op: &mut Op) {
        let on_thread = op.is_copying();
        let entry = entry_of(op, self.polls_first).user_data(key as u64);
        self.push(if on_thread { entry.flags(squeue::Flags::ASYNC) } else { entry });
    }

    /// Asks the kernel to end an operation early; it completes as usual.
    pub(crate) fn cancel(&mut self, key: usize) {
        self.push(opcode::AsyncCancel::new(key as u64).build().user_data(IGNORED));
    }

    /// Submits what has collected, waits for a completion if `wait` is given (at most so long,
    /// `Duration::MAX`: for ever) and reports completions. Says whether the eventfd was readable.
    pub(crate) fn turn(
        &mut self,
        shared: &Shared,
        wait: Option<Duration>,
        completions: &mut Vec<(usize, i32)>,
    ) -> io::Result<()> {
        loop {
            let (queued, work_waits) = {
                let submission = self.ring.submission();
                (submission.len(), submission.taskrun() || submission.cq_overflow())
            };
            let wait =
                wait.filter(|_| self.backlog.is_empty() && self.ring.completion().is_empty());
            if queued > 0 || work_waits || wait.is_some() {
                shared.lock().without(|| self.enter(wait))?;
            }
            self.reap(shared.eventfd(), completions);
            if self.backlog.is_empty() {
                return Ok(());
            }
            self.refill();
        }
    }

    /// Moves entries of the backlog to the submission queue.
    fn refill(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { submission.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let entered = match wait {
            Some(limit) => {
                let limit = limit.min(Duration::from_secs(3600));
                let limit = types::Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos());
                let arguments = types::SubmitArgs::new().timespec(&limit);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
            None => {
                let queued = self.ring.submission().len() as u32;
                // SAFETY: no argument is passed; entries are valid as said in `push`.
                unsafe {
                    self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None)
                }
            }
        };
        match entered {
            Ok(_) => Ok(()),
            // ETIME: the time is over. EINTR: a signal. EBUSY, EAGAIN: reap, then try again.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self, eventfd: &OwnedFd, completions: &mut Vec<(usize, i32)>) {
        let mut woken = false;
        for completion in self.ring.completion() {
            match completion.user_data() {
                IGNORED => {}
                WOKEN => woken = true,
                key => completions.push((key as usize, completion.result())),
            }
        }
        if woken {
            crate::sys::eventfd_take(eventfd.as_raw_fd());
            self.watch(eventfd);
        }
    }
}

/// Tries the fastest flags first; older kernels refuse those they do not know.
/// Says which, and whether they come with RECVSEND_POLL_FIRST.
fn set_up() -> io::Result<(IoUring, String, bool)> {
    type Configure = fn(&mut io_uring::Builder) -> &mut io_uring::Builder;
    let choices: [(&str, bool, Configure); 3] = [
        ("single issuer, deferred task work", true, |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()
        }),
        ("cooperative task work", true, |builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag()
        }),
        ("no flags", false, |builder| builder),
    ];
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for (features, polls_first, configure) in choices {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).dontfork();
        match configure(&mut builder).build(SUBMISSIONS) {
            Ok(ring) => return Ok((ring, features.to_owned(), polls_first)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Checks that the kernel knows every operation that is used here.
fn probe(ring: &IoUring) -> Result<(), String> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("io_uring probe: {error}"))?;
    let needed = [
        ("NOP", opcode::Nop::CODE),
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("WRITEV", opcode::Writev::CODE),
        ("FSYNC", opcode::Fsync::CODE),
        ("FALLOCATE", opcode::Fallocate::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ];
    match needed.into_iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(format!("io_uring lacks the operation {name}")),
        None => Ok(()),
    }
}

/// The submission of an operation's next attempt.
fn entry_of(op: &mut Op, polls_first: bool) -> squeue::Entry {
    let memory = op.memory();
    match &op.request {
        IoRequest::Nop => opcode::Nop::new().build(),
        IoRequest::Read { fd, at, .. } => {
            let Memory::One { start, len } = memory else { unreachable!("a buffer is one piece") };
            opcode::Read::new(raw(fd), start, len).offset(op.position(*at)).build()
        }
        IoRequest::ReadInto { fd, at, .. } => {
            let (number, start, len) = op.place();
            let start = std::ptr::without_provenance_mut(start);
            opcode::ReadFixed::new(raw(fd), start, len, number).offset(op.position(*at)).build()
        }
        IoRequest::Write { fd, at, dsync, .. } => {
            let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
            let (fd, at) = (raw(fd), op.position(*at));
            match memory {
                Memory::One { start, len } => {
                    opcode::Write::new(fd, start, len).offset(at).rw_flags(flags).build()
                }
                Memory::List { list, count } => {
                    opcode::Writev::new(fd, list, count as u32).offset(at).rw_flags(flags).build()
                }
            }
        }
        IoRequest::Sync { fd } => {
            opcode::Fsync::new(raw(fd)).flags(types::FsyncFlags::DATASYNC).build()
        }
        IoRequest::Fallocate { fd, mode, at, len } => {
            opcode::Fallocate::new(raw(fd), *len).offset(*at).mode(*mode).build()
        }
        IoRequest::Recv { fd, .. } => {
            let Memory::One { start, len } = memory else { unreachable!("a buffer is one piece") };
            // Mostly the peer has yet to see a reply.
            let ioprio = if polls_first { RECVSEND_POLL_FIRST } else { 0 };
            opcode::Recv::new(raw(fd), start, len).ioprio(ioprio).build()
        }
        IoRequest::Send { fd, .. } => {
            let fd = raw(fd);
            match memory {
                Memory::One { start, len } => {
                    opcode::Send::new(fd, start, len).flags(libc::MSG_NOSIGNAL).build()
                }
                Memory::List { list, count } => {
                    let header = op.header(list, count);
                    opcode::SendMsg::new(fd, header).flags(libc::MSG_NOSIGNAL as u32).build()
                }
            }
        }
        IoRequest::Poll { fd, events } => opcode::PollAdd::new(raw(fd), *events).build(),
        IoRequest::Command { fd, command, .. } => {
            let (fd, code, word) = (raw(fd), command.code, command.word);
            opcode::UringCmd16::new(fd, code).cmd(op.command()).addr(Some(word)).build()
        }
        IoRequest::Call { .. } => unreachable!("calls run on worker threads"),
    }
}

fn raw(fd: &OwnedFd) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}
