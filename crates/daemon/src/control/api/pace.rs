//! The pace of requests: whoever hammers the control API waits here, and not at the cost of the
//! clients of volumes.
//!
//! Requests have a rate, and a number of them may come at once. A report costs more time of a set's
//! thread the more volumes there are: such a request pays for it, so that reports never take more
//! than a hundredth of that time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Time between two requests, in the long run.
const INTERVAL: Duration = Duration::from_millis(10);
/// Requests of so long a time may come at once.
const BURST: Duration = Duration::from_secs(1);
/// A request that took time on a set's thread is paid for with so many times of it.
const PRICE: u32 = 100;
/// No request costs more: a thread that was interrupted looks slow.
const PRICE_MAX: Duration = Duration::from_millis(500);

/// The time at which the next request has its turn. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pace(Arc<Mutex<Instant>>);

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        let next = now.checked_sub(BURST).unwrap_or(now);
        Pace(Arc::new(Mutex::new(next)))
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        sleep_until(self.take(Instant::now())).await;
    }

    fn take(&self, now: Instant) -> Instant {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = (*next).max(earliest);
        *next = turn + INTERVAL;
        turn
    }

    /// A request took so long on a set's thread.
    pub(super) fn charge(&self, took: Duration) {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *next += (took * PRICE).min(PRICE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_when_too_many_have_come_and_when_they_cost_much() {
        let start = Instant::now() + BURST;
        let pace = Pace::new(start);
        let at_once = (0..).take_while(|_| pace.take(start) <= start).count();
        assert_eq!(at_once, 101);
        assert_eq!(pace.take(start), start + 2 * INTERVAL);
        let later = start + 10 * BURST;
        let at_once = (0..).take_while(|_| pace.take(later) <= later).count();
        assert_eq!(at_once, 101, "no more of them for a long pause");
        let much_later = start + 20 * BURST;
        assert!(pace.take(much_later) <= much_later);
        for _ in 0..2 {
            pace.charge(Duration::from_secs(1));
        }
        pace.charge(Duration::from_millis(1));
        assert_eq!(pace.take(much_later), much_later + INTERVAL + Duration::from_millis(100));
    }
}
