//! Another cache for volumes that are served, and none at all.
//!
//! A set needs a cache device. Where that is missing, its place is taken by an empty one in memory,
//! to which no volume is attached.

use std::path::Path;
use std::rc::Rc;

use ubcache_engine::{CacheSet, EXTENT_MEMORY_BYTES, EngineError, SetOptions};
use ubcache_env::local::Permit;
use ubcache_env::{Buf, Device, Durability, Priority};
use ubcache_format::{Replacement, SUPERBLOCK_SECTOR, Superblock, Uuid};
use ubcache_host::{HostDisk, HostFile, OpenOptions, PageCache};

use super::daemon::{Daemon, Served};
use super::events::follow_events;
use super::former_set::Former;
use super::header_copy::CacheCopies;
use super::kept::{kept_memory, say_kept};
use super::world::{World, open as open_device};
use crate::config::ServeConfig;
use crate::failure::Failure;
use crate::open::precheck::blocks_too_small;
use crate::open::refusal::engine_failure;
use crate::open::superblock::superblock_of;
use crate::open::target::host_open_failure;
use crate::size::show_size;

/// The smallest cache: buckets, and sectors in a bucket.
const BUCKETS: u32 = 513;
const BUCKET_SECTORS: u32 = 8;

/// Options of a set by the command line.
pub(crate) fn set_options(config: &ServeConfig) -> SetOptions {
    let mut options = SetOptions { keep_clean: config.keep_clean, ..SetOptions::default() };
    if let Some(bytes) = config.index_memory {
        options.tuning.extents_in_memory_max = (bytes / EXTENT_MEMORY_BYTES) as usize;
    }
    options
}

/// A set for volumes without a cache.
pub(crate) async fn without_cache<W: World>(world: &W) -> Result<CacheSet<W>, Failure> {
    let name = Path::new("memory for a set without a cache");
    let failed = |error: &dyn std::fmt::Display| Failure::refused(name, error);
    let bytes = u64::from(BUCKETS * BUCKET_SECTORS) * ubcache_format::SECTOR_BYTES;
    let memory = ubcache_host::memory::file_in_memory(bytes).map_err(|error| failed(&error))?;
    let path = ubcache_host::memory::path_of(&memory);
    let options = OpenOptions { page_cache: PageCache::Always, write: true, exclusive: true };
    let opened = HostFile::open(world.host(), &path, options);
    let file = opened.map_err(|error| host_open_failure(&path, error))?;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&world.random().to_le_bytes());
    bytes[8..16].copy_from_slice(&world.random().to_le_bytes());
    let (mut cache, mut set) = ([0; 16], [0; 16]);
    cache.copy_from_slice(&bytes[..16]);
    set.copy_from_slice(&bytes[..16]);
    set[0] ^= 1;
    let superblock = Superblock::new_cache(
        Uuid(cache),
        Uuid(set),
        1,
        BUCKET_SECTORS,
        BUCKETS,
        Replacement::Lru,
        false,
    );
    let bytes = Buf::from_bytes(&superblock.encode());
    let written = file.write(SUPERBLOCK_SECTOR, bytes.into(), Durability::Volatile).await;
    written.map_err(|error| failed(&error))?;
    let set = CacheSet::open(world.clone(), world.cache(file), SetOptions::default()).await;
    set.map_err(|error| failed(&error))
}

/// An error of a volume that does not get another cache.
fn in_words(error: &EngineError) -> String {
    match error {
        EngineError::HasDirty(bytes) => {
            format!("only its former cache has {} of its data", show_size(*bytes))
        }
        error => error.to_string(),
    }
}

impl<W: World> Daemon<W> {
    /// The set that a volume belongs to.
    pub(crate) fn set_of(&self, served: &Served<W>) -> CacheSet<W> {
        let now = served.now();
        let former = self.former.borrow();
        let found = former.iter().find(|former| former.set.has(&now));
        found.map_or_else(|| self.set(), |former| former.set.clone())
    }

    /// Moves a volume to the set that there is now.
    pub(crate) async fn move_volume(&self, served: &Served<W>) -> Result<(), EngineError> {
        let exchange = served.volume.exchange().await;
        // A cache that has failed may not answer a write of its copy, either.
        if let Some(header) = &served.header
            && self.set_of(served).status().failed.is_some()
        {
            header.device.move_copy(None).await;
        }
        let volume = self.set().adopt(&served.now()).await?;
        // The header names the new set now, on the former cache as well if that can be written. The
        // new one has a copy before it has dirty data.
        let copies = self.header_copies.borrow().clone();
        if let (Some(header), Some(cache)) = (&served.header, copies) {
            header.copy_to(&cache).await;
        }
        exchange.replace(volume);
        drop(exchange);
        tracing::info!(export = served.name, "attached to another cache");
        Ok(())
    }

    /// Gives all volumes that need no cache another one; returns words about it.
    pub async fn replace_cache(self: &Rc<Self>, path: &Path) -> Result<String, String> {
        let _one = self.change_membership().await?;
        let volumes = self.volumes();
        if self.set().status().failed.is_none()
            && let Some(flash) = self.flash().first()
        {
            return Err(format!(
                "the cache is in use: it has all data of the flash-only volume \"{name}\"; copy \
                 that, then: ubcache flash remove {name} --discard-data",
                name = flash.name
            ));
        }
        let needs_it = |served: &&Rc<Served<W>>| !served.now().needs_no_cache();
        let set = self.set();
        let old = self.cache_path.borrow().display().to_string();
        if self.shrinking.borrow().is_some() {
            return Err(format!(
                "the cache {old} is becoming smaller: wait for its end, or: ubcache resize --cache \
                 --cancel"
            ));
        }
        if set.status().failed.is_none()
            && let Some(served) = volumes.iter().find(needs_it)
        {
            return Err(format!(
                "the cache {old} is in use: \"{name}\" is attached to it. Detach the volumes \
                 first, which writes back what only the cache has: ubcache detach {name}",
                name = served.name
            ));
        }
        if !volumes.is_empty() && volumes.iter().all(|served| needs_it(&served)) {
            return Err(format!(
                "every volume has data that only the cache {old} has; `ubcache status` says how \
                 each one goes on"
            ));
        }
        let opened = open_device(self.world.host(), path, self.config.page_cache).await;
        let file = opened.map_err(|failure| failure.to_string())?;
        let superblock = superblock_of(&file).await.map_err(|error| {
            format!("{}: no bcache superblock can be read: {error}", path.display())
        })?;
        let of_cache = superblock.block_sectors;
        for served in volumes.iter().filter(|served| !needs_it(served)) {
            let of_disk = served.now().backing_block_sectors();
            if of_disk < of_cache {
                let why = blocks_too_small(&served.path, of_disk, path, of_cache);
                return Err(why.to_string());
            }
        }
        let directory = self.kept_directory.as_deref();
        let kept = kept_memory(self.world.host(), directory, superblock.set_uuid).await;
        let options = SetOptions { kept, ..set_options(&self.config) };
        let copies = CacheCopies::new(path, HostDisk::from(file.share()));
        let set = CacheSet::open(self.world.clone(), self.world.cache(file), options).await;
        let set = set.map_err(|error| engine_failure(path, &error).to_string())?;
        for served in volumes.iter().filter(|served| !needs_it(served)) {
            if let Err(error) = set.can_adopt(&served.now()) {
                let _ = set.stop().await;
                return Err(format!("{}: {error}", served.path.display()));
            }
        }
        tracing::info!(cache = %path.display(), set = %set.status().uuid, "a new cache is there");
        set.kept_state().into_iter().for_each(say_kept);
        for (attribute, value) in &self.config.settings {
            // Those of volumes go on with them.
            let _ = set.set_attribute(attribute, value);
        }
        self.give_up_flash();
        let former = Former { set: self.set.replace(set), ended: self.set_ended.take() };
        self.former.borrow_mut().push(former);
        *self.cache_path.borrow_mut() = path.to_owned();
        self.header_copies.replace(Some(copies));
        self.no_cache.borrow_mut().take();
        self.publish();
        follow_events(self, &self.world);
        let (mut said, mut all) = (Vec::new(), true);
        for served in &volumes {
            // It may have been removed meanwhile.
            if !self.volumes().iter().any(|other| Rc::ptr_eq(other, served)) {
                continue;
            }
            said.push(match self.move_volume(served).await {
                Ok(()) => format!("{}: attached", served.name),
                Err(error) => {
                    all = false;
                    tracing::error!(export = served.name, "stays without the new cache: {error}");
                    format!("{}: not attached: {}", served.name, in_words(&error))
                }
            });
        }
        let listeners = self.listeners.borrow().clone();
        if let Some(listeners) = listeners {
            listeners.replace_cache(&self.world, self.cache_to_read()).await;
        }
        self.end_former_sets();
        let said = said.join("\n");
        if all { Ok(said) } else { Err(said + "\n`ubcache status` says how each one goes on") }
    }

    /// Ends the sets that no volume needs any more.
    pub(crate) fn end_former_sets(&self) {
        let volumes = self.volumes();
        let needed =
            |former: &Former<W>| volumes.iter().any(|served| former.set.has(&served.now()));
        let former = std::mem::take(&mut *self.former.borrow_mut());
        let (needed, ended): (Vec<_>, Vec<_>) = former.into_iter().partition(needed);
        *self.former.borrow_mut() = needed;
        self.world.spawn(Priority::Background, async move {
            for Former { set, ended } in ended {
                if let Err(error) = set.stop().await {
                    tracing::info!("the former set ended: {error}");
                }
                ended.set();
            }
        });
    }

    /// Waits for the turn of a volume or a cache that comes or goes.
    ///
    /// # Errors
    /// The daemon is being stopped.
    pub(crate) async fn change_membership(&self) -> Result<Permit, String> {
        let turn = self.membership.lock().await;
        if self.stop_wanted.is_set() {
            return Err("the daemon is being stopped".to_owned());
        }
        Ok(turn)
    }

    /// Stops all sets. The first error is given. A cache that is being replaced is replaced before:
    /// half of its volumes would be of one set, and half of the other.
    pub(crate) async fn stop_sets(&self) -> Result<(), EngineError> {
        let suspended = self.suspend_moves().await;
        self.end_shrink().await;
        let _last = self.membership.lock().await;
        // One that began meanwhile.
        self.end_shrink().await;
        let mut stopped = Ok(());
        let former = std::mem::take(&mut *self.former.borrow_mut());
        let volumes = self.volumes();
        let remotes = || volumes.iter().filter_map(|served| served.remote.as_ref());
        for remote in remotes() {
            // Before the set says that it has stopped: a kill meanwhile is no clean stop.
            remote.landed().await;
        }
        for former in former {
            stopped = stopped.and(former.set.stop().await);
        }
        stopped = stopped.and(self.set().stop().await);
        let new = suspended.iter().filter_map(|moving| moving.remote.as_ref());
        for remote in remotes().chain(new) {
            remote.close().await;
        }
        if stopped.is_ok() {
            self.late_writes.over();
        }
        stopped
    }
}
