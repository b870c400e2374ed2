//! Futures that carry requests out, each one at a time, and are used again and again: a new one for
//! every request would have to be allocated, and it is large.
//!
//! A request is carried out in the turn of its queue as far as it goes without waiting: a hit to
//! its end. One that has to wait goes on as a task of its own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ubcache_env::{Bell, Env, Priority, Volume};

use crate::chain::Chain;
use crate::queue::Queue;
use crate::regions::Memory;
use crate::request::Request;

/// Workers without work that a queue keeps.
const IDLE_MAX: usize = 32;

/// A request to be carried out, in the memory that the guest had when it was taken.
pub(crate) struct Job {
    pub(crate) chain: Chain,
    pub(crate) memory: Memory,
}

/// A worker's request: taken by its future, and none when that is done with it.
#[derive(Default)]
struct Slot {
    job: Cell<Option<Job>>,
    is_busy: Cell<bool>,
}

struct Worker {
    slot: Rc<Slot>,
    /// Never ends: waits for a request, without a waker, and carries it out.
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl Worker {
    fn new<E: Env, V: Volume, B: Bell>(queue: &Rc<Queue<E, V, B>>) -> Worker {
        let slot = Rc::<Slot>::default();
        let work = Box::pin(work(queue.clone(), slot.clone()));
        Worker { slot, work }
    }

    /// Goes on with the request; ready when it is carried out.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.work.as_mut().poll(cx);
        if self.slot.is_busy.get() { Poll::Pending } else { Poll::Ready(()) }
    }
}

/// The workers of a queue.
#[derive(Default)]
pub(crate) struct Workers {
    /// Idle workers. LIFO, so that the worker with warm memory is reused.
    idle: RefCell<Vec<Worker>>,
}

impl Workers {
    /// Carries the request out, by the task of `cx` as far as it goes without waiting.
    pub(crate) fn start<E: Env, V: Volume, B: Bell>(
        self: &Rc<Self>,
        queue: &Rc<Queue<E, V, B>>,
        job: Job,
        cx: &mut Context<'_>,
    ) {
        let idle = self.idle.borrow_mut().pop();
        let mut worker = idle.unwrap_or_else(|| Worker::new(queue));
        worker.slot.job.set(Some(job));
        worker.slot.is_busy.set(true);
        if worker.poll(cx).is_ready() {
            return self.rest(worker);
        }
        let workers = self.clone();
        queue.shared().env.spawn(Priority::Foreground, async move {
            poll_fn(|cx| worker.poll(cx)).await;
            workers.rest(worker);
        });
    }

    /// A worker is done with its request.
    fn rest(&self, worker: Worker) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(worker);
        }
    }
}

async fn work<E: Env, V: Volume, B: Bell>(queue: Rc<Queue<E, V, B>>, slot: Rc<Slot>) {
    loop {
        let job = poll_fn(|_| slot.job.take().map_or(Poll::Pending, Poll::Ready)).await;
        let request = Request {
            shared: queue.shared(),
            memory: &job.memory,
            stream: queue.stream(),
            chain: &job.chain,
        };
        if queue.shared().pace.is_some() {
            Box::pin(queue.turn(job.chain.data_bytes())).await;
        }
        let written = request.execute().await;
        queue.answered(job.chain.head(), written);
        slot.is_busy.set(false);
    }
}
