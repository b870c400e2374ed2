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

/// A request to be carried out, in the memory that the guest had when it was taken. It is large, so
/// it stays where it is: a worker's is filled in for every request.
#[derive(Default)]
pub(crate) struct Job {
    pub(crate) chain: Chain,
    pub(crate) memory: Option<Memory>,
}

/// Passes a job to the future of a worker and back: with the worker while that has no work.
#[derive(Default)]
struct Slot {
    to_do: Cell<Option<Box<Job>>>,
    done: Cell<Option<Box<Job>>>,
}

/// Carries out one request at a time.
pub(crate) struct Worker {
    slot: Rc<Slot>,
    job: Option<Box<Job>>,
    /// Never ends: waits for a request, without a waker, and carries it out.
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl Worker {
    fn new<E: Env, V: Volume, B: Bell>(queue: &Rc<Queue<E, V, B>>) -> Worker {
        let slot = Rc::<Slot>::default();
        let work = Box::pin(work(queue.clone(), slot.clone()));
        Worker { slot, job: None, work }
    }

    /// Its next request, to be filled in.
    pub(crate) fn job(&mut self) -> &mut Job {
        self.job.get_or_insert_default()
    }

    /// Goes on with the request; ready when it is carried out.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.work.as_mut().poll(cx);
        match self.slot.done.take() {
            Some(job) => {
                self.job = Some(job);
                Poll::Ready(())
            }
            None => Poll::Pending,
        }
    }
}

/// The workers of a queue.
#[derive(Default)]
pub(crate) struct Workers {
    /// Idle workers. LIFO, so that the worker with warm memory is reused.
    idle: RefCell<Vec<Worker>>,
}

impl Workers {
    /// A worker without work.
    pub(crate) fn idle<E: Env, V: Volume, B: Bell>(&self, queue: &Rc<Queue<E, V, B>>) -> Worker {
        let idle = self.idle.borrow_mut().pop();
        idle.unwrap_or_else(|| Worker::new(queue))
    }

    /// Carries the worker's request out, by the task of `cx` as far as it goes without waiting.
    pub(crate) fn start<E: Env, V: Volume, B: Bell>(
        self: &Rc<Self>,
        queue: &Rc<Queue<E, V, B>>,
        mut worker: Worker,
        cx: &mut Context<'_>,
    ) {
        worker.slot.to_do.set(worker.job.take());
        if worker.poll(cx).is_ready() {
            return self.rest(worker);
        }
        let workers = self.clone();
        queue.shared().env.spawn(Priority::Foreground, async move {
            poll_fn(|cx| worker.poll(cx)).await;
            workers.rest(worker);
        });
    }

    /// A worker has no request any more.
    pub(crate) fn rest(&self, worker: Worker) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(worker);
        }
    }
}

async fn work<E: Env, V: Volume, B: Bell>(queue: Rc<Queue<E, V, B>>, slot: Rc<Slot>) {
    loop {
        let mut job = poll_fn(|_| slot.to_do.take().map_or(Poll::Pending, Poll::Ready)).await;
        if let Some(memory) = &job.memory {
            let (shared, stream) = (queue.shared(), queue.stream());
            let request = Request { shared, memory, stream, chain: &job.chain };
            if shared.pace.is_some() {
                Box::pin(queue.turn(job.chain.data_bytes())).await;
            }
            let written = request.execute().await;
            queue.answered(job.chain.head(), written);
        }
        // Requests keep the memory of the guest only while they are under way.
        job.memory = None;
        slot.done.set(Some(job));
    }
}
