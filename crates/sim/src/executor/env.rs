//! The world as an instance of the system under test sees it: tasks, clock, timers, randomness.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ubcache_env::{BufPool, Env, Nanos, Priority, Task, Work};

use super::{Sink, World};
use crate::disk::SimDisk;
use crate::places::Places;

/// The environment of one instance in a [`SimWorld`](super::SimWorld).
#[derive(Clone)]
pub struct SimEnv {
    pub(super) world: Rc<World>,
    pub(super) group: u32,
    pub(super) buffers: BufPool,
}

#[derive(Default)]
struct Timer {
    fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Sink for Timer {
    fn fire(&self, _token: u64) {
        self.fired.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
    fn cares(&self, _token: u64) -> bool {
        self.waker.borrow().is_some()
    }
}

struct Sleep(Rc<Timer>);

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.fired.get() {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.0.waker.borrow_mut().take();
    }
}

impl SimEnv {
    /// Memory of requesters, to which disks read.
    pub(crate) fn places(&self) -> &Places {
        &self.world.places
    }
}

impl Env for SimEnv {
    type Device = SimDisk;

    fn now(&self) -> Nanos {
        Nanos(self.world.now.get())
    }

    fn unix_seconds(&self) -> u64 {
        1_700_000_000 + self.world.now.get() / 1_000_000_000
    }

    async fn sleep_until(&self, at: Nanos) {
        if at.0 <= self.world.now.get() {
            return;
        }
        let slop = self.world.schedule.borrow_mut().below(self.world.config.timer_slop.0 + 1);
        let timer = Rc::new(Timer::default());
        self.world.schedule(at.0.saturating_add(slop), timer.clone(), 0);
        Sleep(timer).await;
    }

    #[track_caller]
    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        let (task, run) = Task::wrap(task);
        self.world.spawn(self.group, priority, Box::pin(run), Location::caller());
        task
    }

    fn buffers(&self) -> &BufPool {
        &self.buffers
    }

    fn random(&self) -> u64 {
        self.world.random.borrow_mut().bits()
    }

    async fn yield_now(&self) {
        // Time passes with every turn, so that a loop that waits by yielding comes to its end.
        let turns = self.world.give_way();
        for _ in 0..turns {
            let mut first = true;
            std::future::poll_fn(|cx| {
                if std::mem::take(&mut first) {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
        }
    }

    fn mark(&self, name: &'static str) {
        *self.world.marks.borrow_mut().entry(name).or_insert(0) += 1;
    }

    fn work(&self) -> Work {
        Work::counted_in(self.world.poll_steps.clone())
    }
}
