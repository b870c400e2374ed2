//! Speed of writeback, measured, and the time that is left.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ubcache_engine::{VolumeStatus, WritebackActivity};
use ubcache_env::Nanos;
use ubcache_format::Uuid;

use super::report::WritebackReport;

#[derive(Copy, Clone)]
struct Pace {
    at: Nanos,
    written_bytes: u64,
    bytes_per_second: u64,
}

/// Speeds of the volumes of a set.
#[derive(Default)]
pub struct Paces(RefCell<BTreeMap<Uuid, Pace>>);

impl Paces {
    /// Updates the speed of a volume: a moving mean in which the latest interval counts for half.
    pub fn measure(&self, now: Nanos, status: &VolumeStatus) {
        let written_bytes = status.stats.written_back_bytes;
        let mut paces = self.0.borrow_mut();
        let pace = paces.entry(status.uuid).or_insert(Pace {
            at: now,
            written_bytes,
            bytes_per_second: 0,
        });
        let millis = now.since(pace.at).as_millis();
        if millis == 0 {
            return;
        }
        let bytes = written_bytes.saturating_sub(pace.written_bytes);
        let latest = bytes.saturating_mul(1000) / millis;
        let mean = match (pace.bytes_per_second, latest) {
            (_, 0) => 0,
            (0, latest) => latest,
            (before, latest) => before / 2 + latest / 2,
        };
        *pace = Pace { at: now, written_bytes, bytes_per_second: mean };
    }

    /// Writeback of a volume as `status` shows it.
    pub fn report(&self, status: &VolumeStatus) -> WritebackReport {
        let pace = self.0.borrow().get(&status.uuid).map_or(0, |pace| pace.bytes_per_second);
        let seconds_left = match (status.dirty_bytes, status.writeback) {
            (0, _) => Some(0),
            (dirty, WritebackActivity::Running) => dirty.checked_div(pace),
            _ => None,
        };
        WritebackReport {
            state: status.writeback.word().to_owned(),
            written_bytes: status.stats.written_back_bytes,
            bytes_per_second: pace,
            seconds_left,
            latency: (&status.requests.dirty_writeback).into(),
        }
    }
}
