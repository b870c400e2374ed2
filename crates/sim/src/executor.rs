//! The heart of the world: tasks, the clock, events and the hash over every decision.
//!
//! One step: events that are due fire; if no task can run, the clock jumps to the next event; the
//! policy picks a task; the task is polled and the clock moves by a drawn cost. Time therefore
//! passes also while tasks run, and completions fall between any two polls.
//!
//! Tasks belong to a *group*: an instance of the system under test. [`SimWorld::kill`] drops all
//! tasks of a group at once, which is what a power failure or a host restart does to a program.
//! Requests that the dropped tasks had submitted stay with the disk. A dead group spawns nothing.

mod config;
mod env;
mod event;
mod memory;
mod task;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Waker};

use ubcache_env::{BufPool, Nanos, Priority};

use crate::places::Places;
use crate::rng::{Rng, mix};
pub use config::{Policy, WorldConfig};
pub use env::SimEnv;
use event::Event;
pub(crate) use event::Sink;
use memory::Memory;
use task::{Counted, Slot, TaskId, TaskWaker, Woken};

/// Reason why a run did not come to its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stuck {
    /// No task can run and no event is left.
    #[error("deadlock: nobody can run and no event is due; waiting:\n{0}")]
    Deadlock(String),
    /// Too many polls.
    #[error("livelock: too many steps; tasks:\n{0}")]
    Steps(String),
    /// Too much virtual time.
    #[error("livelock: too much virtual time; tasks:\n{0}")]
    Time(String),
}

pub(crate) struct World {
    config: WorldConfig,
    now: Cell<u64>,
    schedule: RefCell<Rng>,
    random: RefCell<Rng>,
    tasks: RefCell<BTreeMap<TaskId, Slot>>,
    next_task: Cell<TaskId>,
    current: Cell<TaskId>,
    ready: RefCell<VecDeque<TaskId>>,
    woken: Woken,
    events: RefCell<BinaryHeap<Reverse<Event>>>,
    next_event: Cell<u64>,
    dead: RefCell<Vec<bool>>,
    steps: Cell<u64>,
    hash: Cell<u64>,
    marks: RefCell<BTreeMap<&'static str, u64>>,
    rows: RefCell<Vec<String>>,
    complaints: RefCell<Vec<String>>,
    /// Steps of the poll that runs.
    poll_steps: Rc<Cell<u64>>,
    longest_poll: Cell<u64>,
    /// Polls that were too long, by what they are of.
    long_polls: RefCell<BTreeMap<String, u64>>,
    /// Buffers of the newest instance.
    buffers: RefCell<BufPool>,
    /// Memory of requesters.
    pub(crate) places: Places,
    buffers_held: Cell<u64>,
    /// Asks the newest instance what else it holds too much of; until the first answer.
    memory_watcher: RefCell<Option<MemoryWatcher>>,
    too_much_held: RefCell<Option<String>>,
    write_watcher: RefCell<Option<WriteWatcher>>,
    memory: RefCell<Memory>,
    /// Tasks of instances that are no part of a request, now and at most.
    background: Rc<Cell<usize>>,
    most_background: Cell<usize>,
}

/// Called after every poll: what an instance holds too much of.
pub(crate) type MemoryWatcher = Rc<dyn Fn() -> Option<String>>;

/// Called right before a write is submitted to a disk (false), and right after one has completed
/// (true).
pub type WriteWatcher = Rc<dyn Fn(bool)>;

impl World {
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(crate) fn seed(&self) -> u64 {
        self.config.seed
    }

    pub(crate) fn trace(&self, value: u64) {
        self.hash.set(mix(self.hash.get() ^ value));
    }

    /// A row of the verbose log.
    pub(crate) fn row(&self, text: impl FnOnce() -> String) {
        if self.config.verbose {
            let row = format!("{:>16} {}", show_time(self.now.get()), text());
            self.rows.borrow_mut().push(row);
        }
    }

    /// A write is about to be submitted, or has completed.
    pub(crate) fn saw_write(&self, completed: bool) {
        let watcher = self.write_watcher.borrow().clone();
        if let Some(watcher) = watcher {
            watcher(completed);
        }
    }

    /// Something that no right program does, for instance a misaligned request.
    pub(crate) fn complain(&self, text: String) {
        self.complaints.borrow_mut().push(text);
    }

    pub(crate) fn schedule(&self, at: u64, sink: Rc<dyn Sink>, token: u64) {
        let tie = self.schedule.borrow_mut().bits() as u32;
        let order = self.next_event.get();
        self.next_event.set(order + 1);
        self.events.borrow_mut().push(Reverse(Event { at, tie, order, token, sink }));
    }

    /// The next event with a waiter, if it is due before `limit`.
    fn pop_event(&self, limit: u64) -> Option<Event> {
        loop {
            let mut events = self.events.borrow_mut();
            let Reverse(event) = events.peek()?;
            if event.at > limit {
                return None;
            }
            let Reverse(event) = events.pop().expect("it was just peeked at");
            drop(events);
            if event.sink.cares(event.token) {
                return Some(event);
            }
        }
    }

    fn fire(&self, event: Event) {
        self.now.set(self.now.get().max(event.at));
        self.trace(event.at ^ event.token.rotate_left(32));
        event.sink.fire(event.token);
    }

    fn spawn(
        &self,
        group: u32,
        priority: Priority,
        future: Pin<Box<dyn Future<Output = ()>>>,
        born: &'static Location<'static>,
    ) {
        if self.dead.borrow()[group as usize] {
            return;
        }
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let waker =
            Arc::new(TaskWaker { id, queued: AtomicBool::new(true), woken: self.woken.clone() });
        let rank = self.schedule.borrow_mut().bits() >> 1;
        let counted = (group > 0 && priority != Priority::Foreground).then(|| {
            self.background.set(self.background.get() + 1);
            self.most_background.set(self.most_background.get().max(self.background.get()));
            Counted(self.background.clone())
        });
        let last_poll = self.now.get();
        let slot = Slot {
            future: Some(future),
            waker,
            group,
            priority,
            rank,
            born,
            last_poll,
            _counted: counted,
        };
        self.tasks.borrow_mut().insert(id, slot);
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn take_woken(&self) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready.borrow_mut().extend(woken.drain(..));
    }

    fn pick(&self) -> Option<TaskId> {
        let mut ready = self.ready.borrow_mut();
        let count = ready.len() as u64;
        let mut rng = self.schedule.borrow_mut();
        if count < 2 {
            return ready.pop_front();
        }
        let tasks = self.tasks.borrow();
        let best = |score: &dyn Fn(&Slot) -> u64| {
            (0..ready.len())
                .max_by_key(|&at| tasks.get(&ready[at]).map_or(u64::MAX, score))
                .unwrap_or(0)
        };
        let at = match self.config.policy {
            Policy::Uniform => rng.below(count) as usize,
            Policy::Fifo => 0,
            Policy::Ranks => best(&|slot| slot.rank),
            Policy::Queues if rng.chance(1, 16) => rng.below(count) as usize,
            Policy::Queues => best(&|slot| match slot.priority {
                Priority::Foreground => 2,
                Priority::Journal => 1,
                Priority::Background | Priority::Fill => 0,
            }),
        };
        if self.config.policy == Policy::Uniform {
            ready.swap_remove_back(at)
        } else {
            ready.remove(at)
        }
    }

    fn poll(&self, id: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.get_mut(&id) else { return };
        let Some(mut future) = slot.future.take() else { return };
        let (waker, born) = (slot.waker.clone(), slot.born);
        slot.last_poll = self.now.get();
        {
            let mut rng = self.schedule.borrow_mut();
            if self.config.policy == Policy::Ranks && rng.chance(1, 24) {
                slot.rank = rng.below(1 << 20);
            }
            let cost = self.config.poll_cost.0;
            let cost = if rng.chance(1, 256) { cost * 100 } else { cost };
            self.now.set(self.now.get() + rng.below(cost + 1));
        }
        drop(tasks);
        self.trace(id ^ self.now.get().rotate_left(20));
        waker.queued.store(false, Ordering::Relaxed);
        self.current.set(id);
        self.poll_steps.set(0);
        let done = future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker))).is_ready();
        self.poll_took(self.poll_steps.take(), born);
        let mut tasks = self.tasks.borrow_mut();
        match tasks.get_mut(&id) {
            Some(slot) if !done => slot.future = Some(future),
            _ => {
                tasks.remove(&id);
                drop(tasks);
                drop(future);
            }
        }
    }

    /// While a task is polled no other task runs: time passes, and too much work at once is a
    /// violation.
    fn poll_took(&self, steps: u64, born: &'static Location<'static>) {
        self.now.set(self.now.get() + steps * self.config.step_cost.0);
        self.longest_poll.set(self.longest_poll.get().max(steps));
        let held = self.buffers.borrow().held_bytes() as u64;
        self.buffers_held.set(self.buffers_held.get().max(held));
        let found = self.memory_watcher.borrow().as_ref().and_then(|watcher| watcher());
        if let Some(found) = found {
            self.memory_watcher.take();
            self.too_much_held.borrow_mut().get_or_insert(found);
        }
        if steps > self.config.poll_steps_max {
            let task = format!("of the task spawned at {}:{}", born.file(), born.line());
            let mut polls = self.long_polls.borrow_mut();
            let longest = polls.entry(task).or_insert(0);
            *longest = steps.max(*longest);
        }
    }

    /// The running task gives its turn away: all others come before it. Says for how many turns.
    fn give_way(&self) -> u64 {
        let mut rng = self.schedule.borrow_mut();
        if let Some(slot) = self.tasks.borrow_mut().get_mut(&self.current.get()) {
            slot.rank = rng.below(1 << 20);
        }
        1 + rng.below(2)
    }

    fn waiting(&self) -> String {
        let mut text = String::new();
        let tasks = self.tasks.borrow();
        for (id, slot) in tasks.iter().take(40) {
            let _ = writeln!(
                text,
                "  task {id} of group {} spawned at {}:{} ({:?}), last ran at {}",
                slot.group,
                slot.born.file(),
                slot.born.line(),
                slot.priority,
                show_time(slot.last_poll)
            );
        }
        if tasks.len() > 40 {
            let _ = writeln!(text, "  and {} more", tasks.len() - 40);
        }
        text
    }
}

/// Virtual time for people: seconds with microseconds.
pub fn show_time(nanos: u64) -> String {
    format!("{}.{:06}s", nanos / 1_000_000_000, nanos / 1_000 % 1_000_000)
}

/// A simulated world.
#[derive(Clone)]
pub struct SimWorld {
    world: Rc<World>,
}

impl SimWorld {
    /// A world at time 0, with nothing in it.
    pub fn new(config: WorldConfig) -> SimWorld {
        let seed = config.seed;
        let world = World {
            config,
            now: Cell::new(0),
            schedule: RefCell::new(Rng::fork(seed, "schedule")),
            random: RefCell::new(Rng::fork(seed, "engine")),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            current: Cell::new(0),
            ready: RefCell::default(),
            woken: Woken::default(),
            events: RefCell::default(),
            next_event: Cell::new(0),
            dead: RefCell::new(vec![false]),
            steps: Cell::new(0),
            hash: Cell::new(mix(seed)),
            marks: RefCell::default(),
            rows: RefCell::default(),
            complaints: RefCell::default(),
            poll_steps: Rc::default(),
            longest_poll: Cell::new(0),
            long_polls: RefCell::default(),
            buffers: RefCell::default(),
            places: Places::default(),
            buffers_held: Cell::new(0),
            memory_watcher: RefCell::default(),
            too_much_held: RefCell::default(),
            write_watcher: RefCell::default(),
            memory: RefCell::new(Memory::plenty(seed)),
            background: Rc::default(),
            most_background: Cell::new(0),
        };
        SimWorld { world: Rc::new(world) }
    }

    /// The environment that no crash kills: for the test itself.
    pub fn env(&self) -> SimEnv {
        SimEnv { world: self.world.clone(), group: 0, buffers: BufPool::default() }
    }

    /// The environment of a new instance of the system under test.
    pub fn new_instance(&self) -> SimEnv {
        let mut dead = self.world.dead.borrow_mut();
        dead.push(false);
        let world = self.world.clone();
        let supply = move |_| world.memory.borrow_mut().has_some(world.now.get());
        let buffers = BufPool::with_supply(Box::new(supply));
        self.world.buffers.replace(buffers.clone());
        SimEnv { world: self.world.clone(), group: (dead.len() - 1) as u32, buffers }
    }

    /// The environment of a server that is no part of the system under test.
    pub fn new_server(&self) -> SimEnv {
        let mut dead = self.world.dead.borrow_mut();
        dead.push(false);
        let group = (dead.len() - 1) as u32;
        SimEnv { world: self.world.clone(), group, buffers: BufPool::default() }
    }

    /// Drops every task of the instance, and keeps it from starting others.
    pub fn kill(&self, instance: &SimEnv) {
        assert!(instance.group != 0, "the test itself is not an instance");
        self.world.dead.borrow_mut()[instance.group as usize] = true;
        let mut tasks = self.world.tasks.borrow_mut();
        let doomed: Vec<TaskId> = tasks
            .iter()
            .filter(|(_, slot)| slot.group == instance.group)
            .map(|(id, _)| *id)
            .collect();
        let doomed: Vec<Slot> = doomed.iter().filter_map(|id| tasks.remove(id)).collect();
        drop(tasks);
        drop(doomed);
    }

    /// Runs until `main` is done.
    ///
    /// # Errors
    /// If it never will be.
    #[track_caller]
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> Result<T, Stuck> {
        let world = &self.world;
        let result = Rc::new(RefCell::new(None));
        let into = result.clone();
        let main = async move {
            let value = main.await;
            *into.borrow_mut() = Some(value);
        };
        world.spawn(0, Priority::Foreground, Box::pin(main), Location::caller());
        loop {
            while let Some(event) = world.pop_event(world.now.get()) {
                world.fire(event);
            }
            world.take_woken();
            let Some(id) = world.pick() else {
                let Some(event) = world.pop_event(u64::MAX) else {
                    return Err(Stuck::Deadlock(world.waiting()));
                };
                if event.at > world.config.max_time.0 {
                    return Err(Stuck::Time(world.waiting()));
                }
                world.fire(event);
                continue;
            };
            world.poll(id);
            if let Some(value) = result.borrow_mut().take() {
                return Ok(value);
            }
            world.steps.set(world.steps.get() + 1);
            if world.steps.get() > world.config.max_steps {
                return Err(Stuck::Steps(world.waiting()));
            }
        }
    }

    /// Ends the world: drops every task and event. Without this, tasks that hold a handle of the
    /// world keep it in memory for ever.
    pub fn end(&self) {
        self.world.dead.borrow_mut().fill(true);
        let tasks = self.world.tasks.take();
        drop(tasks);
        let events = self.world.events.take();
        drop(events);
        self.world.write_watcher.take();
        self.world.memory_watcher.take();
        self.world.buffers.take();
    }

    /// Watches every write of every disk. Discards and writes of zeroes are writes.
    pub fn watch_writes(&self, watcher: WriteWatcher) {
        *self.world.write_watcher.borrow_mut() = Some(watcher);
    }

    /// Makes memory for I/O scarce: so many of a million requests for some are refused, and no more
    /// than `budget`.
    pub fn make_memory_scarce(&self, rate: u32, budget: u32) {
        let mut memory = self.world.memory.borrow_mut();
        (memory.rate, memory.budget) = (rate, budget);
    }

    /// Ends the shortage of memory.
    pub fn make_memory_plenty(&self) {
        let mut memory = self.world.memory.borrow_mut();
        (memory.rate, memory.none_until) = (0, 0);
    }

    /// For so long there is no memory for I/O.
    pub fn run_out_of_memory(&self, span: Nanos) {
        let mut memory = self.world.memory.borrow_mut();
        memory.none_until = memory.none_until.max(self.world.now.get().saturating_add(span.0));
    }

    /// The configuration of the world.
    pub fn config(&self) -> &WorldConfig {
        &self.world.config
    }

    /// The hash over every decision so far.
    pub fn hash(&self) -> u64 {
        self.world.hash.get()
    }

    /// The present moment.
    pub fn now(&self) -> Nanos {
        Nanos(self.world.now.get())
    }

    /// Polls so far.
    pub fn steps(&self) -> u64 {
        self.world.steps.get()
    }

    /// The most tasks at a time of one instance that were no part of a request.
    pub fn most_background(&self) -> usize {
        self.world.most_background.get()
    }

    /// Times that each named point was reached.
    pub fn marks(&self) -> BTreeMap<&'static str, u64> {
        self.world.marks.borrow().clone()
    }

    /// The rows of the verbose log so far; taken out.
    pub fn take_rows(&self) -> Vec<String> {
        self.world.rows.take()
    }

    /// A row for the verbose log.
    pub fn row(&self, text: impl FnOnce() -> String) {
        self.world.row(text);
    }

    /// Takes out the faults that devices and streams found in their use.
    pub fn take_complaints(&self) -> Vec<String> {
        self.world.complaints.take()
    }

    /// Steps of the longest poll so far.
    pub fn longest_poll(&self) -> u64 {
        self.world.longest_poll.get()
    }

    /// Polls that took more steps than one may; taken out.
    pub fn take_long_polls(&self) -> Vec<String> {
        let most = self.world.config.poll_steps_max;
        let polls = self.world.long_polls.take();
        polls
            .iter()
            .map(|(task, steps)| format!("a poll {task} took {steps} steps, {most} at most"))
            .collect()
    }

    /// The most bytes of buffers that an instance held after a poll.
    pub fn buffers_held(&self) -> u64 {
        self.world.buffers_held.get()
    }

    /// Has what an instance holds watched, from now on.
    pub(crate) fn watch_memory(&self, watcher: MemoryWatcher) {
        *self.world.memory_watcher.borrow_mut() = Some(watcher);
    }

    /// The first that an instance held too much of; taken out.
    pub(crate) fn take_too_much_held(&self) -> Option<String> {
        self.world.too_much_held.take()
    }

    /// The event that every task of the world waits for, as far as known.
    pub fn waiting(&self) -> String {
        self.world.waiting()
    }

    pub(crate) fn inner(&self) -> &Rc<World> {
        &self.world
    }
}
