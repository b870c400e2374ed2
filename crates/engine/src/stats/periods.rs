//! Statistics by period, as bcache has them: sums that decay.
//!
//! Every 300/22 s a tick takes what was counted since the one before into three sums. Then the sum
//! of five minutes loses 1/32 of itself at every tick, that of the hour at every twelfth and that
//! of the day at every 288th, so that each is half of what it was after its period. The total does
//! not decay: it is what was counted since the start, or since it was cleared.
//!
//! No timer belongs to this: background work calls `Periods::advance` every few seconds.

use std::cell::Cell;

use ubcache_env::Nanos;
use ubcache_format::SECTOR_BYTES;

use crate::settings::human;

/// Time between two ticks.
const TICK: Nanos = Nanos(300_000_000_000 / 22);
/// Fraction bits of a sum.
const SCALE: u32 = 16;
/// Ticks between two decays, for each sum that decays.
const DECAYS: [u64; 3] = [1, 12, 288];
/// A sum loses one part in so many.
const DECAY: u64 = 32;
/// Counters of a period.
const COUNTERS: usize = 6;

/// Period of a sum.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Period {
    /// Half of it is of the last five minutes.
    FiveMinutes,
    /// Half of it is of the last hour.
    Hour,
    /// Half of it is of the last day.
    Day,
    /// Since the start of the daemon, or since `clear_stats`.
    Total,
}

impl Period {
    /// All periods.
    pub const ALL: [Period; 4] = [Period::FiveMinutes, Period::Hour, Period::Day, Period::Total];

    /// The directory of bcache's sysfs.
    pub fn directory(self) -> &'static str {
        match self {
            Period::FiveMinutes => "stats_five_minute",
            Period::Hour => "stats_hour",
            Period::Day => "stats_day",
            Period::Total => "stats_total",
        }
    }
}

/// Counters of a period.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct PeriodCounters {
    /// Reads found in the cache as a whole.
    pub cache_hits: u64,
    /// Reads with at least one sector not in the cache.
    pub cache_misses: u64,
    /// Bypassing reads found in the cache as a whole.
    pub cache_bypass_hits: u64,
    /// Bypassing reads with at least one sector not in the cache.
    pub cache_bypass_misses: u64,
    /// Fills of which nothing could be published.
    pub cache_miss_collisions: u64,
    /// Sectors of requests that the policy decided to bypass.
    pub bypassed_sectors: u64,
}

impl PeriodCounters {
    /// The names of bcache's files.
    pub const NAMES: [&str; 7] = [
        "cache_hits",
        "cache_misses",
        "cache_hit_ratio",
        "cache_bypass_hits",
        "cache_bypass_misses",
        "cache_miss_collisions",
        "bypassed",
    ];

    fn numbers(self) -> [u64; COUNTERS] {
        [
            self.cache_hits,
            self.cache_misses,
            self.cache_bypass_hits,
            self.cache_bypass_misses,
            self.cache_miss_collisions,
            self.bypassed_sectors,
        ]
    }

    fn of(numbers: [u64; COUNTERS]) -> PeriodCounters {
        let [hits, misses, bypass_hits, bypass_misses, collisions, sectors] = numbers;
        PeriodCounters {
            cache_hits: hits,
            cache_misses: misses,
            cache_bypass_hits: bypass_hits,
            cache_bypass_misses: bypass_misses,
            cache_miss_collisions: collisions,
            bypassed_sectors: sectors,
        }
    }

    /// Hits of all reads that do not bypass, in whole percent; 0 if there are none.
    pub fn cache_hit_ratio(&self) -> u64 {
        let all = self.cache_hits + self.cache_misses;
        (self.cache_hits * 100).checked_div(all).unwrap_or(0)
    }

    /// These and others together.
    #[must_use]
    pub fn plus(self, other: PeriodCounters) -> PeriodCounters {
        PeriodCounters::of(combine(self.numbers(), other.numbers(), |a, b| a + b))
    }

    /// The content of a file of bcache's sysfs.
    pub fn file(&self, name: &str) -> Option<String> {
        Some(match name {
            "cache_hits" => self.cache_hits.to_string(),
            "cache_misses" => self.cache_misses.to_string(),
            "cache_hit_ratio" => self.cache_hit_ratio().to_string(),
            "cache_bypass_hits" => self.cache_bypass_hits.to_string(),
            "cache_bypass_misses" => self.cache_bypass_misses.to_string(),
            "cache_miss_collisions" => self.cache_miss_collisions.to_string(),
            "bypassed" => human((self.bypassed_sectors * SECTOR_BYTES) as i64),
            _ => return None,
        })
    }
}

/// The counters of all periods, in the order of [`Period::ALL`].
pub type PeriodStatus = [PeriodCounters; Period::ALL.len()];

/// The value of an attribute like `stats_hour/cache_hits`.
pub(crate) fn attribute(name: &str, status: impl FnOnce() -> PeriodStatus) -> Option<String> {
    let (directory, file) = name.split_once('/')?;
    let at = Period::ALL.iter().position(|period| period.directory() == directory)?;
    PeriodCounters::NAMES.contains(&file).then(|| status()[at].file(file))?
}

fn combine(
    a: [u64; COUNTERS],
    b: [u64; COUNTERS],
    with: impl Fn(u64, u64) -> u64,
) -> [u64; COUNTERS] {
    std::array::from_fn(|index| with(a[index], b[index]))
}

/// The sums of a volume. Counters are given to it; it keeps none of its own.
#[derive(Clone, Debug)]
pub(crate) struct Periods {
    /// Counters at the latest tick, and the moment of it.
    collected: Cell<[u64; COUNTERS]>,
    ticked_at: Cell<Nanos>,
    ticks: Cell<u64>,
    /// Sums that decay, with `SCALE` fraction bits.
    sums: Cell<[[u64; COUNTERS]; DECAYS.len()]>,
    /// Counters when the total was cleared.
    cleared: Cell<[u64; COUNTERS]>,
}

impl Periods {
    /// Empty sums. The first tick is one period of ticks away.
    pub fn new(now: Nanos) -> Periods {
        Periods {
            collected: Cell::default(),
            ticked_at: Cell::new(now),
            ticks: Cell::new(0),
            sums: Cell::default(),
            cleared: Cell::default(),
        }
    }

    /// Returns true if a tick is due.
    pub fn is_due(&self, now: Nanos) -> bool {
        now.since(self.ticked_at.get()) >= TICK
    }

    /// Makes the ticks that are due.
    pub fn advance(&self, now: Nanos, counters: PeriodCounters) {
        let due = now.since(self.ticked_at.get()).0 / TICK.0;
        if due == 0 {
            return;
        }
        self.ticked_at.set(self.ticked_at.get().after(Nanos(due * TICK.0)));
        let numbers = counters.numbers();
        let new = combine(numbers, self.collected.get(), u64::saturating_sub);
        self.collected.set(numbers);
        let before = self.ticks.get();
        self.ticks.set(before + due);
        let mut sums = self.sums.get();
        for (sum, every) in sums.iter_mut().zip(DECAYS) {
            *sum = combine(*sum, new, |sum, new| sum.saturating_add(new << SCALE));
            let decays = (before + due) / every - before / every;
            // After so many nothing is left of any sum.
            for _ in 0..decays.min(2048) {
                *sum = sum.map(|sum| sum / DECAY * (DECAY - 1) + sum % DECAY * (DECAY - 1) / DECAY);
            }
        }
        self.sums.set(sums);
    }

    /// The counters of each period.
    pub fn status(&self, now: Nanos, counters: PeriodCounters) -> PeriodStatus {
        self.advance(now, counters);
        let [five, hour, day] =
            self.sums.get().map(|sum| PeriodCounters::of(sum.map(|number| number >> SCALE)));
        let total = combine(counters.numbers(), self.cleared.get(), u64::saturating_sub);
        [five, hour, day, PeriodCounters::of(total)]
    }

    /// The total begins anew; the others go on.
    pub fn clear(&self, counters: PeriodCounters) {
        self.cleared.set(counters.numbers());
    }

    /// Goes on from the sums of the volume before this one.
    pub fn continue_from(&self, former: &Periods) {
        self.collected.set(former.collected.get());
        self.ticked_at.set(former.ticked_at.get());
        self.ticks.set(former.ticks.get());
        self.sums.set(former.sums.get());
        self.cleared.set(former.cleared.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(cache_hits: u64) -> PeriodCounters {
        PeriodCounters { cache_hits, ..PeriodCounters::default() }
    }

    fn ticks(count: u64) -> Nanos {
        Nanos(TICK.0 * count)
    }

    /// Each sum is half of what it was after its period, as with bcache.
    #[test]
    fn sums_halve_in_their_periods() {
        for (index, period) in [300, 3600, 86_400].into_iter().enumerate() {
            let periods = Periods::new(Nanos(0));
            let counters = hits(1_000_000);
            // Counts are seen from the next tick on.
            assert_eq!(periods.status(Nanos(TICK.0 - 1), counters)[index], hits(0));
            let first = periods.status(ticks(1), counters)[index].cache_hits;
            assert!((968_000..=1_000_000).contains(&first), "{first}");
            let later = periods.status(Nanos::from_secs(period).after(ticks(1)), counters);
            let half = later[index].cache_hits;
            assert!(half.abs_diff(first / 2) < first / 50, "{period}: {first}, {half}");
            assert_eq!(later[3], counters, "the total does not decay");
        }
    }

    #[test]
    fn clearing_concerns_the_total_only() {
        let periods = Periods::new(Nanos(0));
        periods.advance(ticks(1), hits(1000));
        periods.clear(hits(1000));
        let status = periods.status(ticks(1), hits(1010));
        assert_eq!(status[3], hits(10));
        assert_eq!(status[1], hits(1000));
    }

    /// Whoever looks seldom sees what somebody sees who looks at every tick.
    #[test]
    fn late_ticks_are_made_up_for() {
        let (often, seldom) = (Periods::new(Nanos(0)), Periods::new(Nanos(0)));
        for tick in 1..=700 {
            often.advance(ticks(tick), hits(4096));
        }
        seldom.advance(ticks(1), hits(4096));
        let now = ticks(700);
        assert_eq!(seldom.status(now, hits(4096)), often.status(now, hits(4096)));
        let end = Nanos(u64::MAX);
        assert_eq!(seldom.status(end, hits(4096))[0], hits(0));
    }

    #[test]
    fn ratios_are_whole_percents() {
        let counters = PeriodCounters { cache_hits: 2, cache_misses: 1, ..hits(0) };
        assert_eq!(counters.cache_hit_ratio(), 66);
        assert_eq!(hits(0).cache_hit_ratio(), 0);
        assert_eq!(attribute("stats_day/cache_hits", || [hits(3); 4]).as_deref(), Some("3"));
        assert_eq!(attribute("stats_day/bypassed", || [hits(3); 4]).as_deref(), Some("0.0k"));
        for name in ["stats_week/cache_hits", "stats_day/cache_hit", "stats_day", "cache_hits"] {
            assert_eq!(attribute(name, || [hits(3); 4]), None, "{name}");
        }
    }
}
