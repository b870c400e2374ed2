//! Steps of a poll, counted.
//!
//! The engine runs on one thread: while a task is polled, no other task runs, and no I/O of any
//! volume proceeds. So no poll may do work that grows with the cache. Loops over buckets, leaves,
//! records and the like report the number of their steps; a world that counts them adds them up
//! between two polls.

use std::cell::Cell;
use std::rc::Rc;

/// A counter of steps. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Work(Option<Rc<Cell<u64>>>);

impl Work {
    /// Counts in this cell.
    pub fn counted_in(steps: Rc<Cell<u64>>) -> Work {
        Work(Some(steps))
    }

    /// Counts so many steps, each of some ten nanoseconds.
    #[inline]
    pub fn add(&self, steps: usize) {
        if let Some(count) = &self.0 {
            count.set(count.get() + steps as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_added_to_their_counter() {
        let steps = Rc::new(Cell::new(1));
        let work = Work::counted_in(steps.clone());
        work.add(2);
        work.clone().add(3);
        Work::default().add(100);
        assert_eq!(steps.get(), 6);
    }
}
