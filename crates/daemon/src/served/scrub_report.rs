//! The part of the report that is about scrubs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use ubcache_engine::{ScrubState, VolumeStatus};
use utoipa::ToSchema;

/// Scrub of a volume: the pass that is under way, or the last one since the start of the daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ScrubReport {
    /// `never`, `running`, `complete` or `stopped`.
    pub state: String,
    /// Bytes of the volume before the place that the pass has reached.
    pub position_bytes: u64,
    /// Clean cached bytes that the pass has compared with the disk.
    pub compared_bytes: u64,
    /// Bytes that changed while they were compared.
    pub skipped_bytes: u64,
    /// Bytes that differed; they were dropped from the cache.
    pub differing_bytes: u64,
    /// Bytes that the cache or the disk did not return.
    pub unreadable_bytes: u64,
    /// Seconds that the pass has taken.
    pub seconds: f64,
    /// Seconds until it ends, at the speed so far; `null` if none is under way.
    pub seconds_left: Option<u64>,
    /// Bytes that all passes have compared since the start of the daemon.
    pub all_compared_bytes: u64,
    /// Bytes of them that differed.
    pub all_differing_bytes: u64,
}

impl ScrubReport {
    /// The report on the scrub of a volume.
    pub fn new(status: &VolumeStatus) -> ScrubReport {
        let (pass, stats) = (&status.scrub, &status.stats);
        let seconds = pass.elapsed.0 as f64 / 1e9;
        let left = pass.size_bytes.saturating_sub(pass.position_bytes);
        let speed = pass.position_bytes as f64 / seconds;
        let is_known = pass.state == ScrubState::Running && speed > 0.0;
        ScrubReport {
            state: pass.state.word().to_owned(),
            position_bytes: pass.position_bytes,
            compared_bytes: pass.compared_bytes,
            skipped_bytes: pass.skipped_bytes,
            differing_bytes: pass.differing_bytes,
            unreadable_bytes: pass.unreadable_bytes,
            seconds,
            seconds_left: is_known.then(|| (left as f64 / speed).ceil() as u64),
            all_compared_bytes: stats.scrubbed_bytes,
            all_differing_bytes: stats.scrub_differing_bytes,
        }
    }
}

/// Scrubs of volumes, by the names of their exports.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Scrubs {
    /// The report on each.
    pub volumes: BTreeMap<String, ScrubReport>,
}
