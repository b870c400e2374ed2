//! Run queues, and what other threads may reach of them.
//!
//! A waker may be called from any thread. On the reactor's own thread it appends to its own run
//! queues: no lock, no atomic operation. From another thread it goes through `Remote`, a mutex,
//! together with the calls of other threads, and wakes the reactor through an eventfd.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_task::Runnable;
use ubcache_env::Priority;

use crate::owner_lock::OwnerLock;
use crate::reactor::Host;
use crate::sys;

/// Work of another thread for the reactor's thread.
pub(crate) type RemoteCall = Box<dyn FnOnce(&Host) + Send>;

/// A number of the calling thread that no other thread ever had or gets.
pub(crate) fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// A value that only the thread that made it can reach.
struct ThreadBound<T> {
    owner: u64,
    value: T,
}

// SAFETY: `get` gives the value out on the owner's thread only, and `T: Send` makes dropping it
// on another thread sound.
unsafe impl<T: Send> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    fn get(&self) -> Option<&T> {
        (self.owner == thread_number()).then_some(&self.value)
    }
}

/// Tasks ready to run. `next` holds those that were woken while they ran: a task that yields
/// waits for the end of the turn, so that every other task goes first.
#[derive(Default)]
struct Queues {
    now: [VecDeque<Runnable>; 4],
    next: [VecDeque<Runnable>; 4],
    ready: usize,
}

#[derive(Default)]
struct Remote {
    calls: Vec<RemoteCall>,
    woken: Vec<(Priority, Runnable)>,
    closed: bool,
}

/// The part of a reactor that wakers and remote handles hold on to.
pub(crate) struct Shared {
    local: ThreadBound<RefCell<Queues>>,
    remote: Mutex<Remote>,
    /// True if the reactor has to look at `remote`, at finished work of worker threads or at a flag
    /// that another thread has set.
    pending: AtomicBool,
    eventfd: OwnedFd,
    /// Keeps other threads from what this one owns.
    lock: OwnerLock,
}

impl Shared {
    pub(crate) fn new() -> io::Result<Shared> {
        Ok(Shared {
            local: ThreadBound { owner: thread_number(), value: RefCell::default() },
            remote: Mutex::default(),
            pending: AtomicBool::new(false),
            eventfd: sys::eventfd()?,
            lock: OwnerLock::default(),
        })
    }

    /// The descriptor that becomes readable when another thread wakes the reactor.
    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// The lock of the reactor's thread.
    pub(crate) fn lock(&self) -> &OwnerLock {
        &self.lock
    }

    /// Returns true on the reactor's thread.
    pub(crate) fn is_local(&self) -> bool {
        self.local.get().is_some()
    }

    /// Makes the reactor look around; from any thread.
    pub(crate) fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            sys::eventfd_signal(self.eventfd.as_raw_fd());
        }
    }

    /// Returns true if [`Shared::wake`] was called.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Returns true if [`Shared::wake`] was called; clears it.
    pub(crate) fn take_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::AcqRel)
    }

    /// Puts a task in its run queue; from any thread. `yielded`: it was woken while it ran.
    pub(crate) fn schedule(&self, priority: Priority, task: Runnable, yielded: bool) {
        if let Some(queues) = self.local.get() {
            let mut queues = queues.borrow_mut();
            queues.ready += 1;
            let lane = if yielded { &mut queues.next } else { &mut queues.now };
            lane[priority as usize].push_back(task);
            return;
        }
        let mut remote = self.remote();
        if remote.closed {
            // A task may be dropped on its own thread only, and its reactor is gone.
            std::mem::forget(task);
            return;
        }
        remote.woken.push((priority, task));
        drop(remote);
        self.wake();
    }

    /// Queues a call. `false`: the reactor is gone.
    pub(crate) fn post(&self, call: RemoteCall) -> bool {
        let mut remote = self.remote();
        if remote.closed {
            return false;
        }
        remote.calls.push(call);
        drop(remote);
        self.wake();
        true
    }

    /// Takes what other threads have left: tasks go to their queues, calls are returned.
    pub(crate) fn collect(&self) -> Vec<RemoteCall> {
        let mut remote = self.remote();
        let (calls, woken) = (std::mem::take(&mut remote.calls), std::mem::take(&mut remote.woken));
        drop(remote);
        for (priority, task) in woken {
            self.schedule(priority, task, false);
        }
        calls
    }

    /// The next task of a queue in this turn.
    pub(crate) fn pop(&self, priority: Priority) -> Option<Runnable> {
        let mut queues = self.local.get()?.borrow_mut();
        let task = queues.now[priority as usize].pop_front()?;
        queues.ready -= 1;
        Some(task)
    }

    /// Ends a turn: those that yielded get their place at the end of their queues.
    pub(crate) fn end_turn(&self) {
        let Some(queues) = self.local.get() else { return };
        let queues = &mut *queues.borrow_mut();
        for (now, next) in queues.now.iter_mut().zip(&mut queues.next) {
            if !next.is_empty() {
                now.append(next);
            }
        }
    }

    /// Returns true if a task is ready.
    pub(crate) fn has_ready(&self) -> bool {
        self.local.get().is_some_and(|queues| queues.borrow().ready > 0)
    }

    /// No more tasks or calls from other threads; what was left is dropped.
    pub(crate) fn close(&self) {
        self.remote().closed = true;
        drop(self.collect());
    }

    fn remote(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
