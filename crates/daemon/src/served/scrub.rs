//! Scrubs that an administrator asks for, and the report on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use ubcache_engine::{EngineError, VolumeStatus};
use ubcache_env::local::join_all;
use utoipa::ToSchema;

use super::daemon::Daemon;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};

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
        let is_known = pass.state == ubcache_engine::ScrubState::Running && speed > 0.0;
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

impl<W: World> Daemon<W> {
    /// Starts a scrub of a volume, or of all that have a cache, and waits for the end if wanted.
    /// One that is under way goes on.
    pub async fn scrub(&self, volume: Option<&str>, wait: bool) -> Result<Scrubs, Refusal> {
        let mut started = Vec::new();
        for served in self.select(volume)? {
            let now = served.now();
            match now.start_scrub() {
                Ok(_) => started.push((served, now)),
                // Of all volumes, those are meant that can be scrubbed.
                Err(EngineError::NotAttached) if volume.is_none() => {}
                Err(error) => {
                    let error = format_args!("{}: {error}", served.name).to_string();
                    return Err(Refusal::new(Kind::Conflict, error)
                        .expected("a volume with a cache, whose data can be compared"));
                }
            }
        }
        if wait {
            join_all(started.iter().map(|(_, volume)| volume.scrub_ends())).await;
        }
        let report = started
            .iter()
            .map(|(served, volume)| (served.name.clone(), ScrubReport::new(&volume.status())));
        Ok(Scrubs { volumes: report.collect() })
    }

    /// Ends scrubs that are under way.
    pub async fn stop_scrub(&self, volume: Option<&str>) -> Result<Scrubs, Refusal> {
        let mut stopped = Scrubs::default();
        for served in self.select(volume)? {
            served.now().stop_scrub().await;
            let report = ScrubReport::new(&served.now().status());
            stopped.volumes.insert(served.name.clone(), report);
        }
        Ok(stopped)
    }
}
