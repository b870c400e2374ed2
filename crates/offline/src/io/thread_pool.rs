//! Work that several threads share. Results and their order do not depend on the number of threads.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use rayon_core::ThreadPoolBuilder;

/// More threads than this would wait for the device.
pub(crate) const THREADS_MAX: usize = 4;

/// Threads that may be used. They are made when they are needed for the first time, and stay.
pub(crate) struct ThreadPool {
    threads: usize,
    workers: OnceCell<Option<rayon_core::ThreadPool>>,
}

impl ThreadPool {
    /// Creates a pool with a thread for each processor.
    pub fn new() -> ThreadPool {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        ThreadPool::of(processors.min(THREADS_MAX))
    }

    pub(crate) fn of(threads: usize) -> ThreadPool {
        ThreadPool { threads, workers: OnceCell::new() }
    }

    /// Returns the number of threads for this much work, if each takes `a_thread` of it.
    pub fn threads_for(&self, work: usize, a_thread: usize) -> usize {
        self.threads.min(work / a_thread.max(1)).max(1)
    }

    /// Calls `work` for each number below `count`, on up to `threads` threads. The calling thread
    /// takes the results in order while the others work, and works itself when no result is ready.
    pub fn map_in_order<T: Send>(
        &self,
        threads: usize,
        count: usize,
        work: impl Fn(usize) -> T + Sync,
        mut take: impl FnMut(usize, T),
    ) {
        let threads = threads.min(self.threads).min(count);
        let workers =
            if threads < 2 { None } else { self.workers.get_or_init(|| self.workers()).as_ref() };
        // The calling thread does everything if no other can be started.
        let Some(workers) = workers else {
            (0..count).for_each(|index| take(index, work(index)));
            return;
        };
        let next = AtomicUsize::new(0);
        let next = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < count);
        let (sender, results) = mpsc::channel();
        workers.in_place_scope(|scope| {
            let (next, work) = (&next, &work);
            for _ in 1..threads {
                let sender = sender.clone();
                scope.spawn(move |_| {
                    while let Some(index) = next() {
                        let _ = sender.send((index, work(index)));
                    }
                });
            }
            drop(sender);
            let mut ready: Vec<Option<T>> = std::iter::repeat_with(|| None).take(count).collect();
            let mut wanted = 0;
            while wanted < count {
                results.try_iter().for_each(|(index, result)| ready[index] = Some(result));
                if let Some(result) = ready[wanted].take() {
                    take(wanted, result);
                    wanted += 1;
                } else if let Some(index) = next() {
                    ready[index] = Some(work(index));
                } else {
                    // A worker runs it.
                    let (index, result) = results.recv().unwrap_or_else(|_| (wanted, work(wanted)));
                    ready[index] = Some(result);
                }
            }
        });
    }

    /// Starts up to `threads` workers on work that ends by itself.
    pub fn spawn<W: FnOnce() + Send + 'static>(&self, threads: usize, work: impl Fn() -> W) {
        let threads = threads.min(self.threads - 1);
        let workers =
            if threads == 0 { None } else { self.workers.get_or_init(|| self.workers()).as_ref() };
        if let Some(workers) = workers {
            (0..threads).for_each(|_| workers.spawn(work()));
        }
    }

    fn workers(&self) -> Option<rayon_core::ThreadPool> {
        ThreadPoolBuilder::new().num_threads(self.threads - 1).build().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_with_any_number_of_threads() {
        let pool = ThreadPool::of(THREADS_MAX);
        for threads in 1..=THREADS_MAX + 1 {
            for count in [0, 1, 2, 3, 7, 100] {
                let mut taken = Vec::new();
                let work = |index: usize| {
                    if index % 5 == 1 {
                        std::thread::yield_now();
                    }
                    index * index
                };
                pool.map_in_order(threads, count, work, |index, result| {
                    taken.push((index, result))
                });
                let expected: Vec<_> = (0..count).map(|index| (index, index * index)).collect();
                assert_eq!(taken, expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn small_work_uses_one_thread() {
        let pool = ThreadPool::of(4);
        let threads = |work, each| pool.threads_for(work, each);
        assert_eq!(
            (threads(0, 10), threads(19, 10), threads(20, 10), threads(1000, 10)),
            (1, 1, 2, 4)
        );
    }
}
