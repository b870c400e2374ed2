//! Volumes that come and go while others are served, and the writing back of their dirty data.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheUse, EngineError, Exported, ServedVolume};
use ubcache_env::local::join_all;
use ubcache_env::{Priority, StreamEnd, StreamId, Volume};
use ubcache_format::BackingState;
use ubcache_nbd::Rates;

use super::backing::{Backing, open_backing, say_witness};
use super::daemon::{Daemon, Served};
use super::world::World;
use crate::backing::{is_same_uri, is_uri};
use crate::config::{Named, export_names};
use crate::control::refusal::{Kind, Refusal};
use crate::open::header::{FoundHeader, find_header};
use crate::open::precheck::dirty_without_cache;
use crate::open::refusal::member_failure;
use crate::open::superblock::{has_superblock, superblock_of};
use crate::open::target::{Access, Target};

/// The stream of flushes that an administrator asks for: connections count from 1.
const ADMINISTRATOR: StreamId = StreamId(u64::MAX);

impl<W: World> Daemon<W> {
    /// Serves one more backing device; returns the name of its export.
    pub async fn add(&self, path: &Path, given: Option<&str>) -> Result<String, String> {
        let _one = self.change_membership().await?;
        let volumes = self.volumes();
        let paths = volumes.iter().map(|served| served.path.clone());
        if let Some(at) = self.position_of(path, paths).await {
            let name = &volumes[at].name;
            return Err(format!("{} is served already, as \"{name}\"", path.display()));
        }
        let found = self.find_header(path).await?;
        let (config, cache) = (&self.config, self.header_copies.borrow().clone());
        let opening = (path, found.as_ref());
        let opened = open_backing(self.world.host(), config, opening, cache.as_ref()).await;
        let Backing { device: file, lost, remote, header } =
            opened.map_err(|failure| failure.to_string())?;
        if remote.as_ref().is_some_and(|remote| remote.may_write_late()) {
            self.late_writes.pass(&self.world).await;
        }
        let superblock = superblock_of(&file).await.map_err(|error| {
            format!("{}: no bcache superblock can be read: {error}", path.display())
        })?;
        let label = superblock.label_str();
        let names = export_names(&[Named { given, label: &label, path }]);
        let name = names.map_err(|failure| failure.to_string())?.remove(0);
        if volumes.iter().any(|served| served.name == name) {
            return Err(format!(
                "there is an export \"{name}\" already; give this one another name: ubcache add -B \
                 NAME={}",
                path.display()
            ));
        }
        // Clients may ask for each export by its UUID: no other one may have that for a name.
        let uuid = superblock.uuid.to_string();
        if let Some(served) = volumes
            .iter()
            .find(|served| served.name == uuid || served.now().uuid().to_string() == name)
        {
            return Err(format!(
                "{}: \"{name}\" and its UUID {uuid} must differ from the name and the UUID of \
                 \"{}\"; give it another name: ubcache add -B NAME={}",
                path.display(),
                served.name,
                path.display()
            ));
        }
        if self.no_cache.borrow().is_some() && superblock.state() == BackingState::Dirty {
            return Err(dirty_without_cache(path, Some(&name), &superblock).to_string());
        }
        let options = AttachOptions {
            name: name.clone(),
            read_only: self.config.read_only.holds_for(&name),
            cache: self.cache_use(),
            choice: None,
        };
        let attached = self.set().attach(self.world.backing(file), options).await;
        let volume = attached.map_err(|error| {
            member_failure(&self.cache_path.borrow(), path, &name, &error).to_string()
        })?;
        let served = Served {
            name: name.clone(),
            volume: Rc::new(ServedVolume::new(volume)),
            path: path.to_owned(),
            lost,
            remote,
            header,
        };
        if let Err(error) = self.export(&served) {
            // The reason for the refusal is what counts.
            let _ = self.set().release(&served.now(), false).await;
            return Err(error);
        }
        say_witness(&name, &served.now());
        for (attribute, value) in self.config.settings_of(&name) {
            // Those of the set are set already.
            let _ = served.now().set_attribute(&attribute, &value);
        }
        tracing::info!(export = name, path = %path.display(), "added");
        self.volumes.borrow_mut().push(Rc::new(served));
        self.publish();
        let down: Vec<PathBuf> = self.down.borrow().iter().map(|down| down.path.clone()).collect();
        if let Some(at) = self.position_of(path, down.clone().into_iter()).await {
            self.down.borrow_mut().retain(|it| it.path != down[at]);
        }
        // One that was looked for in vain has no path.
        self.down.borrow_mut().retain(|it| it.name != name);
        self.add_block_devices().await;
        self.add_guest_sockets().await;
        Ok(name)
    }

    /// The header of a disk that has no superblock.
    async fn find_header(&self, path: &Path) -> Result<Option<FoundHeader>, String> {
        let (path, headers) = (path.to_owned(), self.config.headers.clone());
        let cache = self.cache_path.borrow().clone();
        let found = self.world.host().blocking(move || {
            let disk = Target::open(&path, Access::Look)?;
            match has_superblock(&disk) {
                true => Ok(None),
                false => find_header(&disk, &headers, Some(&cache)),
            }
        });
        found.await.unwrap_or(Ok(None)).map_err(|failure| failure.to_string())
    }

    /// The first of `paths` that leads to the same file as `path`. Links are followed on a worker
    /// thread, as that may block.
    pub(crate) async fn position_of(
        &self,
        path: &Path,
        paths: impl Iterator<Item = PathBuf>,
    ) -> Option<usize> {
        let (path, mut paths) = (path.to_owned(), paths.collect::<Vec<_>>());
        if is_uri(&path) {
            return paths.iter().position(|it| is_same_uri(it, &path));
        }
        paths.iter_mut().filter(|it| is_uri(it)).for_each(PathBuf::clear);
        let found = self.world.host().blocking(move || {
            let path = std::fs::canonicalize(path).ok()?;
            paths.iter().position(|it| std::fs::canonicalize(it).is_ok_and(|it| it == path))
        });
        found.await.flatten()
    }

    /// Use of the cache by volumes that come.
    pub(crate) fn cache_use(&self) -> CacheUse {
        match *self.no_cache.borrow() {
            Some(_) => CacheUse::Uncached,
            None => CacheUse::UnlessDetached,
        }
    }

    /// Lets clients choose a volume.
    pub(crate) fn export(&self, served: &Served<W>) -> Result<(), String> {
        let volume = Rc::new(Exported::Cached(served.volume.clone()));
        let added = self.exports.add_as(served.name.clone(), String::new(), volume);
        added.map_err(|error| error.to_string())?;
        self.exports.also_as(&served.name, served.now().uuid().to_string());
        let given = self.rates.borrow().get(&served.name).copied();
        let rates = given.unwrap_or_else(|| self.config.clients.of_export(&served.name));
        self.exports.limit(&served.name, rates);
        Ok(())
    }

    /// Limits clients of these exports that connect from now on.
    pub fn limit(&self, exports: Vec<(String, Rates)>) {
        for (name, rates) in exports {
            self.exports.limit(&name, rates);
            self.rates.borrow_mut().insert(name, rates);
        }
    }

    /// Ends a volume; returns words about it. Its dirty data is written back before, or stays in
    /// the cache.
    pub async fn remove(&self, volume: Option<&str>, keep_dirty: bool) -> Result<String, Refusal> {
        let served = self.only(volume)?;
        let name = &served.name;
        if self.move_of(name).is_some() {
            self.cancel_move(name).await?;
        }
        self.end_guest_sockets_of(name, false).await?;
        self.end_block_device(name, false).await?;
        tracing::info!(export = name, "removing");
        let set = self.set_of(&served);
        let released = set.release(&served.now(), !keep_dirty).await.map_err(|error| {
            let said = format!("{name} stays: {error}");
            match (&error, keep_dirty) {
                // By somebody else, meanwhile.
                (EngineError::Removed(_), _) => error.to_string(),
                (_, true) => said,
                (_, false) => format!(
                    "{said}. To remove it at once, with its dirty data left in the cache: ubcache \
                     remove {name} --keep-dirty"
                ),
            }
        })?;
        self.exports.remove(name);
        self.volumes.borrow_mut().retain(|other| !Rc::ptr_eq(other, &served));
        self.publish();
        let listeners = self.listeners.borrow().clone();
        if let Some(listeners) = listeners {
            listeners.disconnect(name);
        }
        let dirty = served.now().status().dirty_bytes;
        tracing::info!(export = name, dirty, "removed");
        self.end_former_sets();
        if let Some(remote) = &served.remote {
            remote.close().await;
        }
        let mut said = format!("{name}: removed");
        if dirty > 0 {
            said += &format!("; {} of dirty data stay in the cache", crate::size::show_size(dirty));
        }
        match released {
            None => Ok(said),
            Some(error) => {
                let said = format_args!("{said}, but not all of it may be durable: {error}");
                Err(Refusal::new(Kind::Failed, said))
            }
        }
    }

    /// Makes durable what clients have been told is written, on the backing device or in the cache.
    pub async fn flush(&self, volume: Option<&str>) -> Result<(), Refusal> {
        let mut failed = self.flush_flash(volume).await;
        let flash_only = volume.is_some_and(|name| self.is_flash(name));
        for served in if flash_only { Vec::new() } else { self.select(volume)? } {
            let flushed = served.volume.flush(ADMINISTRATOR).await;
            // F4: an error that the administrator gets is owed to a client all the same.
            let end = if flushed.is_ok() { StreamEnd::Orderly } else { StreamEnd::Cut };
            served.volume.stream_ended(ADMINISTRATOR, end);
            if let Err(error) = flushed {
                failed.push(format!("{}: {error}", served.name));
            }
        }
        match failed.is_empty() {
            true => Ok(()),
            false => Err(Refusal::new(Kind::Failed, failed.join("\n"))),
        }
    }

    /// Writes back all dirty data, of one volume or of all, and waits for the end if wanted.
    pub async fn drain(self: &Rc<Self>, volume: Option<&str>, wait: bool) -> Result<(), Refusal> {
        let volumes = self.select(volume)?;
        let daemon = self.clone();
        let all = async move {
            let drained = join_all(volumes.iter().map(|served| {
                let set = daemon.set_of(served);
                async move {
                    let done = set.drain(&served.now()).await;
                    if let Err(error) = &done {
                        tracing::error!(export = served.name, "the drain failed: {error}");
                    }
                    let failed = |error| format!("{}: {error}", served.name);
                    done.map_err(|error| Refusal::new(Kind::Failed, failed(error)))
                }
            }))
            .await;
            drained.into_iter().collect::<Result<(), Refusal>>()
        };
        if wait {
            return all.await;
        }
        // Its errors are logged.
        self.world.spawn(Priority::Background, async move { drop(all.await) });
        Ok(())
    }
}
