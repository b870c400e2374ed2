//! Events between a guest and its disk, which take their time.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::local::Notify;
use ubcache_env::{Bell, Env, Nanos, Priority, StreamError};

use crate::executor::SimEnv;

/// An event; a clone is the same.
#[derive(Clone)]
pub struct SimBell {
    env: SimEnv,
    delay_max: Nanos,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    count: Cell<u64>,
    rung: Notify,
}

impl State {
    fn arrive(&self) {
        self.count.set(self.count.get() + 1);
        self.rung.notify_all();
    }
}

impl SimBell {
    /// An event that arrives up to so long after it was rung.
    pub fn new(env: &SimEnv, delay_max: Nanos) -> SimBell {
        SimBell { env: env.clone(), delay_max, state: Rc::default() }
    }
}

impl Bell for SimBell {
    async fn rung(&self) -> Result<(), StreamError> {
        while self.state.count.take() == 0 {
            self.state.rung.notified().await;
        }
        Ok(())
    }

    fn ring(&self) {
        if self.delay_max == Nanos(0) {
            return self.state.arrive();
        }
        let delay = Nanos(self.env.random() % (self.delay_max.0 + 1));
        let (env, state) = (self.env.clone(), self.state.clone());
        self.env.spawn(Priority::Foreground, async move {
            env.sleep(delay).await;
            state.arrive();
        });
    }
}
