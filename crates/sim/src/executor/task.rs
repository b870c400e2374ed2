//! Tasks as the world keeps them, and how they are woken.

use std::cell::Cell;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use ubcache_env::Priority;

pub(super) type TaskId = u64;
pub(super) type Woken = Arc<Mutex<Vec<TaskId>>>;

pub(super) struct TaskWaker {
    pub(super) id: TaskId,
    pub(super) queued: AtomicBool,
    pub(super) woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}

pub(super) struct Slot {
    /// None while the task is being polled.
    pub(super) future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    pub(super) waker: Arc<TaskWaker>,
    pub(super) group: u32,
    pub(super) priority: Priority,
    pub(super) rank: u64,
    pub(super) born: &'static Location<'static>,
    pub(super) last_poll: u64,
    pub(super) _counted: Option<Counted>,
}

/// One of the tasks of an instance that are no part of a request, as long as it exists.
pub(super) struct Counted(pub(super) Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
