//! Congestion: a cache device that answers slowly sheds load, long runs first.
//!
//! bcache behaviour, as follows. Every counted I/O of the cache device is compared with the
//! threshold of its direction. A slow one deepens the congestion by one step per millisecond it
//! took, down to 1024 steps; a fast one takes a step back, and so does every millisecond without a
//! slow one. The depth gives a *limit*: requests of runs that are at least that long are bypassed.
//! The limit halves every 64 steps:
//!
//! ```text
//! steps  1      64     128    256   384      512      768    1024
//! limit  32 MiB 16 MiB 8 MiB  2 MiB 512 KiB  128 KiB  8 KiB  1 sector
//! ```
//!
//! A few sectors of jitter are taken off, so that streams of equal requests are shed one by one and
//! not all at once.
//!
//! Counted are the cache reads of hits, all data writes to the cache and the writes of index nodes;
//! not counted are the journal, the reads of writeback, and prio sets. The driver's clock makes its
//! "milliseconds" 5 % too long; here they are milliseconds.

use std::cell::Cell;

use ubcache_env::Nanos;

/// The deepest congestion, in steps.
const DEPTH_MAX: u64 = 1024;
/// The limit halves every so many steps.
const STEPS_PER_HALVING: u64 = 64;

/// Congestion of the cache device, by its latencies.
#[derive(Debug, Default)]
pub(crate) struct Congestion {
    /// 0 to [`DEPTH_MAX`] steps, as of the latest slow I/O, less the fast ones since.
    depth: Cell<u64>,
    last_slow: Cell<Nanos>,
}

impl Congestion {
    /// A device that is not congested.
    #[cfg(test)]
    fn new() -> Self {
        Congestion::default()
    }

    /// Takes note of an I/O that took so long. `threshold_us` is the one of its direction; 0: not
    /// counted.
    pub fn completed(&self, now: Nanos, took: Nanos, threshold_us: u64) {
        if threshold_us == 0 {
            return;
        }
        if took.as_micros() > threshold_us {
            self.last_slow.set(now);
            self.depth.set(self.depth.get().saturating_add(took.as_millis()).min(DEPTH_MAX));
        } else {
            self.depth.set(self.depth.get().saturating_sub(1));
        }
    }

    /// The run length in sectors from which on requests should be bypassed; 0: not congested,
    /// bypass none. `random` makes the jitter.
    pub fn limit(
        &self,
        now: Nanos,
        read_threshold_us: u64,
        write_threshold_us: u64,
        random: u32,
    ) -> u64 {
        if (read_threshold_us == 0 && write_threshold_us == 0) || now < self.last_slow.get() {
            return 0;
        }
        let depth = self.depth.get().saturating_sub(now.since(self.last_slow.get()).as_millis());
        if depth == 0 {
            return 0;
        }
        let jitter = u64::from(random.count_ones());
        unjittered(DEPTH_MAX - depth).saturating_sub(jitter).max(1)
    }
}

/// The limit for a number of steps above the bottom (0 to 1023): 2^(steps/64), with straight lines
/// between the powers of two; 0 at the bottom.
fn unjittered(steps: u64) -> u64 {
    if steps == 0 {
        return 0;
    }
    let (doublings, rest) = (steps / STEPS_PER_HALVING, steps % STEPS_PER_HALVING);
    ((STEPS_PER_HALVING + rest) << doublings) / STEPS_PER_HALVING
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A device whose I/O at second 1 took `ms` milliseconds.
    fn slow_by(ms: u64) -> Congestion {
        let congestion = Congestion::new();
        congestion.completed(Nanos::from_secs(1), Nanos::from_millis(ms), 2000);
        congestion
    }

    #[test]
    fn fast_io_is_no_congestion() {
        let congestion = Congestion::new();
        assert_eq!(congestion.limit(Nanos(0), 2000, 20_000, 0), 0);
        congestion.completed(Nanos(0), Nanos::from_micros(2000), 2000);
        assert_eq!(
            congestion.limit(Nanos(0), 2000, 20_000, 0),
            0,
            "the threshold itself is not slow"
        );
        congestion.completed(Nanos(0), Nanos::from_secs(1), 0);
        assert_eq!(congestion.limit(Nanos(0), 2000, 20_000, 0), 0, "a direction may be off");
    }

    #[test]
    fn congestion_limit_falls_with_depth() {
        for (depth, sectors) in [
            (4, 65024 - 3 * 512),
            (64, 32768),
            (128, 16384),
            (256, 4096),
            (384, 1024),
            (512, 256),
            (768, 16),
            (1024, 1),
            (5000, 1),
        ] {
            let limit = slow_by(depth).limit(Nanos::from_secs(1), 2000, 0, 0);
            assert_eq!(limit, sectors, "at depth {depth}");
        }
        assert_eq!(unjittered(1023), 65024);
    }

    #[test]
    fn congestion_recovers_by_time_and_by_fast_io() {
        let congestion = slow_by(100);
        let one = Nanos::from_secs(1);
        assert_ne!(congestion.limit(one.after(Nanos::from_millis(99)), 2000, 0, 0), 0);
        assert_eq!(congestion.limit(one.after(Nanos::from_millis(100)), 2000, 0, 0), 0);
        for _ in 0..100 {
            assert_ne!(congestion.limit(one, 2000, 0, 0), 0);
            congestion.completed(one, Nanos::from_micros(10), 20_000);
        }
        assert_eq!(congestion.limit(one, 2000, 0, 0), 0);
    }

    #[test]
    fn congestion_is_off_when_both_thresholds_are_zero() {
        let congestion = slow_by(512);
        assert_eq!(congestion.limit(Nanos::from_secs(1), 0, 0, 0), 0);
        assert_ne!(congestion.limit(Nanos::from_secs(1), 0, 1, 0), 0);
    }

    #[test]
    fn jitter_lowers_the_limit_but_not_to_zero() {
        let now = Nanos::from_secs(1);
        assert_eq!(slow_by(512).limit(now, 2000, 0, u32::MAX), 224);
        assert_eq!(slow_by(512).limit(now, 2000, 0, 0b1011), 253);
        assert_eq!(slow_by(768).limit(now, 2000, 0, u32::MAX), 1);
    }

    proptest! {
        /// bcache's own way to say it: a number from −1024 to 0 that rises.
        #[test]
        fn congestion_agrees_with_the_signed_formulation(
            ios in prop::collection::vec((0..50_000_u64, 0..400_000_u64), 0..200),
            later_us in 0..2_000_000_u64,
            random in any::<u32>(),
        ) {
            let (congestion, mut c, mut last_us, mut now_us) = (Congestion::new(), 0_i64,
                0_i64, 0_u64);
            for (pause_us, took_us) in ios {
                now_us += pause_us;
                congestion.completed(Nanos::from_micros(now_us), Nanos::from_micros(took_us),
                    20_000);
                if took_us > 20_000 {
                    last_us = now_us as i64;
                    c -= (took_us as i64 / 1000).min(1024 + c);
                } else if c < 0 {
                    c += 1;
                }
            }
            now_us += later_us;
            let mut i = (now_us as i64 - last_us) / 1000 + c;
            let expected = if i >= 0 { 0 } else {
                i += 1024;
                let x = if i > 0 { ((64 + i % 64) << (i / 64)) >> 6 } else { i };
                (x - i64::from(random.count_ones())).max(1)
            };
            prop_assert_eq!(congestion.limit(Nanos::from_micros(now_us), 0, 20_000, random),
                expected as u64);
        }

        #[test]
        fn less_depth_is_a_higher_limit(steps in 0..1023_u64) {
            prop_assert!(unjittered(steps) <= unjittered(steps + 1));
        }
    }
}
