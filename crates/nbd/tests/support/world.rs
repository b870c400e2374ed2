//! One thread: tasks run in the order in which they are woken, and when none can run, the time
//! of the next timer comes. A connection is two strings of bytes in memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use ubcache_env::local::Notify;
use ubcache_env::{
    Buf, BufPool, Device, DeviceLimits, Durability, Env, IoResult, IoVec, Nanos, Priority, Sector,
    SectorRange, Stream, StreamError, Task,
};

type LocalTask = Pin<Box<dyn Future<Output = ()>>>;
type Queue = Arc<Mutex<VecDeque<u64>>>;

struct TaskWaker {
    id: u64,
    queue: Queue,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut queue = self.queue.lock().expect("one thread");
        if !queue.contains(&self.id) {
            queue.push_back(self.id);
        }
    }
}

/// The executor and its handle.
#[derive(Clone, Default)]
pub struct TestEnv {
    tasks: Rc<RefCell<BTreeMap<u64, LocalTask>>>,
    next: Rc<Cell<u64>>,
    queue: Queue,
    buffers: BufPool,
    now: Rc<Cell<u64>>,
    /// Timers by time and number.
    timers: Rc<RefCell<BTreeMap<(u64, u64), Waker>>>,
}

impl TestEnv {
    /// An environment with this memory for I/O.
    #[allow(dead_code, reason = "not every test runs out of memory")]
    pub fn with_buffers(buffers: BufPool) -> TestEnv {
        TestEnv { buffers, ..TestEnv::default() }
    }

    /// Runs the future, and what it spawns, until it is done.
    ///
    /// # Panics
    /// If nothing can run any more and it is not done.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(Priority::Foreground, async move {
            let output = future.await;
            *slot.borrow_mut() = Some(output);
        });
        while result.borrow().is_none() {
            assert!(self.turn() || self.pass_time(), "every task waits for another");
        }
        result.borrow_mut().take().expect("checked")
    }

    /// Tasks that are not done.
    pub fn tasks(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Goes to the time of the next timer. Returns false if there is none.
    fn pass_time(&self) -> bool {
        let Some(((at, _), waker)) = self.timers.borrow_mut().pop_first() else { return false };
        self.now.set(at);
        waker.wake();
        true
    }

    fn turn(&self) -> bool {
        let Some(id) = self.queue.lock().expect("one thread").pop_front() else { return false };
        let Some(mut task) = self.tasks.borrow_mut().remove(&id) else { return true };
        let waker = Waker::from(Arc::new(TaskWaker { id, queue: self.queue.clone() }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut().insert(id, task);
        }
        true
    }
}

/// A timer, which is gone with its future.
struct Timer {
    key: (u64, u64),
    timers: Rc<RefCell<BTreeMap<(u64, u64), Waker>>>,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.borrow_mut().remove(&self.key);
    }
}

impl Env for TestEnv {
    type Device = NoDevice;

    fn now(&self) -> Nanos {
        Nanos(self.now.get())
    }
    fn unix_seconds(&self) -> u64 {
        0
    }
    async fn sleep_until(&self, at: Nanos) {
        let id = self.next.get();
        self.next.set(id + 1);
        let timer = Timer { key: (at.0, id), timers: self.timers.clone() };
        std::future::poll_fn(|cx| {
            if self.now.get() >= at.0 {
                return Poll::Ready(());
            }
            timer.timers.borrow_mut().insert(timer.key, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
    fn spawn(&self, _priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        let (task, run) = Task::wrap(task);
        let id = self.next.get();
        self.next.set(id + 1);
        self.tasks.borrow_mut().insert(id, Box::pin(run));
        self.queue.lock().expect("one thread").push_back(id);
        task
    }
    fn buffers(&self) -> &BufPool {
        &self.buffers
    }
    fn random(&self) -> u64 {
        0
    }
    async fn yield_now(&self) {
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

/// The executor has tasks and nothing else.
pub struct NoDevice;

impl Device for NoDevice {
    fn limits(&self) -> DeviceLimits {
        unreachable!()
    }
    async fn read(&self, _at: Sector, _into: Buf) -> (Buf, IoResult) {
        unreachable!()
    }
    async fn write(&self, _at: Sector, _from: IoVec, _durability: Durability) -> IoResult {
        unreachable!()
    }
    async fn flush(&self) -> IoResult {
        unreachable!()
    }
    async fn discard(&self, _range: SectorRange) -> IoResult {
        unreachable!()
    }
    async fn write_zeroes(&self, _range: SectorRange) -> IoResult {
        unreachable!()
    }
}

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    fn end(&self) {
        self.ended.set(true);
        self.changed.notify_all();
    }
}

/// One end of a connection in memory.
pub struct Duplex {
    from: Rc<Pipe>,
    to: Rc<Pipe>,
    /// Bytes that can be on the way.
    capacity: usize,
    /// Bytes that come with one receive.
    pub piece: Cell<usize>,
    /// Sends so far.
    pub sends: Cell<u64>,
    /// Receives so far that brought bytes.
    pub receives: Cell<u64>,
}

/// Both ends of a connection that holds `capacity` bytes in each direction.
pub fn duplex(capacity: usize) -> (Rc<Duplex>, Rc<Duplex>) {
    let (a, b) = (Rc::new(Pipe::default()), Rc::new(Pipe::default()));
    let end = |from: &Rc<Pipe>, to: &Rc<Pipe>| {
        Rc::new(Duplex {
            from: from.clone(),
            to: to.clone(),
            capacity,
            piece: Cell::new(usize::MAX),
            sends: Cell::new(0),
            receives: Cell::new(0),
        })
    };
    (end(&a, &b), end(&b, &a))
}

impl Duplex {
    /// Ends the sending side only.
    pub fn finish(&self) {
        self.to.end();
    }
}

impl Stream for Duplex {
    async fn recv_at(&self, mut into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        loop {
            let notified = self.from.changed.notified();
            let taken = {
                let mut bytes = self.from.bytes.borrow_mut();
                let len = bytes.len().min(into.len() - at).min(self.piece.get());
                for (to, byte) in into.as_mut_slice()[at..].iter_mut().zip(bytes.drain(..len)) {
                    *to = byte;
                }
                len
            };
            if taken > 0 {
                self.receives.set(self.receives.get() + 1);
                self.from.changed.notify_all();
                return (into, Ok(taken));
            }
            if self.from.ended.get() {
                return (into, Ok(0));
            }
            notified.await;
        }
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        self.sends.set(self.sends.get() + 1);
        for part in from.parts() {
            let mut bytes = part.as_slice();
            while !bytes.is_empty() {
                let notified = self.to.changed.notified();
                if self.to.ended.get() {
                    return Err(StreamError::Closed);
                }
                let room = self.capacity - self.to.bytes.borrow().len();
                let (now, later) = bytes.split_at(bytes.len().min(room));
                self.to.bytes.borrow_mut().extend(now);
                bytes = later;
                if now.is_empty() {
                    notified.await;
                } else {
                    self.to.changed.notify_all();
                }
            }
        }
        Ok(())
    }

    fn close(&self) {
        self.from.bytes.borrow_mut().clear();
        self.from.end();
        self.to.end();
    }
}
