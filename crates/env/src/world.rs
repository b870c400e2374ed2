//! The world the engine runs in: clock, tasks, randomness.

use std::future::Future;
use std::rc::Rc;

use crate::buf::BufPool;
use crate::device::Device;
use crate::local::Event;
use crate::work::Work;

/// A moment or a span in nanoseconds, counted from an arbitrary start of the world.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// A span of whole microseconds.
    pub const fn from_micros(us: u64) -> Nanos {
        Nanos(us.saturating_mul(1_000))
    }
    /// A span of whole milliseconds.
    pub const fn from_millis(ms: u64) -> Nanos {
        Nanos(ms.saturating_mul(1_000_000))
    }
    /// A span of whole seconds.
    pub const fn from_secs(s: u64) -> Nanos {
        Nanos(s.saturating_mul(1_000_000_000))
    }
    /// Whole microseconds, truncated.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
    /// Whole milliseconds, truncated.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
    /// `self` plus a span, saturating at the end of time.
    pub const fn after(self, span: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(span.0))
    }
}

/// The run queue of a task.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Priority {
    /// Client requests and what they wait for.
    Foreground,
    /// The journal: every other queue waits for it in the end.
    Journal,
    /// Writeback, garbage collection, publishing, counting: bounded per turn.
    Background,
    /// Copies of read misses on their way into the cache: bounded per turn, and apart from the
    /// background, which thousands of them would delay.
    Fill,
}

/// A spawned task. Dropping it lets the task go on.
#[derive(Clone, Debug)]
pub struct Task {
    done: Rc<Event>,
}

impl Task {
    /// Wraps a future for spawning: the second value is what the executor runs.
    pub fn wrap<F: Future<Output = ()> + 'static>(
        future: F,
    ) -> (Task, impl Future<Output = ()> + 'static) {
        let done = Rc::new(Event::default());
        let task = Task { done: done.clone() };
        let run = async move {
            future.await;
            done.set();
        };
        (task, run)
    }
    /// Returns true if the task has run to its end.
    pub fn is_finished(&self) -> bool {
        self.done.is_set()
    }
    /// Waits until the task has run to its end.
    pub async fn join(&self) {
        self.done.wait().await;
    }
}

/// Clock, tasks and randomness. A handle: cheap to clone, one per cache set.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Env: Clone + 'static {
    /// The devices of this world.
    type Device: Device;

    /// The present moment on a clock that never goes back.
    fn now(&self) -> Nanos;

    /// Seconds since 1970, for the timestamps of the on-disk format only.
    fn unix_seconds(&self) -> u64;

    /// Returns at `at` or as soon after it as the world allows; at once if `at` is past.
    async fn sleep_until(&self, at: Nanos);

    /// Starts a task on the thread of the set.
    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task;

    /// The pool of memory for I/O.
    fn buffers(&self) -> &BufPool;

    /// A random number. In the simulated world it comes from the seed.
    fn random(&self) -> u64;

    /// Lets every other task that can run have its turn.
    async fn yield_now(&self);

    /// Sleeps for a span.
    async fn sleep(&self, span: Nanos) {
        self.sleep_until(self.now().after(span)).await;
    }

    /// A named point in the code was reached. The simulator counts these; elsewhere nothing
    /// happens.
    fn mark(&self, _name: &'static str) {}

    /// The counter of loops' steps. The simulator and the null world of the benchmarks add up the
    /// steps of one poll; elsewhere nothing is counted.
    fn work(&self) -> Work {
        Work::default()
    }
}
