//! A few threads for what may block: disk I/O of the fallback backend, and in both backends the
//! ioctls that have no asynchronous form.
//!
//! A worker makes one attempt and hands back what io_uring would: a count or a negative errno.
//! The queue is as long as there are operations in flight, which the engine bounds.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::op::{Call, IoRequest, Op};
use crate::queue::Shared;
use crate::sys;

/// One attempt of an operation.
enum Job {
    Read { fd: RawFd, list: *const libc::iovec, count: usize, at: u64, flags: i32 },
    Write { fd: RawFd, list: *const libc::iovec, count: usize, at: u64, flags: i32 },
    Sync { fd: RawFd },
    Fallocate { fd: RawFd, mode: i32, at: u64, len: u64 },
    Call(Call),
}

// SAFETY: the pointers name memory of an operation, which is not touched until the job is done.
unsafe impl Send for Job {}

impl Job {
    fn of(op: &mut Op) -> Job {
        if op.asks_page_cache()
            && let IoRequest::Read { fd, at, .. } = &op.request
        {
            let (fd, at) = (fd.as_raw_fd(), op.position(*at));
            let (list, count) = op.page_cache_list();
            return Job::Read { fd, list, count, at, flags: libc::RWF_NOWAIT };
        }
        let (list, count) = op.memory_list();
        match &mut op.request {
            IoRequest::Call { call } => Job::Call(call.take().expect("a call has one attempt")),
            IoRequest::Sync { fd } => Job::Sync { fd: fd.as_raw_fd() },
            IoRequest::Fallocate { fd, mode, at, len } => {
                Job::Fallocate { fd: fd.as_raw_fd(), mode: *mode, at: *at, len: *len }
            }
            IoRequest::Read { fd, at, .. } => {
                let (fd, at) = (fd.as_raw_fd(), *at);
                Job::Read { fd, list, count, at: op.position(at), flags: 0 }
            }
            IoRequest::Write { fd, at, dsync, .. } => {
                let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
                let (fd, at) = (fd.as_raw_fd(), *at);
                Job::Write { fd, list, count, at: op.position(at), flags }
            }
            _ => unreachable!("only file operations and calls go to workers"),
        }
    }

    fn run(self) -> i32 {
        match self {
            // SAFETY: the list and its memory stay with the operation until this attempt ends.
            Job::Read { fd, list, count, at, flags } => unsafe {
                sys::preadv(fd, list, count, at, flags)
            },
            // SAFETY: the list and its memory stay with the operation until this attempt ends.
            Job::Write { fd, list, count, at, flags } => unsafe {
                sys::pwritev(fd, list, count, at, flags)
            },
            Job::Sync { fd } => sys::fdatasync(fd),
            Job::Fallocate { fd, mode, at, len } => sys::fallocate(fd, mode, at, len),
            Job::Call(call) => call(),
        }
    }
}

/// Large transfers that are taken after so many small jobs at the latest.
const SMALL_IN_A_ROW_MAX: usize = 8;
/// Threads that large transfers leave to the small jobs.
const THREADS_FOR_SMALL: usize = 2;

/// Jobs in two lines, so that a small one does not wait for all large ones before it.
#[derive(Default)]
struct JobQueue {
    small: VecDeque<(usize, Job)>,
    large: VecDeque<(usize, Job)>,
    small_in_a_row: usize,
    /// Large transfers under way, and the limit on them.
    large_running: usize,
    large_max: usize,
    finished: Vec<(usize, i32)>,
    idle: usize,
    stop: bool,
}

impl JobQueue {
    /// The next job; true with a large one.
    fn pop(&mut self) -> Option<(bool, usize, Job)> {
        let may_large = self.large_running < self.large_max && !self.large.is_empty();
        let may_small = !may_large || self.small_in_a_row < SMALL_IN_A_ROW_MAX;
        if may_small && let Some((key, job)) = self.small.pop_front() {
            self.small_in_a_row += 1;
            return Some((false, key, job));
        }
        if !may_large {
            return None;
        }
        self.small_in_a_row = 0;
        self.large_running += 1;
        self.large.pop_front().map(|(key, job)| (true, key, job))
    }

    fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }
}

struct Common {
    queue: Mutex<JobQueue>,
    work: Condvar,
    shared: Arc<Shared>,
}

impl Common {
    fn queue(&self) -> MutexGuard<'_, JobQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut queue = self.queue();
        loop {
            if let Some((large, key, job)) = queue.pop() {
                drop(queue);
                let result = job.run();
                queue = self.queue();
                queue.large_running -= usize::from(large);
                queue.finished.push((key, result));
                self.shared.wake();
            } else if queue.stop {
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

/// The threads; started when there is work for them.
pub(crate) struct Workers {
    common: Arc<Common>,
    name: &'static str,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
}

impl Workers {
    /// At most `threads_max` threads; they wake the reactor through `shared`.
    pub(crate) fn new(name: &'static str, threads_max: usize, shared: Arc<Shared>) -> Workers {
        let large_max = threads_max.saturating_sub(THREADS_FOR_SMALL).max(1);
        let queue = Mutex::new(JobQueue { large_max, ..JobQueue::default() });
        let common = Common { queue, work: Condvar::new(), shared };
        Workers { common: Arc::new(common), name, threads: Vec::new(), threads_max }
    }

    /// Queues the next attempt of an operation.
    pub(crate) fn attempt(&mut self, key: usize, op: &mut Op) {
        let large = op.bulk_cost().is_some();
        let job = Job::of(op);
        let mut queue = self.common.queue();
        if large { &mut queue.large } else { &mut queue.small }.push_back((key, job));
        let short_of_threads = queue.len() > queue.idle && self.threads.len() < self.threads_max;
        drop(queue);
        self.common.work.notify_one();
        if short_of_threads {
            let common = self.common.clone();
            let name = format!("ubcache-{}-{}", self.name, self.threads.len());
            match std::thread::Builder::new().name(name).spawn(move || common.serve()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => {
                    tracing::error!(%error, "can't start a worker thread");
                    self.common.queue().stop = true;
                    self.common.serve();
                    self.common.queue().stop = false;
                }
                Err(error) => tracing::warn!(%error, "can't start another worker thread"),
            }
        }
    }

    /// Takes the attempts that have ended.
    pub(crate) fn collect(&self, finished: &mut Vec<(usize, i32)>) {
        finished.append(&mut self.common.queue().finished);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queue = self.common.queue();
        queue.stop = true;
        let all_idle = queue.len() == 0 && queue.idle == self.threads.len();
        drop(queue);
        self.common.work.notify_all();
        // A thread that is stuck in a call is left behind; its memory is left with it.
        if all_idle {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}
