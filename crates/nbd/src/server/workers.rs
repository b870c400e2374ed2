//! A pool of tasks that carry requests out, each one at a time.
//!
//! A new task for every request would have to be allocated and moved, and it is large: it has room
//! for the longest wait of a write. An idle worker is polled where the request was received, with
//! the waker of its own task: what needs no waiting, most hits, is carried out without a turn of
//! the executor, and the task is woken only by what it waits for.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use ubcache_env::bytes::{self, ByteRange};
use ubcache_env::{Env, IoVec, Priority, SectorRange, Volume};

use super::block_status::status;
use super::limits::{Reservation, Signal};
use super::replies::{Body, Failure, Reply};
use super::requests::Connection;
use super::shares::Turn;
use crate::proto::constants::cmd_flag;
use crate::proto::{Command, ErrorCode, Request};

/// Workers without work that are kept. The others end, and their memory with them.
const IDLE_MAX: usize = 64;

/// A request to be carried out.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    /// The blocks that the request touches; checked.
    pub(super) range: SectorRange,
    pub(super) payload: IoVec,
    pub(super) reservation: Reservation,
    pub(super) turn: Turn,
}

/// The moment at which a job begins.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Begin {
    /// Before [`Workers::start`] returns, if a worker is idle.
    Now,
    /// In a turn of the executor: other connections have theirs before.
    InTurn,
}

/// A worker's slot for its next job.
#[derive(Debug, Default)]
struct JobSlot {
    job: RefCell<Option<Job>>,
    changed: Signal,
}

/// A task that carries out jobs. The task owns it.
struct Worker {
    slot: Rc<JobSlot>,
    /// Its loop over jobs. None: it has ended.
    work: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// Waker of the task, once that has been polled.
    task: RefCell<Option<Waker>>,
}

impl Worker {
    /// A poll by its own task.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        drop(task);
        self.advance(cx)
    }

    /// A poll by another task. Wakes its own one if the worker ends.
    fn poll_now(&self) {
        let task = self.task.borrow();
        let Some(waker) = &*task else { return self.slot.changed.wake() };
        if self.advance(&mut Context::from_waker(waker)).is_ready() {
            waker.wake_by_ref();
        }
    }

    fn advance(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut work = self.work.borrow_mut();
        if let Some(running) = &mut *work
            && running.as_mut().poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        *work = None;
        Poll::Ready(())
    }
}

/// The workers of a connection.
#[derive(Default)]
pub(super) struct Workers {
    /// Idle workers. LIFO, so that the worker with warm memory is reused.
    idle: RefCell<Vec<Weak<Worker>>>,
    running: Cell<usize>,
    ending: Cell<bool>,
    ended: Signal,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Workers {
    /// Gives the job to a worker.
    pub(super) fn start<E: Env, V: Volume>(
        &self,
        env: &E,
        connection: &Rc<Connection<V>>,
        job: Job,
        begin: Begin,
    ) {
        let idle = self.idle.borrow_mut().pop().and_then(|worker| worker.upgrade());
        let Some(worker) = idle else { return self.add(env, connection, job) };
        *worker.slot.job.borrow_mut() = Some(job);
        match begin {
            Begin::Now => worker.poll_now(),
            Begin::InTurn => worker.slot.changed.wake(),
        }
    }

    /// Starts one more worker, with its first job.
    fn add<E: Env, V: Volume>(&self, env: &E, connection: &Rc<Connection<V>>, job: Job) {
        self.running.set(self.running.get() + 1);
        let slot = Rc::new(JobSlot { job: RefCell::new(Some(job)), changed: Signal::default() });
        let worker = Rc::new_cyclic(|me| Worker {
            slot: slot.clone(),
            work: RefCell::new(Some(Box::pin(work(connection.clone(), slot, me.clone())))),
            task: RefCell::default(),
        });
        env.spawn(Priority::Foreground, poll_fn(move |cx| worker.poll(cx)));
    }

    /// A worker is done with its job. `false`: it is not needed any more.
    fn rest(&self, worker: &Weak<Worker>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let stays = !self.ending.get() && idle.len() < IDLE_MAX;
        if stays {
            idle.push(worker.clone());
        }
        stays
    }

    /// Ends all workers. Only when no job is under way.
    pub(super) async fn end(&self) {
        self.ending.set(true);
        let idle = self.idle.take();
        idle.iter().filter_map(Weak::upgrade).for_each(|worker| worker.slot.changed.wake());
        self.ended.until(|| self.running.get() == 0).await;
    }
}

async fn work<V: Volume>(connection: Rc<Connection<V>>, slot: Rc<JobSlot>, worker: Weak<Worker>) {
    let workers = &connection.workers;
    loop {
        slot.changed.until(|| slot.job.borrow().is_some() || workers.ending.get()).await;
        let Some(job) = slot.job.take() else { break };
        let Job { request, range, payload, reservation, turn } = job;
        let body =
            execute(&connection, &request, range, payload).await.unwrap_or_else(Body::Failed);
        drop(turn);
        let stays = workers.rest(&worker);
        connection.outbox.push(Reply { request, body, reservation });
        if !stays {
            break;
        }
    }
    workers.running.set(workers.running.get() - 1);
    workers.ended.wake();
}

/// Carries the request out; `range` was checked, and is the blocks that the request touches.
async fn execute<V: Volume>(
    connection: &Connection<V>,
    request: &Request,
    range: SectorRange,
    payload: IoVec,
) -> Result<Body, Failure> {
    let (volume, stream) = (&*connection.volume, connection.stream);
    let fua = request.has(cmd_flag::FUA);
    let bytes = ByteRange::new(request.offset, u64::from(request.length), connection.block);
    if range.bytes() != u64::from(request.length) {
        // Rare, and longer than the others: no part of their futures.
        return Box::pin(execute_in_parts(connection, request, bytes, payload)).await;
    }
    match request.command {
        Command::Read => {
            let content = volume.read(stream, range).await?;
            if content.len() as u64 != range.bytes() {
                return Err(Failure::new(ErrorCode::Io, "short read from the volume"));
            }
            return Ok(Body::Content(content));
        }
        Command::Write => volume.write(stream, range, payload, fua).await?,
        Command::Flush => volume.flush(stream).await?,
        Command::Trim => volume.discard(stream, range, fua).await?,
        Command::Cache => volume.prefetch(stream, range).await?,
        Command::WriteZeroes => {
            volume.write_zeroes(stream, range, fua, !request.has(cmd_flag::NO_HOLE)).await?;
        }
        Command::BlockStatus => {
            return status(connection, request, bytes).await;
        }
        Command::Disconnect | Command::Unknown(_) => {
            unreachable!("not a request that is carried out")
        }
    }
    Ok(Body::Done)
}

/// Carries a request out whose range is no multiple of the block.
async fn execute_in_parts<V: Volume>(
    connection: &Connection<V>,
    request: &Request,
    range: ByteRange,
    payload: IoVec,
) -> Result<Body, Failure> {
    let (volume, stream) = (&*connection.volume, connection.stream);
    let fua = request.has(cmd_flag::FUA);
    match request.command {
        Command::Read => return Ok(Body::Content(bytes::read(volume, stream, range).await?)),
        Command::Write => bytes::write(volume, stream, range, payload, fua).await?,
        Command::Flush => volume.flush(stream).await?,
        Command::Trim => bytes::discard(volume, stream, range, fua).await?,
        Command::Cache => volume.prefetch(stream, range.around()).await?,
        Command::WriteZeroes => {
            let may_unmap = !request.has(cmd_flag::NO_HOLE);
            bytes::write_zeroes(volume, stream, range, fua, may_unmap).await?;
        }
        Command::BlockStatus => return status(connection, request, range).await,
        Command::Disconnect | Command::Unknown(_) => {
            unreachable!("not a request that is carried out")
        }
    }
    Ok(Body::Done)
}
