//! A cache that gets the size that its device has now, while its set runs or not.

use std::path::Path;

use ubcache_engine::{CacheSet, EngineError, SetOptions};
use ubcache_format::SECTOR_BYTES;
use ubcache_host::{Host, IoBackend, PageCache};

use super::daemon::Daemon;
use super::world::{World, open as open_device};
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::open::refusal::engine_failure;
use crate::open::superblock::{ExpectedKind, look};
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

/// Gives a cache whose set is not running the size of its device. The set is started for that,
/// without its disks, and stopped.
pub fn grow_cache_of(path: &Path) -> Result<String, Failure> {
    look(path, ExpectedKind::Cache)?;
    let host = Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))?;
    let env = host.env();
    host.block_on(async {
        let opened = open_device(&env, path, PageCache::Needed).await;
        let file = opened.map_err(|failure| {
            failure.more_advice("Of a set that runs: ubcache resize --cache, without -C")
        })?;
        // Data that the driver may have left stale is dropped, as at every start: the next one
        // takes this for the last run.
        let opened =
            Box::pin(CacheSet::open(env.clone(), file.into(), SetOptions::default())).await;
        let set = opened.map_err(|error| engine_failure(path, &error))?;
        let grows = set.grow_at_stop().await;
        let stopped = Box::pin(set.stop()).await.map_err(|error| engine_failure(path, &error));
        let grown = grows.map_err(|error| {
            let failure = Failure::refused(path, &error);
            match error {
                EngineError::NoMoreBuckets { .. } => {
                    failure.advice("make the device larger first; smaller: --size SIZE")
                }
                _ => failure,
            }
        })?;
        stopped?;
        let (before, after) = (grown.before * SECTOR_BYTES, grown.after * SECTOR_BYTES);
        Ok(format!("{}: {}, before {}", path.display(), show_size(after), show_size(before)))
    })
}
