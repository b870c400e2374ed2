//! Rate limiter of background writeback. bcache behaviour.

use ubcache_env::Nanos;

use super::controller::signed;

/// Turns a rate into sleeps.
///
/// It remembers the moment at which everything let through so far is paid for. That moment stays
/// within a window around the present: pauses earn at most 2 s of free I/O, and one big I/O is paid
/// with at most 2.5 s of sleep.
#[derive(Copy, Clone, Debug, Default)]
pub struct RateLimiter {
    next: Nanos,
}

impl RateLimiter {
    /// The furthest that the limiter looks ahead.
    const AHEAD_MAX: Nanos = Nanos::from_millis(2500);
    /// The most that it lags behind.
    const BEHIND_MAX: Nanos = Nanos::from_secs(2);

    /// A limiter that owes nothing.
    pub fn new() -> Self {
        RateLimiter::default()
    }

    /// `sectors` were let through at `rate` sectors per second: how long to sleep before more may
    /// go. After the sleep ask again with 0 sectors, the rate may have changed the window.
    pub fn delay(&mut self, now: Nanos, sectors: u64, rate: u64) -> Nanos {
        let nanos = u128::from(sectors) * 1_000_000_000 / u128::from(rate.max(1));
        let cost = Nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let latest = now.after(Self::AHEAD_MAX);
        let earliest = now.since(Self::BEHIND_MAX);
        self.next = self.next.after(cost).min(latest).max(earliest);
        self.next.since(now)
    }

    /// When the next I/O may go.
    pub fn next(&self) -> Nanos {
        self.next
    }

    /// Milliseconds until then; negative if that moment has passed.
    pub fn next_ms(&self, now: Nanos) -> i64 {
        signed(self.next.since(now).as_millis()) - signed(now.since(self.next).as_millis())
    }

    /// Forgets debts and savings.
    pub fn reset(&mut self, now: Nanos) {
        self.next = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limiter_delays_match_the_rate() {
        let mut limiter = RateLimiter::new();
        let now = Nanos::from_secs(50);
        limiter.reset(now);
        assert_eq!(limiter.delay(now, 1000, 2000), Nanos::from_millis(500));
        assert_eq!(limiter.next_ms(now), 500);
        assert_eq!(limiter.delay(now, 1000, 2000), Nanos::from_secs(1));
        assert_eq!(limiter.delay(now.after(Nanos::from_secs(1)), 0, 2000), Nanos(0));
        assert_eq!(limiter.delay(now, u64::MAX, 0), Nanos::from_millis(2500), "the window ahead");
    }

    #[test]
    fn pause_credits_two_seconds_at_most() {
        let mut limiter = RateLimiter::new();
        let now = Nanos::from_secs(1000);
        assert_eq!(limiter.delay(now, 0, 1000), Nanos(0));
        assert_eq!(limiter.next_ms(now), -2000);
        assert_eq!(limiter.delay(now, 2000, 1000), Nanos(0));
        assert_eq!(limiter.delay(now, 1, 1000), Nanos::from_millis(1));
    }

    proptest! {
        /// Over a long time the sectors let through follow the rate, within the window.
        #[test]
        fn limiter_keeps_the_average_rate(passes in prop::collection::vec(1..5000_u64, 1..200),
            rate in 5000..100_000_u64) {
            let start = Nanos::from_secs(10);
            let (mut limiter, mut now) = (RateLimiter::new(), start);
            limiter.reset(now);
            for &sectors in &passes {
                let delay = limiter.delay(now, sectors, rate);
                prop_assert!(delay <= Nanos::from_millis(2500));
                now = now.after(delay);
                prop_assert_eq!(limiter.delay(now, 0, rate), Nanos(0));
            }
            let expected = passes.iter().sum::<u64>() as u128 * 1_000_000_000 / u128::from(rate);
            let took = u128::from(now.since(start).0);
            prop_assert!(took <= expected && expected - took <= passes.len() as u128);
        }
    }
}
