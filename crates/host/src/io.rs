//! I/O in flight and who carries it out: the slab of operations over the backend of choice.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::op::{IoRequest, Next, Op, Outcome, SLICE_BYTES, WaitKind};
use crate::poller::Poller;
use crate::queue::Shared;
use crate::ring::Ring;
use crate::workers::Workers;

/// Worker threads of the fallback backend, and those for blocking calls beside a ring.
const POOL_THREADS: usize = 6;
const RING_THREADS: usize = 2;
/// Threads that copy from the page cache beside a ring: one leaves the other processors to clients.
const COPYING_THREADS: usize = 1;

/// Scatter lists kept for the next operations.
const SPARE_LISTS: usize = 64;

/// Way of I/O to the kernel.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum IoBackend {
    /// The environment variable `UBCACHE_IO` decides (`ring` or `pool`); without it, the ring where
    /// it can be had, else the pool.
    Auto,
    /// io_uring.
    Ring,
    /// epoll for sockets, threads for files.
    Pool,
}

enum Backend {
    Ring(Box<Ring>),
    Pool(Poller),
}

impl Backend {
    /// The wait of a turn that only looks at what has happened. A ring does so in any case.
    fn look(&self) -> Option<Duration> {
        match self {
            Backend::Ring(_) => None,
            Backend::Pool(_) => Some(Duration::ZERO),
        }
    }
}

/// The bytes that a small operation counts as, at least, while large transfers wait.
const PROMPT_COST: usize = 2 << 10;

/// The reason why a turn is made.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Tasks are ready: they go on after it.
    Busy,
    /// No task is ready, and the caller looks again at once.
    Look,
    /// No task is ready before something happens, or so much time is over. `Duration::MAX`: for
    /// ever.
    Wait(Duration),
}

/// I/O in flight and who carries it out.
///
/// A large transfer takes a thread as long as its bytes are copied, or pinned. Threads of the
/// kernel do the copying where they can. The rest goes in slices, each when this thread has nothing
/// else to do: a request that comes meanwhile waits for one slice, not for all bytes that others
/// have asked for. A steady stream of small operations lets a slice pass for every slice of bytes
/// of its own.
pub(crate) struct Io {
    ops: Slab<Op>,
    backend: Backend,
    /// Large transfers whose next slice is due, in turn.
    bulk: VecDeque<usize>,
    /// Bytes of small operations since the last slice.
    passed: usize,
    /// A small operation was queued that the kernel has not seen.
    queued: bool,
    workers: Workers,
    copiers: Workers,
    running: usize,
    /// Those of each [`WaitKind`].
    running_of: [usize; 3],
    /// Large transfers of those that are copied.
    copying: usize,
    spare_lists: Vec<Vec<libc::iovec>>,
    completions: Vec<(usize, i32)>,
}

impl Io {
    /// Makes the backend; also its name.
    pub(crate) fn new(backend: IoBackend, shared: &Arc<Shared>) -> io::Result<(Io, &'static str)> {
        let (backend, name, threads) = choose(backend, shared)?;
        let io = Io {
            ops: Slab::new(),
            backend,
            bulk: VecDeque::new(),
            passed: 0,
            queued: false,
            workers: Workers::new("io", threads, shared.clone()),
            copiers: Workers::new("copy", COPYING_THREADS, shared.clone()),
            running: 0,
            running_of: [0; 3],
            copying: 0,
            spare_lists: Vec::new(),
            completions: Vec::new(),
        };
        Ok((io, name))
    }

    /// Operations that have not ended.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// The kind of a wait now.
    pub(crate) fn wait_kind(&self) -> WaitKind {
        let is_running = |kind: &WaitKind| self.running_of[*kind as usize] > 0;
        let kinds = [WaitKind::Devices, WaitKind::Durable];
        kinds.into_iter().find(is_running).unwrap_or(WaitKind::Peers)
    }

    /// Returns true if [`Io::turn`] without waiting is a look at memory where nothing has happened.
    pub(crate) fn polls_cheaply(&self) -> bool {
        matches!(self.backend, Backend::Ring(_))
    }

    /// Returns true while other threads copy, or wait to copy, large transfers.
    pub(crate) fn is_copying(&self) -> bool {
        self.copying > 0
    }

    /// Starts an operation.
    pub(crate) fn submit(&mut self, request: IoRequest) -> usize {
        let list = self.spare_lists.pop().unwrap_or_default();
        self.running += 1;
        self.running_of[request.wait_kind() as usize] += 1;
        let key = self.ops.insert(Op::new(request, list));
        self.copying += usize::from(self.ops[key].is_copied_bulk());
        self.attempt(key);
        key
    }

    /// Numbers for so many places in memory of others; `None`: they can't be had.
    pub(crate) fn take_places(&mut self, count: u16) -> Option<Range<u16>> {
        match &mut self.backend {
            Backend::Ring(ring) => ring.take_places(count),
            Backend::Pool(_) => None,
        }
    }

    /// Takes numbers back.
    pub(crate) fn give_places_back(&mut self, numbers: &Range<u16>) {
        if let Backend::Ring(ring) = &mut self.backend {
            ring.give_places_back(numbers);
        }
    }

    /// Puts memory under a number that was taken, or takes it away from there.
    ///
    /// # Safety
    /// The same as for [`Ring::put_memory`].
    #[cfg(feature = "testing")]
    pub(crate) unsafe fn put_memory(
        &self,
        number: u16,
        memory: Option<libc::iovec>,
    ) -> io::Result<()> {
        match &self.backend {
            // SAFETY: the caller keeps what it asks for.
            Backend::Ring(ring) => unsafe { ring.put_memory(number, memory) },
            Backend::Pool(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns true if a large transfer waits for its next slice.
    pub(crate) fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    fn attempt(&mut self, key: usize) {
        let op = &self.ops[key];
        let on_this_thread = match self.backend {
            Backend::Ring(_) => !op.request.copies(),
            Backend::Pool(_) => matches!(op.request, IoRequest::Send { .. }),
        };
        if on_this_thread && op.bulk_cost().is_some() {
            self.bulk.push_back(key);
            return;
        }
        self.queued = true;
        if !self.bulk.is_empty() {
            self.passed += op.bytes().max(PROMPT_COST);
        }
        self.attempt_now(key);
    }

    /// Lets the next slices of large transfers pass, if it is their turn.
    fn feed(&mut self, idle: bool) {
        let quiet = idle && !self.queued;
        if self.bulk.is_empty() || !quiet && self.passed < SLICE_BYTES {
            return;
        }
        self.passed = 0;
        let mut cost = 0;
        while cost < SLICE_BYTES
            && let Some(key) = self.bulk.pop_front()
        {
            let op = &self.ops[key];
            if (op.is_abandoned() || op.is_interrupted()) && op.request.is_patient() {
                self.completions.push((key, -libc::ECANCELED));
                continue;
            }
            cost += op.bulk_cost().unwrap_or(SLICE_BYTES);
            self.attempt_now(key);
        }
    }

    fn attempt_now(&mut self, key: usize) {
        let op = &mut self.ops[key];
        match (&mut self.backend, &op.request) {
            (_, IoRequest::Call { .. }) => self.workers.attempt(key, op),
            (Backend::Ring(_), _) if op.asks_page_cache() => self.copiers.attempt(key, op),
            (Backend::Ring(ring), _) => ring.attempt(key, op),
            (Backend::Pool(_), IoRequest::Command { .. } | IoRequest::ReadInto { .. }) => {
                self.completions.push((key, -libc::EOPNOTSUPP));
            }
            (Backend::Pool(poller), request)
                if request.is_patient() || matches!(request, IoRequest::Nop) =>
            {
                poller.attempt(key);
            }
            (Backend::Pool(_), _) => self.workers.attempt(key, op),
        }
    }

    fn remove(&mut self, key: usize) -> IoRequest {
        let (request, list) = self.ops.remove(key).into_parts();
        if list.capacity() > 0 && self.spare_lists.len() < SPARE_LISTS {
            self.spare_lists.push(list);
        }
        request
    }

    /// The outcome of an operation, with its request, if it is complete.
    pub(crate) fn poll(&mut self, key: usize, waker: &Waker) -> Poll<(IoRequest, Outcome)> {
        // Without its host an operation that the kernel never ended never ends.
        let Some(op) = self.ops.get_mut(key) else { return Poll::Pending };
        match op.poll(waker) {
            Some(outcome) => Poll::Ready((self.remove(key), outcome)),
            None => Poll::Pending,
        }
    }

    /// Marks an operation as abandoned.
    pub(crate) fn abandon(&mut self, key: usize) {
        let Some(op) = self.ops.get_mut(key) else { return };
        if op.abandon() {
            self.remove(key);
        } else if op.request.is_patient() {
            self.cancel(key);
        }
    }

    /// Ends an operation early, with what it has transferred; its waiter gets the outcome soon.
    pub(crate) fn interrupt(&mut self, key: usize) {
        let Some(op) = self.ops.get_mut(key) else { return };
        if !op.is_running() {
            return;
        }
        op.interrupt();
        self.cancel(key);
    }

    fn cancel(&mut self, key: usize) {
        match &mut self.backend {
            Backend::Ring(ring) => ring.cancel(key),
            Backend::Pool(poller) => {
                if poller.cancel(key, &self.ops[key]) {
                    self.completions.push((key, -libc::ECANCELED));
                }
            }
        }
    }

    /// Ends all operations that may wait for ever.
    pub(crate) fn cancel_patient(&mut self) {
        let running = self.ops.iter().filter(|(_, op)| op.is_running() && op.request.is_patient());
        let keys: Vec<usize> = running.map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.cancel(key));
    }

    /// Gives up operations that have not ended; their memory is never freed.
    pub(crate) fn leak_running(&mut self) {
        if self.running > 0 {
            let operations = self.running;
            tracing::warn!(
                operations,
                "I/O is still in flight at the end; its memory stays allocated"
            );
            std::mem::forget(std::mem::take(&mut self.ops));
        }
    }

    /// Submits and collects; wakers of those whose operations are complete go to `wakers`.
    pub(crate) fn turn(
        &mut self,
        shared: &Shared,
        turn: Turn,
        wakers: &mut Vec<Waker>,
    ) -> io::Result<()> {
        let wait = match turn {
            Turn::Wait(limit) => Some(limit),
            Turn::Busy | Turn::Look => None,
        };
        if wait.is_none() && self.running == 0 {
            // The rest (cancellations, the watch on the eventfd) can wait for a quiet moment.
            return Ok(());
        }
        let had_bulk = self.has_bulk();
        if had_bulk {
            self.feed(turn != Turn::Busy);
        }
        self.queued = false;
        let mut completions = std::mem::take(&mut self.completions);
        let wait = match wait {
            Some(_) if had_bulk => self.backend.look(),
            wait => wait.filter(|_| completions.is_empty()),
        };
        let turned = match &mut self.backend {
            Backend::Ring(ring) => ring.turn(shared, wait, &mut completions),
            Backend::Pool(poller) => poller.turn(shared, wait, &mut self.ops, &mut completions),
        };
        self.settle(&mut completions, wakers);
        self.completions = completions;
        turned
    }

    /// Collects what worker threads have finished.
    pub(crate) fn collect_workers(&mut self, wakers: &mut Vec<Waker>) {
        let mut completions = Vec::new();
        self.workers.collect(&mut completions);
        self.copiers.collect(&mut completions);
        self.settle(&mut completions, wakers);
    }

    fn settle(&mut self, completions: &mut Vec<(usize, i32)>, wakers: &mut Vec<Waker>) {
        for (key, result) in completions.drain(..) {
            let next = self.ops[key].attempt_ended(result);
            if let Next::Attempt = next {
                self.attempt(key);
                continue;
            }
            self.running -= 1;
            self.running_of[self.ops[key].request.wait_kind() as usize] -= 1;
            self.copying -= usize::from(self.ops[key].is_copied_bulk());
            match next {
                Next::Complete(waker) => wakers.extend(waker),
                _ => drop(self.remove(key)),
            }
        }
    }
}

/// Makes the backend; also its name and how many worker threads go with it.
fn choose(wanted: IoBackend, shared: &Shared) -> io::Result<(Backend, &'static str, usize)> {
    let demanded = match (wanted, std::env::var("UBCACHE_IO").as_deref()) {
        (IoBackend::Auto, Ok("ring")) => IoBackend::Ring,
        (IoBackend::Auto, Ok("pool")) => IoBackend::Pool,
        (IoBackend::Auto, Ok("" | "auto") | Err(_)) => IoBackend::Auto,
        (IoBackend::Auto, Ok(other)) => {
            let text =
                format!("UBCACHE_IO is \"{other}\"; it can be \"ring\", \"pool\" or \"auto\"");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        (wanted, _) => wanted,
    };
    if demanded != IoBackend::Pool {
        match Ring::new(shared.eventfd()) {
            Ok(ring) => {
                tracing::debug!(flags = ring.features(), "I/O by io_uring");
                return Ok((Backend::Ring(Box::new(ring)), "ring", RING_THREADS));
            }
            Err(reason) if demanded == IoBackend::Ring => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            Err(reason) => {
                tracing::warn!(reason, "io_uring is not available; I/O by epoll and threads")
            }
        }
    }
    Ok((Backend::Pool(Poller::new(shared.eventfd())?), "pool", POOL_THREADS))
}
