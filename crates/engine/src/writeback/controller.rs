//! Speed of background writeback: target and rate controller.
//!
//! bcache behaviour. Each volume has a *target* of dirty sectors, its share of `writeback_percent`
//! of the cache. Every `writeback_rate_update_seconds` the controller turns the distance from the
//! target into a rate: a proportional term, an integral term for what remains, and a fragmentation
//! term that takes over when little dirty data is spread over many buckets of a filling cache. A
//! set that has been idle for a while ([`super::idle`]) is drained at full speed.
//!
//! The driver's arithmetic wraps or narrows to 32 bits in places where this one saturates.
//! Divisions truncate towards zero, as there. In the driver any request ends a full-speed drain and
//! leaves it at 1 sector/s until the next update; here [`RateController::leave_idle`] goes back to
//! the last computed rate.

use ubcache_env::Nanos;
use ubcache_format::SECTOR_BYTES;

use crate::settings::human;

/// The rate before the first update, in sectors per second.
pub const RATE_INITIAL: u64 = 1024;
/// The highest rate that the controller computes.
pub const RATE_MAX: u64 = 1_000_000_000;
/// The rate of a set that is idle: as good as unlimited.
pub const RATE_IDLE: u64 = i32::MAX as u64;

/// Thresholds of the fragmentation term, in percent of buckets in use: it begins at the first, and
/// weighs more from each of the others on.
const FRAGMENT_LOW_PERCENT: u64 = 50;
const FRAGMENT_MID_PERCENT: u64 = 57;
const FRAGMENT_HIGH_PERCENT: u64 = 64;
/// Fragmentation counts if the used buckets hold more than this many times the dirty sectors, with
/// the quotient rounded down: the dirty data would fit in a quarter of them.
const FRAGMENT_MIN: u64 = 3;
/// Writeback keeps up with the rate if the limiter's next moment is at most this far in the past.
const KEEPING_UP_SLACK: Nanos = Nanos::from_millis(1);

/// The dirty sectors that a volume should have: its share, by size of the backing devices, of
/// `percent` of what flash-only volumes leave of the cache.
pub fn target(
    cache_sectors: u64,
    flash_dirty: u64,
    percent: u64,
    backing_sectors: u64,
    all_backing_sectors: u64,
) -> u64 {
    const SHARE_BITS: u32 = 14;
    let cache = u128::from(cache_sectors.saturating_sub(flash_dirty));
    let share =
        (u128::from(backing_sectors) << SHARE_BITS) / u128::from(all_backing_sectors.max(1));
    let target = ((cache * u128::from(percent) / 100) * share.max(1)) >> SHARE_BITS;
    u64::try_from(target).unwrap_or(u64::MAX)
}

/// Input of the controller; attributes carry the names of `VolumeSettings`.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ControllerInput {
    /// The present moment.
    pub now: Nanos,
    /// [`RateLimiter::next`]: when the limiter lets the next I/O go.
    pub next_io: Nanos,
    /// [`IdleCounter::tick`] said that the set is idle (only if `idle_max_writeback_rate`).
    pub idle: bool,
    /// Dirty sectors of the volume.
    pub dirty: u64,
    /// Result of [`target`].
    pub target: u64,
    /// Buckets that are not available, in percent.
    pub in_use_percent: u64,
    /// Buckets that are not available.
    pub used_buckets: u64,
    /// Sectors in a bucket.
    pub bucket_sectors: u64,
    /// `writeback_percent`; at 0 there is nothing to control.
    pub percent: u64,
    /// `writeback_rate_update_seconds`.
    pub update_seconds: u64,
    /// `writeback_rate_p_term_inverse`.
    pub p_term_inverse: u64,
    /// `writeback_rate_i_term_inverse`.
    pub i_term_inverse: u64,
    /// `writeback_rate_minimum`.
    pub rate_minimum: u64,
    /// `writeback_consider_fragment`.
    pub consider_fragment: bool,
    /// `writeback_rate_fp_term_low`.
    pub fp_term_low: u64,
    /// `writeback_rate_fp_term_mid`.
    pub fp_term_mid: u64,
    /// `writeback_rate_fp_term_high`.
    pub fp_term_high: u64,
}

/// Values of the attribute `writeback_rate_debug`; all in sectors or sectors per second.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RateDebug {
    /// The rate in force.
    pub rate: u64,
    /// Dirty sectors at the last update.
    pub dirty: u64,
    /// Their target at the last update.
    pub target: u64,
    /// The proportional (or fragmentation) term.
    pub proportional: i64,
    /// The integral term, scaled.
    pub integral: i64,
    /// By how much the last update changed the rate.
    pub change: i64,
}

impl RateDebug {
    /// The seven lines of the attribute, each with its end of line.
    pub fn text(&self, next_io_ms: i64) -> String {
        let bytes = |sectors: i64| human(sectors.saturating_mul(SECTOR_BYTES as i64));
        let unsigned = |sectors: u64| bytes(i64::try_from(sectors).unwrap_or(i64::MAX));
        format!(
            "rate:\t\t{}/sec\ndirty:\t\t{}\ntarget:\t\t{}\nproportional:\t{}\nintegral:\t{}\n\
             change:\t\t{}/sec\n\
             next io:\t{next_io_ms}ms\n",
            unsigned(self.rate),
            unsigned(self.dirty),
            unsigned(self.target),
            bytes(self.proportional),
            bytes(self.integral),
            bytes(self.change),
        )
    }
}

/// The rate controller of one volume.
#[derive(Clone, Debug)]
pub struct RateController {
    /// Sum of error × seconds.
    integral: i64,
    /// The last rate that came from the terms, to go back to when idleness ends.
    computed: u64,
    debug: RateDebug,
}

impl Default for RateController {
    fn default() -> Self {
        RateController::new()
    }
}

impl RateController {
    /// A controller before its first update, at [`RATE_INITIAL`].
    pub fn new() -> Self {
        let debug = RateDebug { rate: RATE_INITIAL, ..RateDebug::default() };
        RateController { integral: 0, computed: RATE_INITIAL, debug }
    }

    /// The rate in force, in sectors per second.
    pub fn rate(&self) -> u64 {
        self.debug.rate
    }

    /// The numbers of the last update.
    pub fn debug(&self) -> RateDebug {
        self.debug
    }

    /// Sets the rate by hand, within 1 to 2³¹−1. It lasts until the next update, or,
    /// with `writeback_percent` 0, until it is set again.
    pub fn set_rate(&mut self, rate: u64) {
        self.computed = rate.clamp(1, RATE_IDLE);
        self.debug.rate = self.computed;
    }

    /// A request has arrived: a drain at full speed goes back to the rate before it.
    pub fn leave_idle(&mut self) {
        if self.debug.rate == RATE_IDLE {
            self.debug.rate = self.computed;
        }
    }

    /// The periodic update; returns the rate in sectors per second. Without dirty data, or with
    /// `writeback_percent` 0, nothing changes.
    pub fn update(&mut self, input: &ControllerInput) -> u64 {
        if input.dirty == 0 || input.percent == 0 {
            return self.debug.rate;
        }
        if input.idle {
            self.debug = RateDebug {
                rate: RATE_IDLE,
                dirty: input.dirty,
                target: self.debug.target,
                ..RateDebug::default()
            };
            return RATE_IDLE;
        }
        let error = signed(input.dirty).saturating_sub(signed(input.target));
        let proportional = proportional(input, error);
        let keeping_up = input.now < input.next_io.after(KEEPING_UP_SLACK);
        if (error < 0 && self.integral > 0) || (error > 0 && keeping_up) {
            self.integral =
                self.integral.saturating_add(error.saturating_mul(signed(input.update_seconds)));
        }
        let integral = self.integral / signed(input.i_term_inverse.max(1));
        let minimum = signed(input.rate_minimum.clamp(1, RATE_MAX));
        let rate = proportional.saturating_add(integral).clamp(minimum, signed(RATE_MAX)) as u64;
        self.debug = RateDebug {
            rate,
            dirty: input.dirty,
            target: input.target,
            proportional,
            integral,
            change: signed(rate) - signed(self.debug.rate),
        };
        self.computed = rate;
        rate
    }
}

/// The proportional term, or the fragmentation term where that is the higher one.
fn proportional(input: &ControllerInput, error: i64) -> i64 {
    let in_use = input.in_use_percent;
    let proportional = error / signed(input.p_term_inverse.max(1));
    if !input.consider_fragment || in_use <= FRAGMENT_LOW_PERCENT || input.used_buckets == 0 {
        return proportional;
    }
    let (weight, from) = if in_use <= FRAGMENT_MID_PERCENT {
        (input.fp_term_low, FRAGMENT_LOW_PERCENT)
    } else if in_use <= FRAGMENT_HIGH_PERCENT {
        (input.fp_term_mid, FRAGMENT_MID_PERCENT)
    } else {
        (input.fp_term_high, FRAGMENT_HIGH_PERCENT)
    };
    let term = weight.saturating_mul(in_use - from);
    let fragment = input.used_buckets.saturating_mul(input.bucket_sectors) / input.dirty;
    let by_fragment = signed((input.dirty / input.used_buckets).saturating_mul(term));
    if fragment > FRAGMENT_MIN { proportional.max(by_fragment) } else { proportional }
}

/// A count as a signed number; saturates.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 21;

    fn input(dirty: u64, target: u64) -> ControllerInput {
        ControllerInput {
            now: Nanos::from_secs(100),
            next_io: Nanos::from_secs(100),
            idle: false,
            dirty,
            target,
            in_use_percent: 40,
            used_buckets: 400,
            bucket_sectors: 1024,
            percent: 10,
            update_seconds: 5,
            p_term_inverse: 40,
            i_term_inverse: 10_000,
            rate_minimum: 8,
            consider_fragment: true,
            fp_term_low: 1,
            fp_term_mid: 10,
            fp_term_high: 1000,
        }
    }

    #[test]
    fn target_is_shared_in_proportion_to_device_size() {
        assert_eq!(target(100 * GIB, 0, 10, 500 * GIB, 500 * GIB), 10 * GIB);
        assert_eq!(target(100 * GIB, 20 * GIB, 10, 250 * GIB, 500 * GIB), 4 * GIB);
        assert_eq!(target(100 * GIB, 0, 10, 1, 1 << 40), (10 * GIB) >> 14, "the smallest share");
        assert_eq!(target(10, 20, 10, 1, 1), 0);
        assert_eq!(target(10, 0, 10, 0, 0), 0);
        assert_eq!(target(u64::MAX, 0, 100, u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn far_above_target_both_terms_raise_the_rate() {
        let mut controller = RateController::new();
        let rate = controller.update(&input(500_000, 100_000));
        let debug = controller.debug();
        assert_eq!((debug.proportional, debug.integral), (10_000, 200));
        assert_eq!((rate, debug.change), (10_200, 10_200 - 1024));
        assert_eq!(controller.update(&input(500_000, 100_000)), 10_400, "the integral grows");
    }

    #[test]
    fn below_target_rate_is_minimum_and_integral_stops_at_zero() {
        let mut controller = RateController::new();
        controller.update(&input(500_000, 100_000));
        assert_eq!(controller.update(&input(60_000, 100_000)), 8);
        assert_eq!(controller.debug().proportional, -1000);
        assert_eq!(controller.debug().integral, 180);
        for _ in 0..100 {
            controller.update(&input(60_000, 100_000));
        }
        assert_eq!(controller.debug().integral, 0, "not below zero while below the target");
    }

    /// A disk that can't follow must not wind up the integral.
    #[test]
    fn integral_is_frozen_while_the_limiter_lags() {
        let mut controller = RateController::new();
        let late =
            ControllerInput { next_io: Nanos::from_millis(99_999), ..input(500_000, 100_000) };
        controller.update(&late);
        assert_eq!(controller.debug().integral, 0);
    }

    #[test]
    fn the_rate_stays_within_its_limits() {
        let mut controller = RateController::new();
        let mut fast = ControllerInput { p_term_inverse: 1, ..input(u64::MAX, 0) };
        assert_eq!(controller.update(&fast), RATE_MAX);
        fast.rate_minimum = 77;
        fast.target = u64::MAX;
        fast.dirty = 1;
        fast.i_term_inverse = u64::MAX;
        assert_eq!(controller.update(&fast), 77);
    }

    #[test]
    fn fragmentation_raises_the_rate_of_a_full_cache() {
        for (in_use, fragmented) in
            [(50, false), (51, true), (57, true), (58, true), (64, true), (65, true)]
        {
            let mut input = input(100_000, 1_000_000);
            (input.in_use_percent, input.used_buckets) = (in_use, 1000);
            let term = match in_use {
                ..=57 => in_use - 50,
                58..=64 => (in_use - 57) * 10,
                _ => (in_use - 64) * 1000,
            };
            let mut controller = RateController::new();
            controller.update(&input);
            let expected = if fragmented { 100 * term as i64 } else { -900_000 / 40 };
            assert_eq!(controller.debug().proportional, expected, "at {in_use} %");
            input.consider_fragment = false;
            controller.update(&input);
            assert_eq!(controller.debug().proportional, -900_000 / 40);
        }
        let mut dense = input(300_000, 1_000_000);
        (dense.in_use_percent, dense.used_buckets) = (90, 1000);
        let mut controller = RateController::new();
        controller.update(&dense);
        assert_eq!(controller.debug().proportional, -700_000 / 40, "1 of 3.4 is dense enough");
    }

    #[test]
    fn rate_is_unchanged_without_dirty_data_or_a_percentage() {
        let mut controller = RateController::new();
        assert_eq!(controller.update(&input(0, 100)), RATE_INITIAL);
        assert_eq!(
            controller.update(&ControllerInput { percent: 0, ..input(10_000, 100) }),
            RATE_INITIAL
        );
        controller.set_rate(0);
        assert_eq!(controller.rate(), 1);
        controller.set_rate(u64::MAX);
        assert_eq!(controller.rate(), RATE_IDLE);
    }

    #[test]
    fn idle_rate_is_maximum_and_the_former_rate_returns() {
        let mut controller = RateController::new();
        let rate = controller.update(&input(500_000, 100_000));
        let idle = ControllerInput { idle: true, target: 5, ..input(400_000, 100_000) };
        assert_eq!(controller.update(&idle), RATE_IDLE);
        assert_eq!(
            controller.debug(),
            RateDebug { rate: RATE_IDLE, dirty: 400_000, target: 100_000, ..RateDebug::default() }
        );
        controller.leave_idle();
        assert_eq!(controller.rate(), rate);
        controller.leave_idle();
        assert_eq!(controller.rate(), rate);
    }

    #[test]
    fn debug_text_equals_that_of_sysfs() {
        let debug = RateDebug {
            rate: 8,
            dirty: 2_516_582,
            target: 10 * GIB,
            proportional: -450_560,
            integral: 0,
            change: 0,
        };
        assert_eq!(
            debug.text(-80),
            "rate:\t\t4.0k/sec\ndirty:\t\t1.1G\ntarget:\t\t10.0G\nproportional:\t-220.0M\n\
             integral:\t0.0k\n\
             change:\t\t0.0k/sec\nnext io:\t-80ms\n"
        );
    }

    proptest! {
        #[test]
        fn rate_stays_in_range_for_any_input(
            numbers: [u64; 13], idle: bool, consider_fragment: bool,
        ) {
            let [now, next_io, dirty, target, in_use_percent, used_buckets, bucket_sectors,
            update_seconds,
                p_term_inverse, i_term_inverse, rate_minimum, fp_term_low, fp_term_high] = numbers;
            let input = ControllerInput {
                now: Nanos(now), next_io: Nanos(next_io), idle, dirty, target, in_use_percent,
                    used_buckets,
                bucket_sectors, percent: 10, update_seconds, p_term_inverse, i_term_inverse,
                rate_minimum,
                consider_fragment, fp_term_low, fp_term_mid: fp_term_low, fp_term_high,
            };
            let mut controller = RateController::new();
            for _ in 0..3 {
                let rate = controller.update(&input);
                prop_assert!((1..=RATE_MAX).contains(&rate) || rate == RATE_IDLE);
                prop_assert_eq!(controller.debug().text(0).lines().count(), 7);
            }
        }
    }
}
