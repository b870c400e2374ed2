//! Work that is given to threads piece by piece. What comes out is taken in the order in which it was given.
//!
//! The one who gives does a part of the work itself, when there is nothing else for it to do. Nobody waits for a whole
//! batch: as long as there are pieces, all threads are at work.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::crew::Crew;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// Work under way, and what came out of it.
pub(crate) struct Line<T> {
    board: Arc<Board<T>>,
    /// How many were given, and not taken.
    left: usize,
}

struct Board<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    result: Condvar,
}

struct State<T> {
    jobs: VecDeque<(usize, Job<T>)>,
    /// What was given and not taken, from the number `first` on: those that are done.
    results: VecDeque<Option<T>>,
    first: usize,
    ended: bool,
}

impl<T> Board<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a piece of work.
    fn work<'a>(
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

    /// Works until it has ended.
    fn help(&self) {
        let mut state = self.state();
        while !state.ended {
            state = match self.work(state) {
                Ok(state) => state,
                Err(state) => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl<T: Send + 'static> Line<T> {
    /// A line for so many threads, this one among them.
    pub fn new(crew: &Crew, threads: usize) -> Line<T> {
        let state = State { jobs: VecDeque::new(), results: VecDeque::new(), first: 0, ended: false };
        let board = Board { state: Mutex::new(state), work: Condvar::new(), result: Condvar::new() };
        let line = Line { board: Arc::new(board), left: 0 };
        crew.spawn(threads.saturating_sub(1), || {
            let board = line.board.clone();
            move || board.help()
        });
        line
    }

    /// Gives work.
    pub fn give(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        let mut state = self.board.state();
        let number = state.first + state.results.len();
        state.results.push_back(None);
        state.jobs.push_back((number, Box::new(job)));
        drop(state);
        self.left += 1;
        self.board.work.notify_one();
    }

    /// What came out of the first piece that was not taken yet, if it is done.
    pub fn take(&mut self) -> Option<T> {
        let mut state = self.board.state();
        let result = state.results.front_mut()?.take()?;
        state.results.pop_front();
        state.first += 1;
        drop(state);
        self.left -= 1;
        Some(result)
    }

    /// Does a piece of work here; says whether there was one.
    pub fn work(&self) -> bool {
        self.board.work(self.board.state()).is_ok()
    }

    /// Waits until there is something to take. Only where others have all of the work.
    pub fn wait(&self) {
        let mut state = self.board.state();
        while state.results.front().is_some_and(Option::is_none) {
            state = match self.board.work(state) {
                Ok(state) => state,
                Err(state) => self.board.result.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// How many pieces were given, and not taken.
    pub fn left(&self) -> usize {
        self.left
    }
}

impl<T> Drop for Line<T> {
    fn drop(&mut self) {
        let mut state = self.board.state();
        state.ended = true;
        state.jobs.clear();
        drop(state);
        self.board.work.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crew::THREADS_MAX;

    #[test]
    fn results_come_in_order_whoever_does_the_work() {
        let crew = Crew::of(THREADS_MAX);
        for threads in 1..=THREADS_MAX {
            for (count, at_once) in [(0, 1), (1, 1), (100, 1), (100, 7), (100, 100)] {
                let mut line = Line::new(&crew, threads);
                let (mut given, mut taken) = (0, Vec::new());
                while taken.len() < count {
                    while given < count && line.left() < at_once {
                        let index = given;
                        line.give(move || {
                            if index % 5 == 1 {
                                std::thread::yield_now();
                            }
                            index * index
                        });
                        given += 1;
                    }
                    match line.take() {
                        Some(result) => taken.push(result),
                        None if taken.len() % 3 == 0 => line.wait(),
                        None => {
                            line.work();
                        }
                    }
                }
                assert_eq!(line.left(), 0);
                assert!(line.take().is_none());
                assert_eq!(
                    taken,
                    (0..count).map(|index| index * index).collect::<Vec<_>>(),
                    "{threads} threads"
                );
            }
        }
    }

    /// What a piece of work holds goes with it, so that whoever takes the result can have it back.
    #[test]
    fn work_that_is_done_holds_nothing() {
        let crew = Crew::of(2);
        let mut line = Line::new(&crew, 2);
        let memory = Arc::new(7);
        for _ in 0..50 {
            let held = memory.clone();
            line.give(move || *held);
            line.wait();
            assert_eq!(line.take(), Some(7));
            assert_eq!(Arc::strong_count(&memory), 1);
        }
        let held = memory.clone();
        let (sender, begin) = std::sync::mpsc::channel::<()>();
        let mut line = Line::new(&crew, 1);
        line.give(move || drop((held, begin.recv())));
        drop(line);
        assert!(sender.send(()).is_err(), "it was never begun");
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
