//! Timers: tasks that sleep, and the times at which they wake.

use std::collections::BTreeMap;
use std::task::Waker;

use ubcache_env::Nanos;

/// A place in [`Timers`]: moment, then order of arrival.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TimerKey {
    at: Nanos,
    serial: u64,
}

/// Sleepers in order of waking; those with the same moment in order of arrival. A sleeper that
/// gives up leaves nothing behind.
#[derive(Default)]
pub(crate) struct Timers {
    sleepers: BTreeMap<TimerKey, Waker>,
    serial: u64,
}

impl Timers {
    /// Adds a sleeper.
    pub(crate) fn add(&mut self, at: Nanos, waker: Waker) -> TimerKey {
        self.serial += 1;
        let key = TimerKey { at, serial: self.serial };
        self.sleepers.insert(key, waker);
        key
    }

    /// The waker of a sleeper that has not been woken, to be replaced.
    pub(crate) fn waker_mut(&mut self, key: TimerKey) -> Option<&mut Waker> {
        self.sleepers.get_mut(&key)
    }

    /// Removes a sleeper that gives up.
    pub(crate) fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.sleepers.remove(&key)
    }

    /// Deadline of the next one.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.sleepers.first_key_value().map(|(key, _)| key.at)
    }

    /// Removes the next sleeper that is due, and returns its waker.
    pub(crate) fn pop_due(&mut self, now: Nanos) -> Option<Waker> {
        let first = self.sleepers.first_entry()?;
        (first.key().at <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_can_be_cancelled() {
        let mut timers = Timers::default();
        let waker = Waker::noop();
        timers.add(Nanos(30), waker.clone());
        let given_up = timers.add(Nanos(10), waker.clone());
        timers.add(Nanos(20), waker.clone());
        assert!(timers.remove(given_up).is_some());
        assert_eq!(timers.next(), Some(Nanos(20)));
        assert!(timers.pop_due(Nanos(19)).is_none());
        assert!(timers.pop_due(Nanos(25)).is_some());
        assert!(timers.pop_due(Nanos(25)).is_none());
        assert!(timers.pop_due(Nanos(30)).is_some());
        assert_eq!(timers.next(), None);
    }
}
