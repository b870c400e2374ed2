//! Jobs for threads. Results are returned in the order in which the jobs were pushed.
//!
//! The thread that pushes runs jobs itself when it has nothing else to do. No thread waits for a
//! whole batch: as long as there are jobs, all threads run one.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::thread_pool::ThreadPool;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// A queue of jobs and of their results.
pub(crate) struct OrderedQueue<T> {
    shared: Arc<Shared<T>>,
    /// Jobs that were pushed and whose results were not popped.
    pending: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    result: Condvar,
}

struct State<T> {
    jobs: VecDeque<(usize, Job<T>)>,
    /// Results that were not popped, from job number `first` on. `None`: the job has not ended.
    results: VecDeque<Option<T>>,
    first: usize,
    closed: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the next job. `Err`: there is none.
    fn run_one<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
    ) -> Result<MutexGuard<'a, State<T>>, MutexGuard<'a, State<T>>> {
        let Some((number, job)) = state.jobs.pop_front() else { return Err(state) };
        drop(state);
        let result = job();
        let mut state = self.state();
        let place = number - state.first;
        if let Some(place) = state.results.get_mut(place) {
            *place = Some(result);
        }
        if place == 0 {
            self.result.notify_one();
        }
        Ok(state)
    }

    /// Runs jobs until the queue is closed.
    fn run_until_closed(&self) {
        let mut state = self.state();
        while !state.closed {
            state = match self.run_one(state) {
                Ok(state) => state,
                Err(state) => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl<T: Send + 'static> OrderedQueue<T> {
    /// A queue for so many threads, this one among them.
    pub fn new(pool: &ThreadPool, threads: usize) -> OrderedQueue<T> {
        let state =
            State { jobs: VecDeque::new(), results: VecDeque::new(), first: 0, closed: false };
        let shared =
            Shared { state: Mutex::new(state), work: Condvar::new(), result: Condvar::new() };
        let queue = OrderedQueue { shared: Arc::new(shared), pending: 0 };
        pool.spawn(threads.saturating_sub(1), || {
            let shared = queue.shared.clone();
            move || shared.run_until_closed()
        });
        queue
    }

    /// Adds a job.
    pub fn push(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        let mut state = self.shared.state();
        let number = state.first + state.results.len();
        state.results.push_back(None);
        state.jobs.push_back((number, Box::new(job)));
        drop(state);
        self.pending += 1;
        self.shared.work.notify_one();
    }

    /// Returns the result of the oldest job that was not popped, if that job has ended.
    pub fn pop(&mut self) -> Option<T> {
        let mut state = self.shared.state();
        let result = state.results.front_mut()?.take()?;
        state.results.pop_front();
        state.first += 1;
        drop(state);
        self.pending -= 1;
        Some(result)
    }

    /// Runs a job on this thread. Returns false if there is none.
    pub fn run_one(&self) -> bool {
        self.shared.run_one(self.shared.state()).is_ok()
    }

    /// Waits until the oldest result can be popped. Meant for when workers run all jobs that are
    /// left.
    pub fn wait(&self) {
        let mut state = self.shared.state();
        while state.results.front().is_some_and(Option::is_none) {
            state = match self.shared.run_one(state) {
                Ok(state) => state,
                Err(state) => {
                    self.shared.result.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Number of jobs whose results were not popped.
    pub fn pending(&self) -> usize {
        self.pending
    }
}

impl<T> Drop for OrderedQueue<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::thread_pool::THREADS_MAX;

    #[test]
    fn results_are_in_order_with_any_number_of_threads() {
        let pool = ThreadPool::of(THREADS_MAX);
        for threads in 1..=THREADS_MAX {
            for (count, at_once) in [(0, 1), (1, 1), (100, 1), (100, 7), (100, 100)] {
                let mut queue = OrderedQueue::new(&pool, threads);
                let (mut given, mut taken) = (0, Vec::new());
                while taken.len() < count {
                    while given < count && queue.pending() < at_once {
                        let index = given;
                        queue.push(move || {
                            if index % 5 == 1 {
                                std::thread::yield_now();
                            }
                            index * index
                        });
                        given += 1;
                    }
                    match queue.pop() {
                        Some(result) => taken.push(result),
                        None if taken.len() % 3 == 0 => queue.wait(),
                        None => {
                            queue.run_one();
                        }
                    }
                }
                assert_eq!(queue.pending(), 0);
                assert!(queue.pop().is_none());
                assert_eq!(
                    taken,
                    (0..count).map(|index| index * index).collect::<Vec<_>>(),
                    "{threads} threads"
                );
            }
        }
    }

    /// A job is dropped before its result can be popped, so that the memory it holds can be reused.
    #[test]
    fn finished_jobs_release_their_memory() {
        let pool = ThreadPool::of(2);
        let mut queue = OrderedQueue::new(&pool, 2);
        let memory = Arc::new(7);
        for _ in 0..50 {
            let held = memory.clone();
            queue.push(move || *held);
            queue.wait();
            assert_eq!(queue.pop(), Some(7));
            assert_eq!(Arc::strong_count(&memory), 1);
        }
        let held = memory.clone();
        let (sender, begin) = std::sync::mpsc::channel::<()>();
        let mut queue = OrderedQueue::new(&pool, 1);
        queue.push(move || drop((held, begin.recv())));
        drop(queue);
        assert!(sender.send(()).is_err(), "it was never begun");
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
