//! Scrubs that an administrator asks for.

use ubcache_engine::EngineError;
use ubcache_env::local::join_all;

use super::daemon::Daemon;
use super::scrub_report::{ScrubReport, Scrubs};
use super::world::World;
use crate::control::refusal::{Kind, Refusal};

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
