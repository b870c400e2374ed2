//! Tasks that carry requests out, each one at a time, and are used again and again: a new one for
//! every request would have to be allocated, and it is large.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::{Bell, Env, Priority, Volume};

use crate::chain::Chain;
use crate::device::Memory;
use crate::queue::Queue;
use crate::request::Request;
use crate::signal::Signal;

/// Workers without work that a queue keeps.
const IDLE_MAX: usize = 32;

/// A request to be carried out, in the memory that the guest had when it was taken.
pub(crate) struct Job {
    pub(crate) chain: Chain,
    pub(crate) memory: Memory,
}

/// A worker's slot for its next request.
#[derive(Default)]
struct Slot {
    job: RefCell<Option<Job>>,
    changed: Signal,
}

/// The workers of a queue.
#[derive(Default)]
pub(crate) struct Workers {
    /// Idle workers. LIFO, so that the worker with warm memory is reused.
    idle: RefCell<Vec<Rc<Slot>>>,
    ending: Cell<bool>,
}

impl Workers {
    /// Gives the request to a worker.
    pub(crate) fn start<E: Env, V: Volume, B: Bell>(&self, queue: &Rc<Queue<E, V, B>>, job: Job) {
        let free = self.idle.borrow_mut().pop();
        let found = free.is_some();
        let slot = free.unwrap_or_default();
        *slot.job.borrow_mut() = Some(job);
        if found {
            slot.changed.set();
        } else {
            queue.shared().env.spawn(Priority::Foreground, work(queue.clone(), slot));
        }
    }

    /// Lets all workers end when they have nothing to do.
    pub(crate) fn end(&self) {
        self.ending.set(true);
        self.idle.take().iter().for_each(|slot| slot.changed.set());
    }

    /// A worker is done with its request. `false`: it is not needed any more.
    fn rest(&self, slot: &Rc<Slot>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let stays = !self.ending.get() && idle.len() < IDLE_MAX;
        if stays {
            idle.push(slot.clone());
        }
        stays
    }
}

async fn work<E: Env, V: Volume, B: Bell>(queue: Rc<Queue<E, V, B>>, slot: Rc<Slot>) {
    let workers = queue.workers();
    loop {
        slot.changed.until(|| slot.job.borrow().is_some() || workers.ending.get()).await;
        let Some(job) = slot.job.take() else { break };
        let request = Request {
            shared: queue.shared(),
            memory: &job.memory,
            stream: queue.stream(),
            chain: &job.chain,
        };
        let written = request.execute().await;
        let stays = workers.rest(&slot);
        queue.answered(job.chain.head(), written);
        if !stays {
            break;
        }
    }
}
