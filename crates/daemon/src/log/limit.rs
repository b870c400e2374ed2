//! Limit of the lines from one place of the code: a client that fails again and again does not
//! fill a disk with its failures.
//!
//! Thirty lines a minute from each place, then a count of the others. Changes of state
//! ([`STATE`]) and lines that somebody asked for (debug, trace) have no limit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::journald::THREAD_OF_SET;

/// Target of lines that are never suppressed: changes of the state of a set, a volume or a device.
/// No client can provoke one of them at will.
pub const STATE: &str = "ubcache::state";

/// Lines from one place in one window.
const LINES: u32 = 30;
/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(60);

/// See the module. Clones share their counts.
#[derive(Clone, Default)]
pub struct Limit {
    places: Arc<Mutex<BTreeMap<Source, Place>>>,
}

/// A place of the code, and the set for which it logs: one set does not silence another.
type Source = (usize, Option<String>);

struct Place {
    /// Begin of the window.
    since: Instant,
    lines: u32,
    suppressed: u64,
    /// Message of the first line that was suppressed.
    message: String,
}

/// Lines of one place that were suppressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suppressed {
    /// Number of lines.
    pub lines: u64,
    /// Their message.
    pub message: String,
}

impl Limit {
    /// Counts a line; false: it is one too many.
    fn admits(&self, place: Source, now: Instant, message: impl FnOnce() -> String) -> bool {
        let mut places = self.places();
        let place = places.entry(place).or_insert_with(|| Place {
            since: now,
            lines: 0,
            suppressed: 0,
            message: String::new(),
        });
        if place.suppressed == 0 && now.duration_since(place.since) >= WINDOW {
            (place.since, place.lines) = (now, 0);
        }
        if place.lines < LINES {
            place.lines += 1;
            return true;
        }
        if place.suppressed == 0 {
            place.message = message();
        }
        place.suppressed += 1;
        false
    }

    /// Takes the counts of the windows that have ended, or of all.
    pub fn take(&self, now: Instant, all: bool) -> Vec<Suppressed> {
        let mut places = self.places();
        let ended = places.values_mut().filter(|place| {
            place.suppressed > 0 && (all || now.duration_since(place.since) >= WINDOW)
        });
        ended
            .map(|place| {
                let lines = std::mem::take(&mut place.suppressed);
                (place.since, place.lines) = (now, 0);
                Suppressed { lines, message: std::mem::take(&mut place.message) }
            })
            .collect()
    }

    /// Time until a window ends in which lines were suppressed.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let places = self.places();
        let waiting = places.values().filter(|place| place.suppressed > 0);
        waiting.map(|place| WINDOW.saturating_sub(now.duration_since(place.since))).min()
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Source, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number for a place of the code: the address of what describes it.
fn number(place: &Identifier) -> usize {
    std::ptr::from_ref(place.0).cast::<()>().addr()
}

// A layer of its own, not the filter of another layer: a per-layer filter that refuses an event
// keeps its verdict for the next one (tracing-subscriber 0.3.23), which is lost then.
impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == STATE {
            return true;
        }
        let message = || {
            let mut message = Message::default();
            event.record(&mut message);
            message.0
        };
        let thread = std::thread::current();
        let set = thread.name().filter(|name| name.starts_with(THREAD_OF_SET)).map(str::to_owned);
        self.admits((number(&metadata.callsite()), set), Instant::now(), message)
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_lines_a_minute_of_one_place_are_logged_and_the_others_counted() {
        let (limit, start) = (Limit::default(), Instant::now());
        let line = |place, now| limit.admits((place, None), now, || format!("line {place}"));
        assert_eq!((0..100).filter(|_| line(1, start)).count(), 30);
        assert!(line(2, start), "each place has a limit of its own");
        let of_set = (1, Some("set fast".to_owned()));
        assert!(limit.admits(of_set, start, String::new), "and each set");
        assert!(limit.take(start, false).is_empty(), "the minute is not over");
        assert_eq!(limit.next(start), Some(WINDOW));
        let later = start + WINDOW;
        assert!(!line(1, later), "not before the count was logged");
        let suppressed = Suppressed { lines: 71, message: "line 1".into() };
        assert_eq!(limit.take(later, false), [suppressed]);
        assert_eq!(limit.next(later), None);
        assert_eq!((0..100).filter(|_| line(1, later)).count(), 30);
        assert_eq!(limit.take(later, true).len(), 1, "at the end all counts are due");
    }

    #[test]
    fn rare_lines_are_never_suppressed() {
        let (limit, mut now) = (Limit::default(), Instant::now());
        for _ in 0..100 {
            assert!(limit.admits((1, None), now, String::new));
            now += WINDOW / 10;
        }
    }
}
