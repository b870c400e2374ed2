//! The loop of a cache set's thread, and the handles to it.
//!
//! A turn of the loop: poll the main future if it was woken; run tasks, foreground first, the
//! others bounded; wake sleepers; hand all new I/O to the kernel at once and take completions,
//! waiting only if nothing can run; take the calls of other threads. Where waits are short, the
//! loop spends them awake ([`Host::set_busy_poll`]).
//!
//! Invariants: no `RefCell` is borrowed while foreign code (a task, a waker, a remote call) runs.
//! An operation leaves the slab only after its last attempt has ended, so dropping a future never
//! frees memory that the kernel may still use.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use async_task::{ScheduleInfo, WithInfo};
use slab::Slab;
use ubcache_env::{BufPool, Env, Joined, Nanos, Priority, Task};

use crate::copies::Copies;
use crate::disk::HostDisk;
use crate::io::{Io, IoBackend, Turn};
use crate::op::{IoRequest, Outcome};
use crate::queue::{RemoteCall, Shared};
use crate::sys;
use crate::timers::{TimerKey, Timers};

/// The most tasks that are polled in a turn, by priority.
const FOREGROUND_POLLS: usize = 256;
const JOURNAL_POLLS: usize = 64;
const BACKGROUND_POLLS: usize = 16;
const FILL_POLLS: usize = 16;
/// Time for the background tasks of a turn, and for its fills: either ends early when it is over.
const BACKGROUND_TIME: Duration = Duration::from_micros(100);

/// Time that the end of a host waits for I/O that is still in flight.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// State that the handles of a host share.
pub(crate) struct Core {
    shared: Arc<Shared>,
    io: RefCell<Io>,
    timers: RefCell<Timers>,
    /// A waker of every task that has not ended, to end them with the host.
    tasks: RefCell<Slab<Waker>>,
    /// Kept for its memory.
    wakers: Cell<Vec<Waker>>,
    origin: Instant,
    buffers: BufPool,
    random: Cell<u64>,
    entered: Cell<bool>,
    closed: Cell<bool>,
    copies: Copies,
    busy_poll: Cell<Duration>,
    /// The latest wait of each [`WaitKind`](crate::op::WaitKind) was no longer than `busy_poll`.
    waits_are_short: [Cell<bool>; 3],
}

impl Core {
    fn now(&self) -> Nanos {
        Nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn run_tasks(&self) {
        self.run_some(Priority::Foreground, FOREGROUND_POLLS);
        self.run_some(Priority::Journal, JOURNAL_POLLS);
        self.run_for_a_while(Priority::Background, BACKGROUND_POLLS);
        self.run_for_a_while(Priority::Fill, FILL_POLLS);
        self.shared.end_turn();
    }

    fn run_for_a_while(&self, priority: Priority, polls: usize) {
        let mut started = None;
        for _ in 0..polls {
            let Some(task) = self.shared.pop(priority) else { return };
            let started = *started.get_or_insert_with(Instant::now);
            task.run();
            self.shared.lock().give_way();
            if started.elapsed() >= BACKGROUND_TIME {
                return;
            }
        }
    }

    fn run_some(&self, priority: Priority, polls: usize) {
        for _ in 0..polls {
            let Some(task) = self.shared.pop(priority) else { return };
            task.run();
            self.shared.lock().give_way();
            if self.copies.are_enough() {
                return;
            }
        }
    }

    fn wake_sleepers(&self) {
        if self.timers.borrow().next().is_none() {
            return;
        }
        let now = self.now();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { return };
            waker.wake();
        }
    }

    /// Time that the loop may sleep when nothing can run.
    fn wait_max(&self) -> Duration {
        match self.timers.borrow().next() {
            Some(at) => Duration::from_nanos(at.since(self.now()).0),
            None => Duration::MAX,
        }
    }

    /// The part that other threads may reach.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Copying on this thread.
    pub(crate) fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Returns true if so many bytes may be copied on this thread now, and counts them.
    pub(crate) fn may_copy_now(&self, bytes: usize) -> bool {
        self.copies.may_copy(bytes, || self.io.borrow().is_copying())
    }

    fn turn_io(&self, turn: Turn) {
        self.copies.begin_turn();
        let mut wakers = self.wakers.take();
        let turned = self.io.borrow_mut().turn(&self.shared, turn, &mut wakers);
        if let Err(error) = turned {
            // A reactor that can't reach the kernel can do nothing any more, not even stop.
            panic!("the I/O backend failed: {error}");
        }
        wakers.drain(..).for_each(Waker::wake);
        self.wakers.set(wakers);
    }

    /// Waits until there may be something to do.
    fn wait(&self, has_work: impl Fn() -> bool) {
        if self.io.borrow().has_bulk() {
            // There is something to do: it is no wait.
            return self.turn_io(Turn::Look);
        }
        let limit = self.busy_poll.get();
        if limit.is_zero() {
            return self.turn_io(Turn::Wait(self.wait_max()));
        }
        let started = Instant::now();
        // Threads that copy need the processor more than one that looks around.
        let waits_are_short = &self.waits_are_short[self.io.borrow().wait_kind() as usize];
        let may_look = || waits_are_short.get() && !self.io.borrow().is_copying();
        while may_look() && started.elapsed() < limit {
            self.turn_io(Turn::Look);
            self.wake_sleepers();
            if has_work() || self.shared.is_pending() {
                return;
            }
            self.shared.lock().pause();
        }
        self.turn_io(Turn::Wait(self.wait_max()));
        waits_are_short.set(started.elapsed() <= limit);
    }

    /// Takes the work that other threads have queued.
    fn collect(&self) -> Vec<RemoteCall> {
        let calls = self.shared.collect();
        let mut wakers = Vec::new();
        self.io.borrow_mut().collect_workers(&mut wakers);
        wakers.into_iter().for_each(Waker::wake);
        calls
    }

    /// Starts an operation.
    pub(crate) fn submit(self: &Rc<Self>, request: IoRequest) -> Pending {
        let stage = if self.closed.get() {
            Stage::Refused(request)
        } else {
            Stage::Submitted(self.io.borrow_mut().submit(request))
        };
        Pending { core: self.clone(), stage }
    }

    /// Numbers for so many places in memory of others; `None`: they can't be had.
    pub(crate) fn take_places(&self, count: u16) -> Option<Range<u16>> {
        self.io.borrow_mut().take_places(count)
    }

    /// Takes numbers back.
    pub(crate) fn give_places_back(&self, numbers: &Range<u16>) {
        self.io.borrow_mut().give_places_back(numbers);
    }

    /// Puts memory under a number that was taken, or takes it away from there.
    ///
    /// # Safety
    /// The same as for [`crate::ring::Ring::put_memory`].
    #[cfg(feature = "testing")]
    pub(crate) unsafe fn put_memory(
        &self,
        number: u16,
        memory: Option<libc::iovec>,
    ) -> std::io::Result<()> {
        // SAFETY: the caller keeps what it asks for.
        unsafe { self.io.borrow().put_memory(number, memory) }
    }

    /// Ends an operation early: see [`Io::interrupt`].
    pub(crate) fn interrupt(&self, key: usize) {
        self.io.borrow_mut().interrupt(key);
    }

    fn shut_down(&self) {
        self.closed.set(true);
        self.shared.lock().end();
        self.shared.close();
        self.drop_tasks();
        let deadline = Instant::now() + SHUTDOWN_TIMEOUT;
        while self.io.borrow().running() > 0 && Instant::now() < deadline {
            self.io.borrow_mut().cancel_patient();
            self.turn_io(Turn::Wait(Duration::from_millis(10)));
            if self.shared.take_pending() {
                drop(self.collect());
            }
        }
        self.io.borrow_mut().leak_running();
        self.shared.lock().close();
    }

    fn drop_tasks(&self) {
        const ALL: [Priority; 4] =
            [Priority::Foreground, Priority::Journal, Priority::Background, Priority::Fill];
        // Dropping a task may wake others, which changes nothing: they are dropped, too.
        loop {
            let wakers: Vec<Waker> =
                self.tasks.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            self.shared.end_turn();
            if !self.shared.has_ready() {
                return;
            }
            for priority in ALL {
                while let Some(task) = self.shared.pop(priority) {
                    drop(task);
                }
            }
        }
    }
}

enum Stage {
    Submitted(usize),
    /// The host has ended.
    Refused(IoRequest),
    Taken,
}

/// An operation under way. Gives the request back with its memory.
pub(crate) struct Pending {
    core: Rc<Core>,
    stage: Stage,
}

impl Pending {
    /// Its number while it is under way.
    pub(crate) fn key(&self) -> Option<usize> {
        if let Stage::Submitted(key) = self.stage { Some(key) } else { None }
    }
}

impl Future for Pending {
    type Output = (IoRequest, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match std::mem::replace(&mut this.stage, Stage::Taken) {
            Stage::Submitted(key) => {
                let polled = this.core.io.borrow_mut().poll(key, cx.waker());
                if polled.is_pending() {
                    this.stage = Stage::Submitted(key);
                }
                polled
            }
            Stage::Refused(request) => Poll::Ready((request, Err(libc::ESHUTDOWN))),
            Stage::Taken => panic!("an operation is polled after its end"),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Stage::Submitted(key) = self.stage {
            self.core.io.borrow_mut().abandon(key);
        }
    }
}

/// The real world, as seen by the engine. A handle: cheap to clone, for one thread.
#[derive(Clone)]
pub struct HostEnv {
    core: Rc<Core>,
}

impl HostEnv {
    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// A round trip through the I/O backend that does nothing. For measuring it.
    pub async fn nop(&self) {
        let (_, outcome) = self.core.submit(IoRequest::Nop).await;
        debug_assert!(outcome.is_ok() || self.core.closed.get(), "doing nothing succeeds");
    }

    /// Runs `call`, which may block, on a worker thread; its result is a count or a negative
    /// errno.
    pub(crate) async fn run_blocking(
        &self,
        call: impl FnOnce() -> i32 + Send + 'static,
    ) -> Outcome {
        self.core.submit(IoRequest::Call { call: Some(Box::new(call)) }).await.1
    }

    /// Runs `call`, which may block, on a worker thread. None: the host is shutting down. If the
    /// future is dropped, the call still runs, and its result is dropped with it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let result = Arc::new(Mutex::new(None));
        let put = result.clone();
        let ran = self.run_blocking(move || {
            *put.lock().unwrap_or_else(PoisonError::into_inner) = Some(call());
            0
        });
        ran.await.ok()?;
        result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for HostEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostEnv").finish_non_exhaustive()
    }
}

/// Takes a task off the list when its future is dropped.
struct TaskEntry {
    core: Rc<Core>,
    key: usize,
}

impl Drop for TaskEntry {
    fn drop(&mut self) {
        let waker = self.core.tasks.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

impl Env for HostEnv {
    type Device = Joined<HostDisk>;

    fn now(&self) -> Nanos {
        self.core.now()
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |span| span.as_secs())
    }

    async fn sleep_until(&self, at: Nanos) {
        if self.now() < at {
            Sleep { core: &self.core, at, key: None }.await;
        }
    }

    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        let (handle, run) = Task::wrap(task);
        if self.core.closed.get() {
            return handle;
        }
        let key = self.core.tasks.borrow_mut().insert(Waker::noop().clone());
        let entry = TaskEntry { core: self.core.clone(), key };
        let future = async move {
            let _entry = entry;
            run.await;
        };
        let shared = self.core.shared.clone();
        let schedule = move |task, info: ScheduleInfo| {
            shared.schedule(priority, task, info.woken_while_running)
        };
        let (runnable, task) = async_task::spawn_local(future, WithInfo(schedule));
        self.core.tasks.borrow_mut()[key] = runnable.waker();
        task.detach();
        runnable.schedule();
        handle
    }

    fn buffers(&self) -> &BufPool {
        &self.core.buffers
    }

    fn random(&self) -> u64 {
        // SplitMix64.
        let state = self.core.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.core.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    async fn yield_now(&self) {
        // A task that is woken while it runs goes behind all others, see `queue`.
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

struct Sleep<'a> {
    core: &'a Core,
    at: Nanos,
    key: Option<TimerKey>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.core.timers.borrow_mut();
        let Some(key) = self.key else {
            let key = timers.add(self.at, cx.waker().clone());
            drop(timers);
            self.key = Some(key);
            return Poll::Pending;
        };
        match timers.waker_mut(key) {
            None => Poll::Ready(()),
            Some(waker) => {
                if !waker.will_wake(cx.waker()) {
                    let old = std::mem::replace(waker, cx.waker().clone());
                    drop(timers);
                    drop(old);
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.core.timers.borrow_mut().remove(key);
            drop(waker);
        }
    }
}

/// The reactor of one thread. Dropping it ends its tasks.
pub struct Host {
    env: HostEnv,
    name: &'static str,
}

impl Host {
    /// A host for the calling thread.
    pub fn new(backend: IoBackend) -> std::io::Result<Host> {
        sys::sleep_precisely();
        let shared = Arc::new(Shared::new()?);
        let (io, name) = Io::new(backend, &shared)?;
        let core = Core {
            shared,
            io: RefCell::new(io),
            timers: RefCell::default(),
            tasks: RefCell::new(Slab::new()),
            wakers: Cell::default(),
            origin: Instant::now(),
            buffers: BufPool::default(),
            random: Cell::new(sys::random_seed()),
            entered: Cell::new(false),
            closed: Cell::new(false),
            copies: Copies::default(),
            busy_poll: Cell::default(),
            waits_are_short: Default::default(),
        };
        Ok(Host { env: HostEnv { core: Rc::new(core) }, name })
    }

    /// The handle for the engine.
    pub fn env(&self) -> HostEnv {
        self.env.clone()
    }

    /// `ring` or `pool`.
    pub fn backend_name(&self) -> &'static str {
        self.name
    }

    /// Stays awake for up to `limit` when there is nothing to do, as long as waits are no longer
    /// than that: waking the processor of a virtual machine takes tens of microseconds. After one
    /// longer wait it sleeps at once, until waits are short again: those for peers, for devices,
    /// and for what only has to become durable, each by themselves. Zero, which is the default:
    /// sleep at once. Without effect on the pool backend, where to look around is a system call.
    pub fn set_busy_poll(&self, limit: Duration) {
        let is_cheap = self.env.core.io.borrow().polls_cheaply();
        self.env.core.busy_poll.set(if is_cheap { limit } else { Duration::ZERO });
    }

    /// A handle for other threads.
    pub fn remote_handle(&self) -> RemoteHandle {
        RemoteHandle { shared: self.env.core.shared.clone() }
    }

    /// Runs tasks until `future` has its result. Tasks that are not done then go on in the next
    /// call.
    ///
    /// # Panics
    /// If called from a task of this host, and if the I/O backend fails.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let core = &*self.env.core;
        assert!(!core.entered.replace(true), "block_on is called from a task of the same host");
        let _entered = Entered(core);
        let main =
            Arc::new(MainWaker { woken: AtomicBool::new(true), shared: core.shared.clone() });
        let waker = Waker::from(main.clone());
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if main.woken.load(Ordering::Relaxed)
                && main.woken.swap(false, Ordering::AcqRel)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            core.run_tasks();
            core.wake_sleepers();
            let has_work = || main.woken.load(Ordering::Acquire) || core.shared.has_ready();
            match has_work() {
                true => core.turn_io(Turn::Busy),
                false => core.wait(has_work),
            }
            if core.shared.take_pending() {
                for call in core.collect() {
                    call(self);
                }
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.env.core.shut_down();
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("backend", &self.name).finish_non_exhaustive()
    }
}

struct Entered<'a>(&'a Core);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entered.set(false);
    }
}

/// Wakes the future of `block_on`.
struct MainWaker {
    woken: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if !self.shared.is_local() {
            self.shared.wake();
        }
    }
}

/// Lets other threads run things on a host's thread. Cheap to clone.
#[derive(Clone)]
pub struct RemoteHandle {
    shared: Arc<Shared>,
}

/// The host of a handle is gone; the call was dropped.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the host of this remote_handle has ended")]
pub struct HostEnded;

impl RemoteHandle {
    /// Has `call` called on the host's thread, between two tasks, in order of sending.
    pub fn send(&self, call: Box<dyn FnOnce(&Host) + Send>) -> Result<(), HostEnded> {
        if self.shared.post(call) { Ok(()) } else { Err(HostEnded) }
    }
}

impl std::fmt::Debug for RemoteHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteHandle").finish_non_exhaustive()
    }
}
