//! One ring: taking requests, publishing answers, stopping.
//!
//! ```text
//!          start                     stop: nothing is taken from now on
//! Stopped ───────▶ task of the run ────────▶ waits for requests in flight ───▶ Stopped
//!                   │ kick, or answers: publish answers, take and carry out what is there
//!                   └ nonsense in the ring: Broken, until it is stopped
//! ```
//!
//! A request is named by its first descriptor, which the guest must not use again before the
//! answer: so there are at most as many in flight as the ring has descriptors. Answers that become
//! ready in the same turn of the thread are published together, with one call at most.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ubcache_env::local::{Notify, first};
use ubcache_env::{Bell, Env, Priority, StreamError, StreamId, Volume};

use crate::chain::ChainError;
use crate::device::{Ring, RingStatus, Shared};
use crate::inflight::{InflightQueue, InflightRegion};
use crate::regions::Memory;
use crate::ring::SplitRing;
use crate::signal::Signal;
use crate::workers::{Job, Workers};

/// Bytes and requests of one turn, at most: other tasks of the thread wait for its end.
const TURN_BYTES: u64 = 256 << 10;
const TURN_REQUESTS: u64 = 64;

/// Reasons why a queue is not served any more, until the guest sets it up again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueError {
    /// A request makes no sense.
    #[error("request {head}: {reason}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// The reason.
        reason: ChainError,
    },
    /// A request was made again before it was answered.
    #[error("descriptor {0} is in use by a request that has no answer yet")]
    InUse(u16),
    /// The ring itself makes no sense, or is not in the guest's memory.
    #[error("{0}")]
    Ring(String),
    /// The event by which the guest announces requests failed.
    #[error("the kick of the guest failed: {0}")]
    Kick(StreamError),
}

struct State<B> {
    ring: SplitRing,
    memory: Option<Memory>,
    call: Option<Rc<B>>,
    error: Option<Rc<B>>,
    enabled: bool,
    broken: bool,
    /// For each descriptor: a request begins there that has no answer.
    busy: Vec<bool>,
    /// Requests of an earlier process, to be carried out again.
    again: VecDeque<u16>,
    inflight: Option<InflightQueue>,
}

/// A queue of the disk.
pub(crate) struct Queue<E, V, B> {
    shared: Rc<Shared<E, V>>,
    index: u16,
    stream: StreamId,
    state: RefCell<State<B>>,
    /// Number of the present run; another one than that of a task says that the task is to end.
    run: Cell<u64>,
    is_running: Cell<bool>,
    /// There may be something to take or to publish.
    work: Signal,
    in_flight: Cell<usize>,
    /// The queue is stopped: requests that wait for their turn by the limits go on.
    hurry: Notify,
    idle: Signal,
    /// Answers to be published: first descriptor and bytes written.
    answers: RefCell<Vec<(u16, u32)>>,
}

impl<E: Env, V: Volume, B: Bell> Queue<E, V, B> {
    pub(crate) fn new(shared: Rc<Shared<E, V>>, index: u16, stream: StreamId) -> Queue<E, V, B> {
        let state = State {
            ring: SplitRing::new(),
            memory: None,
            call: None,
            error: None,
            enabled: false,
            broken: false,
            busy: Vec::new(),
            again: VecDeque::new(),
            inflight: None,
        };
        Queue {
            shared,
            index,
            stream,
            state: RefCell::new(state),
            run: Cell::new(0),
            is_running: Cell::new(false),
            work: Signal::default(),
            in_flight: Cell::new(0),
            hurry: Notify::default(),
            idle: Signal::default(),
            answers: RefCell::default(),
        }
    }

    pub(crate) fn shared(&self) -> &Shared<E, V> {
        &self.shared
    }

    pub(crate) fn stream(&self) -> StreamId {
        self.stream
    }

    /// Returns true from its start to its stop.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.get()
    }

    /// The queue now, if it is served.
    pub(crate) fn status(&self) -> Option<RingStatus> {
        let state = self.state.borrow();
        self.is_running.get().then(|| RingStatus {
            queue: self.index,
            size: state.ring.size(),
            in_flight: self.in_flight.get() as u64,
            broken: state.broken,
        })
    }

    /// The shape of a queue is fixed while it is served.
    fn check_stopped(&self) -> Result<(), QueueError> {
        if self.is_running.get() {
            let index = self.index;
            return Err(QueueError::Ring(format!("queue {index} is in use: stop it first")));
        }
        Ok(())
    }

    /// Sets the number of descriptors.
    pub(crate) fn set_size(&self, size: u16) -> Result<(), QueueError> {
        self.check_stopped()?;
        self.state.borrow_mut().ring.set_size(size)
    }

    /// Sets the addresses of the ring.
    pub(crate) fn set_ring(&self, place: Ring) -> Result<(), QueueError> {
        self.check_stopped()?;
        self.state.borrow_mut().ring.set_place(place)
    }

    /// Sets the number of the next request to take.
    pub(crate) fn set_base(&self, base: u16) -> Result<(), QueueError> {
        self.check_stopped()?;
        self.state.borrow_mut().ring.set_next(base);
        Ok(())
    }

    pub(crate) fn set_call(&self, call: Option<Rc<B>>) {
        self.state.borrow_mut().call = call;
    }

    pub(crate) fn set_error(&self, error: Option<Rc<B>>) {
        self.state.borrow_mut().error = error;
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.state.borrow_mut().enabled = enabled;
        self.work.set();
    }

    /// The memory has changed. Requests in flight keep the former one.
    pub(crate) fn set_memory(&self, memory: &Memory) {
        let mut state = self.state.borrow_mut();
        state.memory = Some(memory.clone());
        let lost = self.is_running.get() && !state.ring.map(memory);
        drop(state);
        if lost {
            self.fail(QueueError::Ring("the ring is not in the guest's memory any more".into()));
        }
    }

    /// Begins to serve the ring. `region`: of the requests in flight.
    pub(crate) fn start(
        self: &Rc<Self>,
        kick: Rc<B>,
        region: Option<&Rc<InflightRegion>>,
        event_idx: bool,
    ) -> Result<(), QueueError> {
        let none = || QueueError::Ring("the guest has not set its memory up".into());
        let mut state = self.state.borrow_mut();
        let memory = state.memory.clone().ok_or_else(none)?;
        if !state.ring.map(&memory) {
            return Err(QueueError::Ring("the ring is outside the guest's memory".into()));
        }
        if self.is_running.get() {
            // Another kick for the same run: its requests in flight go on.
            state.broken = false;
        } else {
            self.begin(&mut state, region, event_idx)?;
        }
        drop(state);
        self.is_running.set(true);
        self.run.set(self.run.get() + 1);
        self.work.set();
        self.shared.env.spawn(Priority::Foreground, serve(self.clone(), self.run.get(), kick));
        Ok(())
    }

    fn begin(
        &self,
        state: &mut State<B>,
        region: Option<&Rc<InflightRegion>>,
        event_idx: bool,
    ) -> Result<(), QueueError> {
        let size = state.ring.size();
        let used = state.ring.resume()?;
        state.ring.set_event_idx(event_idx);
        state.busy = vec![false; usize::from(size)];
        state.broken = false;
        state.again.clear();
        state.inflight = region.and_then(|region| region.queue(self.index, size));
        if let Some(inflight) = &mut state.inflight {
            state.again = inflight.recover(used).into();
            // Requests that were taken are answered or in flight, in whatever order.
            state.ring.set_next(used.wrapping_add(state.again.len() as u16));
        }
        Ok(())
    }

    /// Takes no more requests, waits for those in flight and publishes them. Returns the number of
    /// the next request.
    pub(crate) async fn stop(&self) -> u16 {
        self.run.set(self.run.get() + 1);
        self.work.set();
        self.hurry.notify_all();
        self.idle.until(|| self.in_flight.get() == 0).await;
        self.publish();
        self.is_running.set(false);
        let mut state = self.state.borrow_mut();
        state.ring.unmap();
        state.inflight = None;
        state.ring.next()
    }

    /// Waits until the limits permit a request of so many bytes, or the queue is stopped: then it
    /// is counted, and the next ones wait for longer.
    pub(crate) async fn turn(&self, bytes: u64) {
        let Shared { env, pace, .. } = &*self.shared;
        let Some(pace) = pace else { return };
        let (now, hurry) = (env.now(), self.hurry.notified());
        let start = pace(now, bytes);
        if start > now {
            first(env.sleep_until(start), hurry).await;
        }
    }

    /// A request has its answer: so many bytes were written. Without: the connection has ended.
    pub(crate) fn answered(&self, head: u16, written: Option<u32>) {
        if let Some(written) = written {
            self.answers.borrow_mut().push((head, written));
        }
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.idle.set();
        }
        self.work.set();
    }

    /// Publishes the answers that are ready.
    fn publish(&self) {
        if self.answers.borrow().is_empty() {
            return;
        }
        // After the end of the connection the memory may be in use for other things.
        if self.shared.is_cut() {
            self.answers.borrow_mut().clear();
            return;
        }
        if let Err(error) = self.try_publish() {
            self.fail(error);
        }
    }

    fn try_publish(&self) -> Result<(), QueueError> {
        let mut answers = self.answers.borrow_mut();
        let state = &mut *self.state.borrow_mut();
        for (head, written) in answers.drain(..) {
            if let Some(inflight) = &state.inflight {
                inflight.will_publish(head);
            }
            state.busy[usize::from(head)] = false;
            state.ring.add_used(head, written)?;
            if let Some(inflight) = &state.inflight {
                inflight.published(head, state.ring.next_used());
            }
        }
        if state.ring.needs_notification()?
            && let Some(call) = &state.call
        {
            call.ring();
        }
        Ok(())
    }

    /// Takes requests that are there, and carries each out as far as it goes without waiting.
    /// `true`: there are more, and others get a turn first.
    fn take(
        self: &Rc<Self>,
        workers: &Rc<Workers>,
        cx: &mut Context<'_>,
    ) -> Result<bool, QueueError> {
        let mut left_bytes = TURN_BYTES;
        loop {
            let mut worker = workers.idle(self);
            if !self.next_job(worker.job())? {
                workers.rest(worker);
                return Ok(false);
            }
            let bytes = worker.job().chain.bytes();
            left_bytes = left_bytes.saturating_sub(bytes.max(TURN_BYTES / TURN_REQUESTS));
            workers.start(self, worker, cx);
            if left_bytes == 0 {
                return Ok(true);
            }
        }
    }

    /// Fills in the next request; `false`: there is none, and the guest announces it.
    fn next_job(&self, job: &mut Job) -> Result<bool, QueueError> {
        let state = &mut *self.state.borrow_mut();
        if !state.enabled || state.broken {
            return Ok(false);
        }
        let Some(memory) = &state.memory else { return Ok(false) };
        let head = match state.again.pop_front() {
            Some(head) => {
                self.shared.counters.count_reissued();
                head
            }
            None => loop {
                if let Some(head) = state.ring.take()? {
                    break head;
                }
                if !state.ring.enable_notification()? {
                    return Ok(false);
                }
            },
        };
        job.chain
            .collect(memory, state.ring.descriptors()?, head)
            .map_err(|reason| QueueError::Chain { head, reason })?;
        let busy = &mut state.busy[usize::from(head)];
        if std::mem::replace(busy, true) {
            return Err(QueueError::InUse(head));
        }
        if let Some(inflight) = &mut state.inflight {
            inflight.begin(head);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        job.memory = Some(memory.clone());
        Ok(true)
    }

    /// Takes nothing from the ring any more.
    fn fail(&self, error: QueueError) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.broken, true) {
            return;
        }
        if let Some(bell) = &state.error {
            bell.ring();
        }
        drop(state);
        self.shared.report(self.index, error);
    }
}

/// Serves a run of the queue.
async fn serve<E: Env, V: Volume, B: Bell>(queue: Rc<Queue<E, V, B>>, run: u64, kick: Rc<B>) {
    let mut rung = pin!(ring_of(kick.clone()));
    let workers = Rc::<Workers>::default();
    let mut listens = true;
    loop {
        let mut failed = None;
        poll_fn(|cx| {
            // The signal belongs to the newest run.
            if queue.run.get() != run {
                return Poll::Ready(());
            }
            let has_work = queue.work.poll_take(cx);
            if listens && let Poll::Ready(rang) = rung.as_mut().poll(cx) {
                rung.set(ring_of(kick.clone()));
                listens = rang.is_ok();
                failed = rang.err();
                return Poll::Ready(());
            }
            if has_work { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if queue.run.get() != run {
            // The next run, or the one who stops the queue, publishes what is left.
            queue.work.set();
            return;
        }
        queue.publish();
        if let Some(error) = failed {
            queue.fail(QueueError::Kick(error));
        }
        let taken = poll_fn(|cx| Poll::Ready(queue.take(&workers, cx))).await;
        // Requests that had their answers at once are published with the same notification.
        queue.work.clear();
        queue.publish();
        match taken {
            Ok(false) => {}
            Ok(true) => {
                queue.work.set();
                queue.shared.env.yield_now().await;
            }
            Err(error) => queue.fail(error),
        }
    }
}

async fn ring_of<B: Bell>(kick: Rc<B>) -> Result<(), StreamError> {
    kick.rung().await
}
