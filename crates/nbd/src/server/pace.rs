//! Limits on requests and bytes a second: a bucket of tokens for each.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::{Env, Nanos};

/// Time whose worth may come at once after a pause.
const BURST: Nanos = Nanos::from_millis(100);
const SECOND: u128 = 1_000_000_000;

/// Limits, each for a second.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Requests.
    pub requests: Option<u64>,
    /// Bytes of content.
    pub bytes: Option<u64>,
}

/// Pace of an export, or of a connection. Requests that have to wait go on in order of arrival, one
/// of each connection at a time.
#[derive(Debug)]
pub struct Pace {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Pace {
    /// The pace that keeps to the limits; none without any.
    pub fn new(rates: Rates) -> Option<Rc<Pace>> {
        let bucket = |rate: Option<u64>| rate.map(Bucket::new);
        let pace = Pace { requests: bucket(rates.requests), bytes: bucket(rates.bytes) };
        (rates != Rates::default()).then(|| Rc::new(pace))
    }

    /// Takes tokens for a request of so many bytes; the moment at which it may start.
    pub fn start(&self, now: Nanos, bytes: u64) -> Nanos {
        let by_requests = self.requests.as_ref().map(|bucket| bucket.take(now, 1));
        let by_bytes = self.bytes.as_ref().map(|bucket| bucket.take(now, bytes));
        by_requests.max(by_bytes).unwrap_or(now)
    }

    /// Waits until a request of so many bytes may start.
    pub(super) async fn wait<E: Env>(&self, env: &E, bytes: u64) {
        let now = env.now();
        let start = self.start(now, bytes);
        if start > now {
            env.sleep_until(start).await;
        }
    }
}

/// Tokens by the time at which the next request may start.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    next: Cell<Nanos>,
}

impl Bucket {
    fn new(rate: u64) -> Bucket {
        Bucket { rate: rate.max(1), next: Cell::new(Nanos(0)) }
    }

    /// Takes tokens; gives the time at which they are there.
    fn take(&self, now: Nanos, tokens: u64) -> Nanos {
        let start = self.next.get().max(Nanos(now.0.saturating_sub(BURST.0)));
        let span = u128::from(tokens) * SECOND / u128::from(self.rate);
        self.next.set(start.after(Nanos(u64::try_from(span).unwrap_or(u64::MAX))));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_at_the_rate_and_a_pause_saves_up_no_more_than_a_burst() {
        let bucket = Bucket::new(100);
        let after_pause = Nanos::from_secs(60);
        let starts: Vec<Nanos> = (0..30).map(|_| bucket.take(after_pause, 1)).collect();
        let at_once = starts.iter().filter(|start| **start <= after_pause).count();
        assert_eq!(at_once, 11, "100 ms of 100 a second, and the one that is due");
        assert_eq!(starts[29].since(starts[19]), Nanos::from_millis(100));
    }

    #[test]
    fn long_request_makes_the_next_wait() {
        let bucket = Bucket::new(1 << 20);
        let now = Nanos::from_secs(1);
        assert!(bucket.take(now, 32 << 20) <= now, "a request longer than a burst passes");
        assert_eq!(bucket.take(now, 1).since(now), Nanos(32_000_000_000 - BURST.0));
    }

    #[test]
    fn no_limits_are_no_pace() {
        assert!(Pace::new(Rates::default()).is_none());
        assert!(Pace::new(Rates { bytes: Some(1), ..Rates::default() }).is_some());
    }
}
