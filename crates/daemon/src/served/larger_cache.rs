//! A cache that gets the size that its device has now, while its set runs or not.

use std::path::Path;

use ubcache_engine::EngineError;
use ubcache_format::SECTOR_BYTES;

use super::daemon::Daemon;
use super::resize_alone::resize_alone;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::size::show_size;

impl<W: World> Daemon<W> {
    /// Has the set grow at its next clean stop; returns words about it.
    pub async fn resize_cache(&self) -> Result<String, Refusal> {
        let _one = self.change_membership().await?;
        let path = self.cache_path.borrow().clone();
        if let Some(why) = self.no_cache.borrow().as_ref() {
            return Err(Refusal::new(Kind::Conflict, format_args!("there is no cache: {why}")));
        }
        let set = self.set();
        let grown = set.grow_at_stop().await.map_err(|error| match error {
            error @ EngineError::NoMoreBuckets { .. } => {
                Refusal::new(Kind::Conflict, format_args!("{}: {error}", path.display()))
                    .advice("make the device larger first; smaller: ubcache resize --cache SIZE")
            }
            EngineError::Resizing => Refusal::new(Kind::Conflict, error)
                .advice("start the set again first: ubcache upgrade"),
            EngineError::Stopping => Refusal::new(Kind::Conflict, error),
            error => Refusal::new(Kind::Failed, format_args!("{}: {error}", path.display())),
        })?;
        let (before, after) = (grown.before * SECTOR_BYTES, grown.after * SECTOR_BYTES);
        tracing::info!(cache = %path.display(), before, after, "grows at the next clean stop");
        Ok(format!(
            "{}: {} from the next start on, now {}; ubcache upgrade starts again with all clients",
            path.display(),
            show_size(after),
            show_size(before)
        ))
    }
}

/// Gives a cache whose set is not running the size of its device.
pub fn grow_cache_of(path: &Path) -> Result<String, Failure> {
    let grown = resize_alone(path, "ubcache resize --cache", async |set| set.grow_at_stop().await)?;
    let grown = grown.map_err(|error| {
        let failure = Failure::refused(path, &error);
        match error {
            EngineError::NoMoreBuckets { .. } => {
                failure.advice("make the device larger first; smaller: --size SIZE")
            }
            _ => failure,
        }
    })?;
    let (before, after) = (grown.before * SECTOR_BYTES, grown.after * SECTOR_BYTES);
    Ok(format!("{}: {}, before {}", path.display(), show_size(after), show_size(before)))
}
