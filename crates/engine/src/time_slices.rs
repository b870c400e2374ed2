//! Loops that give others their turn (S1, docs/internals/coherence.md §8).
//!
//! A poll that takes as long as the cache is large keeps every request of every volume waiting. So
//! what has to look at every bucket does so in slices.

use std::ops::Range;

use ubcache_env::Env;

/// Does something for `count` things, at so many steps each, in slices of `slice_steps` steps.
/// Others have their turn after each of them.
pub(crate) async fn in_slices<E: Env>(
    env: &E,
    slice_steps: usize,
    count: usize,
    steps: usize,
    mut work: impl FnMut(Range<usize>),
) {
    let each = (slice_steps / steps).max(1);
    let mut at = 0;
    while at < count {
        let end = at.saturating_add(each).min(count);
        env.work().add((end - at) * steps);
        work(at..end);
        at = end;
        env.yield_now().await;
    }
}

/// Counts the steps of a loop that is no walk over numbers.
pub(crate) struct Slice {
    most: usize,
    taken: usize,
}

impl Slice {
    /// A loop that takes up to `most` steps at a time.
    pub fn new(most: usize) -> Slice {
        Slice { most, taken: 0 }
    }

    /// The next steps are about to be taken; others have their turn before them if it is time for
    /// that.
    pub async fn step<E: Env>(&mut self, env: &E, steps: usize) {
        if self.taken >= self.most {
            self.taken = 0;
            env.yield_now().await;
        }
        self.taken += steps;
        env.work().add(steps);
    }
}
