//! A cache whose set does not run, and which gets another size.

use std::path::Path;

use ubcache_engine::{CacheSet, EngineError, Resized, SetOptions};
use ubcache_host::{Host, HostEnv, IoBackend, PageCache};

use super::world::open as open_device;
use crate::failure::Failure;
use crate::open::refusal::engine_failure;
use crate::open::superblock::{ExpectedKind, look};

/// Starts the set without its disks, changes its size, and stops it. `instead`: the command for a
/// set that runs. The inner error is that of the change.
///
/// # Errors
/// The set can't be started or stopped.
pub(super) fn resize_alone(
    path: &Path,
    instead: &str,
    change: impl AsyncFnOnce(&CacheSet<HostEnv>) -> Result<Resized, EngineError>,
) -> Result<Result<Resized, EngineError>, Failure> {
    look(path, ExpectedKind::Cache)?;
    let host = Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))?;
    let env = host.env();
    host.block_on(async {
        let opened = open_device(&env, path, PageCache::Needed).await;
        let file = opened.map_err(|failure| {
            failure.more_advice(format_args!("Of a set that runs: {instead}, without -C"))
        })?;
        // Data that the driver may have left stale is dropped, as at every start: the next one
        // takes this for the last run.
        let opened =
            Box::pin(CacheSet::open(env.clone(), file.into(), SetOptions::default())).await;
        let set = opened.map_err(|error| engine_failure(path, &error))?;
        let changed = change(&set).await;
        let stopped = Box::pin(set.stop()).await.map_err(|error| engine_failure(path, &error));
        // The first error counts.
        if changed.is_ok() {
            stopped?;
        }
        Ok(changed)
    })
}
