//! Repetition of requests that a store could not answer for now: with pauses that grow, and an end.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use ubcache_env::local::Semaphore;
use ubcache_env::{Env, Nanos};

use crate::store::{Condition, Object, Store, StoreError};

/// Pause before the first repetition.
const PAUSE_FIRST: Nanos = Nanos::from_millis(50);
/// Longest pause.
const PAUSE_MAX: Nanos = Nanos::from_secs(5);
/// A store that fails for less is only slow.
const AWAY_AFTER: Nanos = Nanos::from_secs(1);
/// Requests under way at most.
const REQUESTS_MAX: u64 = 32;

/// A change of state of a store or a volume on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreEvent {
    /// Requests fail and are repeated.
    Away {
        /// The first failure.
        error: StoreError,
        /// A request is given up after this time.
        patience: Nanos,
    },
    /// A request succeeded again.
    Back {
        /// Time since the first failure.
        after: Nanos,
    },
    /// A request was given up, and what needed it failed.
    GivenUp {
        /// The last failure.
        error: StoreError,
    },
    /// Another writer has the volume: nothing is read or written any more.
    Lost {
        /// The writer, and its epoch.
        reason: String,
    },
}

/// Receives the events.
pub type Events = Rc<dyn Fn(StoreEvent)>;

/// A store that repeats requests.
pub struct Patient<E, S> {
    env: E,
    store: S,
    patience: Nanos,
    events: Events,
    failing_since: Cell<Option<Nanos>>,
    away: Cell<bool>,
    requests: Rc<Semaphore>,
}

impl<E: Env, S: Store> Patient<E, S> {
    /// Gives a request up after `patience`.
    pub fn new(env: E, store: S, patience: Nanos, events: Events) -> Patient<E, S> {
        let requests = Rc::new(Semaphore::new(REQUESTS_MAX));
        let (failing_since, away) = (Cell::new(None), Cell::new(false));
        Patient { env, store, patience, events, failing_since, away, requests }
    }

    async fn repeat<T>(
        &self,
        mut request: impl AsyncFnMut(&S) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begin = self.env.now();
        let mut pause = PAUSE_FIRST;
        loop {
            let permit = self.requests.acquire(1).await;
            let result = request(&self.store).await;
            drop(permit);
            let error = match result {
                Err(error) if error.is_passing() => error,
                answer => {
                    self.answered();
                    return answer;
                }
            };
            self.failed(&error);
            // Up to half of the pause is random, so that many requests do not come back at once.
            let pause_ns = pause.0 - self.env.random() % (pause.0 / 2);
            if self.env.now().since(begin).0 + pause_ns > self.patience.0 {
                (self.events)(StoreEvent::GivenUp { error: error.clone() });
                return Err(error);
            }
            self.env.sleep(Nanos(pause_ns)).await;
            pause = Nanos((pause.0 * 2).min(PAUSE_MAX.0));
        }
    }

    fn answered(&self) {
        let since = self.failing_since.take();
        if self.away.take() {
            let after = self.env.now().since(since.unwrap_or_default());
            (self.events)(StoreEvent::Back { after });
        }
    }

    fn failed(&self, error: &StoreError) {
        let now = self.env.now();
        let since = self.failing_since.get().unwrap_or(now);
        self.failing_since.set(Some(since));
        if now.since(since) >= AWAY_AFTER && !self.away.replace(true) {
            let (error, patience) = (error.clone(), self.patience);
            (self.events)(StoreEvent::Away { error, patience });
        }
    }
}

impl<E: Env, S: Store> Store for Patient<E, S> {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        self.repeat(async |store| store.get(key, range.clone()).await).await
    }

    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<String, StoreError> {
        self.repeat(async |store| store.put(key, bytes.clone(), condition.clone()).await).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.repeat(async |store| store.delete(key).await).await
    }

    async fn list(&self, prefix: &str, after: &str) -> Result<Vec<String>, StoreError> {
        self.repeat(async |store| store.list(prefix, after).await).await
    }
}
