//! Disks that are gone for good: what the cache has of them is given up, while the set runs or not.

use std::path::Path;
use std::rc::Rc;

use ubcache_engine::{Absent, CacheSet, EngineError, SetOptions};
use ubcache_env::Env;
use ubcache_host::{Host, IoBackend, PageCache};

use super::daemon::{Daemon, Served};
use super::world::{World, open as open_device};
use crate::failure::Failure;
use crate::open::refusal::engine_failure;
use crate::open::superblock::{ExpectedKind, look};
use crate::size::show_size;

impl<W: World> Daemon<W> {
    /// Forgets a disk that is not served, by its UUID; returns a message with the dirty data that
    /// was dropped.
    pub async fn forget_disk(&self, disk: &str, discard_dirty: bool) -> Result<String, String> {
        let volumes = self.volumes();
        let is_served = |served: &&Rc<Served<W>>| {
            let label = served.now().attribute("label").unwrap_or_default();
            [served.now().uuid().to_string(), served.name.clone(), label]
                .iter()
                .any(|name| name == disk)
        };
        if let Some(served) = volumes.iter().find(is_served) {
            return Err(format!(
                "the disk {disk} is being served: it is the export \"{name}\", {path}; to detach \
                 it with all of its data: ubcache detach {name}",
                name = served.name,
                path = served.path.display()
            ));
        }
        let words = Words {
            serve: "ubcache add -B DISK".to_owned(),
            forget: "ubcache forget-disk".to_owned(),
        };
        forget(&self.set(), disk, discard_dirty, &words).await
    }
}

/// Forgets a disk of a set that is not running. The set is started for that, without its disks, and
/// stopped.
pub fn forget_disk_of(cache: &Path, disk: &str, discard_dirty: bool) -> Result<String, Failure> {
    look(cache, ExpectedKind::Cache)?;
    let host = Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))?;
    let env = host.env();
    let path = cache;
    host.block_on(async {
        let opened = open_device(&env, path, PageCache::Needed).await;
        let file = opened.map_err(|failure| {
            failure.more_advice(format_args!(
                "Of a set that runs: ubcache forget-disk {disk}, without -C"
            ))
        })?;
        // Data that the driver may have left stale is dropped, as at every start: the next one
        // takes this for the last run.
        let opened =
            Box::pin(CacheSet::open(env.clone(), file.into(), SetOptions::default())).await;
        let set = opened.map_err(|error| engine_failure(path, &error))?;
        let cache = cache.display();
        let words = Words {
            serve: format!("ubcache serve -C {cache} -B DISK"),
            forget: format!("ubcache forget-disk -C {cache}"),
        };
        let forgotten = Box::pin(forget(&set, disk, discard_dirty, &words)).await;
        let stopped = Box::pin(set.stop()).await.map_err(|error| engine_failure(path, &error));
        let said = forgotten.map_err(|why| Failure::refused(path, why))?;
        stopped.map(|()| said)
    })
}

/// Commands that a refusal names.
struct Words {
    /// Serves a disk that is not gone.
    serve: String,
    /// Forgets one.
    forget: String,
}

/// Forgets a disk of which nothing is served.
async fn forget<E: Env>(
    set: &CacheSet<E>,
    disk: &str,
    discard_dirty: bool,
    words: &Words,
) -> Result<String, String> {
    let absent = set.absent();
    let Some(meant) = absent.iter().find(|it| disk == it.uuid.to_string()) else {
        return Err(match absent.as_slice() {
            [] => format!("there is no disk \"{disk}\", and no disk of the set is absent"),
            some => format!(
                "there is no disk with the UUID \"{disk}\"; absent disks: {}",
                some.iter().map(name_of).collect::<Vec<_>>().join(", ")
            ),
        });
    };
    let name = name_of(meant);
    let dropped = set.forget(meant.uuid, discard_dirty).await.map_err(|error| match error {
        EngineError::HasDirty(bytes) => format!(
            "the newest data of the disk {name} is in the cache only: {}. If the disk still \
             exists, serve it: {}. To give that data up: {} {disk} --discard-dirty",
            show_size(bytes),
            words.serve,
            words.forget
        ),
        error => error.to_string(),
    })?;
    tracing::info!(disk = name, dropped, "forgotten");
    Ok(match dropped {
        0 => format!("{name}: forgotten"),
        bytes => format!("{name}: forgotten, with {} of dirty data", show_size(bytes)),
    })
}

fn name_of(absent: &Absent) -> String {
    match absent.label.as_str() {
        "" => absent.uuid.to_string(),
        label => format!("{} ({label})", absent.uuid),
    }
}
