//! Tasks and timers on one thread, as cheap as they get in safe code.
//!
//! Four queues, as in the real reactor: a turn runs them in the order of their priorities, and a
//! task that is woken while a turn runs has to wait for the next. The clock stands still while
//! tasks run, except where a load calls [`NullWorld::pass`]; when no task can run it jumps to the
//! next timer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::mem;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ubcache_env::{BufPool, Env, Nanos, Priority, Task, Work};

use super::device::NullDevice;
use crate::cpu_time;

/// The number of the future that [`NullWorld::run`] was called with.
const MAIN: usize = usize::MAX;

type Woken = Arc<Mutex<[Vec<usize>; 4]>>;

struct TaskWaker {
    slot: usize,
    priority: Priority,
    queued: AtomicBool,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken[self.priority as usize].push(self.slot);
        }
    }
}

struct Slot {
    /// None while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    state: Arc<TaskWaker>,
    waker: Waker,
    born: &'static Location<'static>,
}

/// The longest polls since the last [`NullWorld::take_long_polls`], the future of
/// [`NullWorld::run`] included.
#[derive(Clone, Debug, Default)]
pub struct LongPolls {
    /// Number of polls in that time.
    pub polls: u64,
    /// Steps that the loops of one counted.
    pub steps: u64,
    /// Place where that task was spawned.
    pub steps_of: String,
    /// Processor time of one.
    pub nanos: u64,
    /// Place where that task was spawned.
    pub nanos_of: String,
}

impl LongPolls {
    fn note(&mut self, steps: u64, nanos: u64, born: Option<&Location<'static>>) {
        let name =
            || born.map_or("main".to_owned(), |born| format!("{}:{}", born.file(), born.line()));
        self.polls += 1;
        if steps > self.steps {
            (self.steps, self.steps_of) = (steps, name());
        }
        if nanos > self.nanos {
            (self.nanos, self.nanos_of) = (nanos, name());
        }
    }
}

struct World {
    now: Cell<u64>,
    random: Cell<u64>,
    slots: RefCell<Vec<Slot>>,
    /// By priority: slots without a task, whose wakers are used again.
    free: RefCell<[Vec<usize>; 4]>,
    woken: Woken,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    timers_made: Cell<u64>,
    tasks: Cell<usize>,
    /// Woken tasks that this turn has not come to yet.
    in_turn: Cell<usize>,
    buffers: BufPool,
    /// Steps of the poll that runs.
    steps: Rc<Cell<u64>>,
    /// None: long polls are not recorded.
    long_polls: RefCell<Option<LongPolls>>,
}

/// The world. Cheap to clone.
#[derive(Clone)]
pub struct NullWorld(Rc<World>);

impl NullWorld {
    /// A world whose random numbers come from `seed`.
    pub fn new(seed: u64) -> NullWorld {
        NullWorld(Rc::new(World {
            now: Cell::new(1_000_000_000),
            random: Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            slots: RefCell::default(),
            free: RefCell::default(),
            woken: Arc::default(),
            buffers: BufPool::default(),
            timers: RefCell::default(),
            timers_made: Cell::new(0),
            tasks: Cell::new(0),
            in_turn: Cell::new(0),
            steps: Rc::default(),
            long_polls: RefCell::default(),
        }))
    }

    /// Measures each poll from now on, which makes polls slower.
    pub fn watch_polls(&self) {
        *self.0.long_polls.borrow_mut() = Some(LongPolls::default());
    }

    /// The longest polls so far; then begins anew.
    pub fn take_long_polls(&self) -> LongPolls {
        self.0.long_polls.borrow_mut().as_mut().map(mem::take).unwrap_or_default()
    }

    /// The engine's environment in this world.
    pub fn env(&self) -> NullEnv {
        NullEnv(self.0.clone())
    }

    /// Moves the clock.
    pub fn pass(&self, span: Nanos) {
        self.0.now.set(self.0.now.get() + span.0);
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.tasks.get()
    }

    /// Runs the future to its end, and other tasks as far as they get until then.
    ///
    /// # Panics
    /// If no task can run and no timer is set.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let world = &*self.0;
        let state = Arc::new(TaskWaker {
            slot: MAIN,
            priority: Priority::Foreground,
            queued: AtomicBool::new(false),
            woken: world.woken.clone(),
        });
        let waker = Waker::from(state.clone());
        let mut main = pin!(future);
        waker.wake_by_ref();
        let mut turn: [Vec<usize>; 4] = Default::default();
        let mut result = None;
        loop {
            mem::swap(&mut turn, &mut *world.woken.lock().unwrap_or_else(PoisonError::into_inner));
            world.fire();
            if turn.iter().all(Vec::is_empty) && !world.has_woken() {
                world.jump();
                continue;
            }
            world.in_turn.set(turn.iter().map(Vec::len).sum());
            for queue in &mut turn {
                for slot in queue.drain(..) {
                    world.in_turn.set(world.in_turn.get() - 1);
                    if slot == MAIN {
                        state.queued.store(false, Ordering::Relaxed);
                        let began = world.poll_begins();
                        if let Poll::Ready(value) =
                            main.as_mut().poll(&mut Context::from_waker(&waker))
                        {
                            result = Some(value);
                        }
                        world.poll_ends(began, None);
                    } else {
                        world.poll(slot);
                    }
                }
            }
            if let Some(value) = result {
                return value;
            }
        }
    }

    /// Runs every runnable task, without moving the clock, until only the caller is left.
    pub async fn settle(&self) {
        let env = self.env();
        loop {
            env.yield_now().await;
            if !self.0.has_woken() && self.0.in_turn.get() == 0 {
                return;
            }
        }
    }
}

impl World {
    fn has_woken(&self) -> bool {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.iter().any(|queue| !queue.is_empty())
    }

    /// Wakes those whose time has come.
    fn fire(&self) {
        let mut timers = self.timers.borrow_mut();
        while let Some(first) = timers.first_entry()
            && first.key().0 <= self.now.get()
        {
            first.remove().wake();
        }
    }

    fn jump(&self) {
        let next = self.timers.borrow().first_key_value().map(|(&(at, _), _)| at);
        let next = next.unwrap_or_else(|| panic!("nobody can run and no timer is set"));
        self.now.set(self.now.get().max(next));
    }

    fn poll(&self, slot: usize) {
        let (mut future, waker, born) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[slot];
            slot.state.queued.store(false, Ordering::Relaxed);
            // A waker may outlive its task.
            let Some(future) = slot.future.take() else { return };
            (future, slot.waker.clone(), slot.born)
        };
        let began = self.poll_begins();
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        self.poll_ends(began, Some(born));
        if ended {
            drop(future);
            self.tasks.set(self.tasks.get() - 1);
            let priority = self.slots.borrow()[slot].state.priority;
            self.free.borrow_mut()[priority as usize].push(slot);
        } else {
            self.slots.borrow_mut()[slot].future = Some(future);
        }
    }

    fn poll_begins(&self) -> Option<Duration> {
        self.steps.set(0);
        self.long_polls.borrow().is_some().then(cpu_time::of_thread)
    }

    fn poll_ends(&self, began: Option<Duration>, born: Option<&Location<'static>>) {
        if let (Some(began), Some(polls)) = (began, &mut *self.long_polls.borrow_mut()) {
            let nanos = (cpu_time::of_thread() - began).as_nanos() as u64;
            polls.note(self.steps.get(), nanos, born);
        }
    }

    fn spawn(
        &self,
        priority: Priority,
        future: Pin<Box<dyn Future<Output = ()>>>,
        born: &'static Location<'static>,
    ) {
        self.tasks.set(self.tasks.get() + 1);
        let free = self.free.borrow_mut()[priority as usize].pop();
        let mut slots = self.slots.borrow_mut();
        let slot = free.unwrap_or_else(|| {
            let slot = slots.len();
            let queued = AtomicBool::new(false);
            let state = Arc::new(TaskWaker { slot, priority, queued, woken: self.woken.clone() });
            let waker = Waker::from(state.clone());
            slots.push(Slot { future: None, state, waker, born });
            slot
        });
        (slots[slot].future, slots[slot].born) = (Some(future), born);
        slots[slot].waker.wake_by_ref();
    }
}

/// The environment of an engine in a [`NullWorld`].
#[derive(Clone)]
pub struct NullEnv(Rc<World>);

struct Sleep<'a> {
    world: &'a World,
    at: u64,
    number: u64,
}

impl Future for Sleep<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.at <= self.world.now.get() {
            return Poll::Ready(());
        }
        if self.number == 0 {
            self.number = self.world.timers_made.get() + 1;
            self.world.timers_made.set(self.number);
        }
        self.world.timers.borrow_mut().insert((self.at, self.number), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if self.number > 0 {
            self.world.timers.borrow_mut().remove(&(self.at, self.number));
        }
    }
}

impl Env for NullEnv {
    type Device = NullDevice;

    fn now(&self) -> Nanos {
        Nanos(self.0.now.get())
    }
    fn unix_seconds(&self) -> u64 {
        1_700_000_000 + self.0.now.get() / 1_000_000_000
    }
    async fn sleep_until(&self, at: Nanos) {
        Sleep { world: &self.0, at: at.0, number: 0 }.await;
    }
    #[track_caller]
    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        let (task, run) = Task::wrap(task);
        self.0.spawn(priority, Box::pin(run), Location::caller());
        task
    }
    fn buffers(&self) -> &BufPool {
        &self.0.buffers
    }
    fn random(&self) -> u64 {
        let mut x = self.0.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn work(&self) -> Work {
        Work::counted_in(self.0.steps.clone())
    }
    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_executor_advances_the_clock_to_the_next_timer() {
        let world = NullWorld::new(1);
        let env = world.env();
        let began = env.now();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let spans = [30, 10, 20];
        world.run(async {
            let tasks: Vec<Task> = spans
                .into_iter()
                .map(|ms| {
                    let (env, seen) = (env.clone(), seen.clone());
                    world.env().spawn(Priority::Background, async move {
                        env.sleep(Nanos::from_millis(ms)).await;
                        seen.borrow_mut().push(ms);
                    })
                })
                .collect();
            for task in tasks {
                task.join().await;
            }
        });
        assert_eq!(*seen.borrow(), [10, 20, 30]);
        assert_eq!(env.now().since(began), Nanos::from_millis(30));
        assert_eq!(world.tasks(), 0);
    }

    #[test]
    fn ready_tasks_run_by_priority() {
        let world = NullWorld::new(1);
        let seen = Rc::new(RefCell::new(Vec::new()));
        world.run(async {
            for priority in [Priority::Background, Priority::Journal, Priority::Foreground] {
                let seen = seen.clone();
                world.env().spawn(priority, async move { seen.borrow_mut().push(priority) });
            }
            world.settle().await;
        });
        assert_eq!(*seen.borrow(), [Priority::Foreground, Priority::Journal, Priority::Background]);
    }

    #[test]
    fn settle_polls_every_ready_task() {
        let world = NullWorld::new(1);
        let seen = Rc::new(Cell::new(0));
        let counted = seen.clone();
        let env = world.env();
        world.run(async {
            world.env().spawn(Priority::Background, async move {
                for _ in 0..3 {
                    env.yield_now().await;
                    counted.set(counted.get() + 1);
                }
            });
            world.settle().await;
            assert_eq!(seen.get(), 3);
        });
    }
}
