//! One daemon: opens a set, serves its volumes over NBD, stops cleanly when told to.
//!
//! ```text
//!  precheck ─▶ open cache ─▶ attach backings ─▶ settings ─▶ listen ─▶ "ready" ─▶ wait ─▶ stop
//!  (changes nothing)                                                   SIGTERM, SIGINT, `ubcache stop`
//! ```

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_engine::{
    Absent, AttachOptions, AttributeError, CacheSet, CachedVolume, Choice, EXTENT_MEMORY_BYTES, EngineError,
    FormerRun, SetOptions, TakenOver, VolumeState,
};
use ubcache_env::local::Event;
use ubcache_env::{Env, Nanos, Priority, Volume};
use ubcache_format::{CacheMode, SECTOR_BYTES, Uuid};
use ubcache_host::{Host, IoBackend, signal};
use ubcache_nbd::Exports;

use crate::config::{Named, NbdAddress, ServeConfig, export_names};
use crate::control::socket_directories;
use crate::control_server::ControlServer;
use crate::failure::Failure;
use crate::listen::Listeners;
use crate::precheck::{Members, precheck};
use crate::report::{
    AbsentReport, BackingReport, CacheReport, Counters, Report, SetReport, StatsReport, VolumeReport,
};
use crate::size::show_size;
use crate::target::missing_room;
use crate::world::World;

/// The engine in the world of this daemon.
pub type Set = CacheSet<World>;
/// Its volumes.
pub type VolumeOfSet = CachedVolume<World>;

/// How long a stop waits for the requests of clients.
const CLIENTS_PATIENCE: Nanos = Nanos::from_secs(10);

/// What is served, once it is.
#[derive(Clone, Debug)]
pub struct Ready {
    /// UUID of the set.
    pub set: Uuid,
    /// The control socket.
    pub control: PathBuf,
    /// How I/O is done: `ring` or `pool`.
    pub io: &'static str,
    /// The exports: name, size in bytes, URIs.
    pub exports: Vec<(String, u64, Vec<String>)>,
}

/// Everything about the running set that its parts share.
pub struct Daemon {
    /// The engine.
    pub set: Set,
    /// UUID of the set.
    pub uuid: Uuid,
    /// The volumes, in the order of the command line.
    pub volumes: Vec<Served>,
    cache_path: PathBuf,
    /// Set when somebody wants the daemon to end.
    pub stop_wanted: Event,
    /// Set when the devices are closed.
    pub stopped: Event,
    /// Why the stop did not succeed.
    pub stop_failure: std::cell::RefCell<Option<String>>,
}

/// A volume and what the engine does not know of it.
pub struct Served {
    /// Name of its export.
    pub name: String,
    /// The volume.
    pub volume: Rc<VolumeOfSet>,
    path: PathBuf,
    /// The backing device takes no writes any more.
    lost: Rc<Cell<bool>>,
}

impl Served {
    /// The state in one word.
    fn state(&self) -> &'static str {
        if self.lost.get() { VolumeState::Failed.word() } else { self.volume.state().word() }
    }
}

/// Serves until told to stop. `ready` is called once, when clients can connect.
pub fn serve(config: &ServeConfig, ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    let members = precheck(config)?;
    names_of(config, &members)?;
    hold_memory(config.lock_memory)?;
    let host = Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))?;
    host.set_busy_poll(config.busy_poll);
    let world = World::new(host.env());
    let io = host.backend_name();
    let signals = [signal::SIGTERM, signal::SIGINT]
        .map(|number| host.signal(number))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::refused_because("signals", format_args!("can't wait for them: {error}")))?;
    host.block_on(async {
        let daemon = Rc::new(Box::pin(open(&world, config, &members)).await?);
        for signal in signals {
            let daemon = daemon.clone();
            world.spawn(Priority::Foreground, async move {
                signal.wait().await;
                daemon.stop_wanted.set();
            });
        }
        let result = run(&world, config, &daemon, io, ready).await;
        match result {
            Ok(()) => Ok(()),
            Err(failure) => {
                // What was refused is what the user has to hear about; the set closes as well as it can.
                let _ = daemon.set.stop().await;
                Err(failure)
            }
        }
    })
}

/// Before any thread is started: see [`ubcache_host::memory`].
fn hold_memory(lock: bool) -> Result<(), Failure> {
    if let Err(error) = ubcache_host::memory::become_io_flusher() {
        tracing::debug!(%error, "not allowed to be an I/O flusher (PR_SET_IO_FLUSHER, CAP_SYS_RESOURCE)");
    }
    if !lock {
        return Ok(());
    }
    ubcache_host::memory::lock_memory().map_err(|error| {
        Failure::usage("--lock-memory", format_args!("can't keep memory from being paged out: {error}"))
            .expected("root, or no limit for locked memory")
            .advice("`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the systemd unit")
    })
}

async fn open(world: &World, config: &ServeConfig, members: &Members) -> Result<Daemon, Failure> {
    let uuid = members.cache.set_uuid;
    let names = names_of(config, members)?;
    for path in std::iter::once(&members.cache_path) {
        if let Some((missing, free)) = missing_room(path) {
            tracing::warn!(
                path = %path.display(),
                "a sparse file: {} of it have no room yet, and {} are free on its file system; when that is full, the cache \
                 gets no larger",
                show_size(missing),
                show_size(free)
            );
        }
    }
    // All devices are taken before anything is changed on any of them.
    let cache = world.open(&members.cache_path, config.page_cache, Nanos(0)).await?;
    let delay = Nanos::from_micros(u64::try_from(config.backing_delay.as_micros()).unwrap_or(u64::MAX));
    let mut backings = Vec::new();
    for path in &config.backings {
        let backing = world.open(path, config.page_cache, delay).await?;
        if !config.trust_discards && backing.refuse_vague_discards() {
            tracing::info!(
                device = %path.display(),
                "discards are not passed on to this device, as nothing says that what it discarded reads the same every \
                 time (--trust-discards passes them on)"
            );
        }
        backings.push(backing);
    }
    let choices = choices(config, &names)?;
    let unchosen = members.backings.iter().zip(&choices).filter(|(_, choice)| choice.is_none());
    let expected = unchosen.map(|(superblock, _)| superblock.clone()).collect();
    let mut options = SetOptions { keep_clean: config.keep_clean, expected, ..SetOptions::default() };
    if let Some(bytes) = config.index_memory {
        options.tuning.extents_in_memory_max = (bytes / EXTENT_MEMORY_BYTES) as usize;
    }
    let set = CacheSet::open(world.clone(), cache, options).await.map_err(|error| match &error {
        EngineError::OlderCopy { uuid, .. } => {
            let at = members.backings.iter().position(|superblock| superblock.uuid == *uuid);
            let at = at.expect("only what is expected is refused");
            member_failure(&members.cache_path, &config.backings[at], &names[at], &error)
        }
        error => engine_failure(&members.cache_path, error),
    })?;
    say_unused(&members.cache_path, &config.backings, &set);
    if let Some(TakenOver { from, dropped_bytes }) = set.taken_over() {
        let whose = match from {
            FormerRun::Driver => "the Linux driver ran this set last",
            FormerRun::Unknown => {
                "ubcache 0.1 ran this set last, or the Linux driver after it, which nothing tells"
            }
            FormerRun::Tool => "`ubcache repair` or `ubcache restore` wrote this set",
        };
        match dropped_bytes {
            Some(bytes) => tracing::info!(
                bytes,
                "{whose}: its clean data was dropped, as it may be stale (--keep-clean keeps it)"
            ),
            None => {
                tracing::info!("{whose}: its clean data was kept (--keep-clean), although it may be stale")
            }
        }
    }
    let mut volumes = Vec::new();
    for (((backing, path), name), choice) in
        backings.into_iter().zip(&config.backings).zip(names).zip(choices)
    {
        let options = AttachOptions { name: name.clone(), read_only: config.read_only, choice };
        let lost = backing.lost();
        match set.attach(backing, options).await {
            Ok(volume) => {
                volumes.push(Served { name: name.clone(), volume, path: path.clone(), lost });
            }
            Err(error) => {
                // The refusal is what the user has to hear about.
                let _ = set.stop().await;
                return Err(match error {
                    EngineError::OfCache(error) => engine_failure(&members.cache_path, &error),
                    error => member_failure(&members.cache_path, path, &name, &error),
                });
            }
        }
    }
    Ok(Daemon {
        set,
        uuid,
        volumes,
        cache_path: members.cache_path.clone(),
        stop_wanted: Event::default(),
        stopped: Event::default(),
        stop_failure: std::cell::RefCell::default(),
    })
}

/// The names of the exports, none of them twice.
fn names_of(config: &ServeConfig, members: &Members) -> Result<Vec<String>, Failure> {
    let labels: Vec<String> = members.backings.iter().map(|superblock| superblock.label_str()).collect();
    let given = config.names.iter().map(Option::as_deref).chain(std::iter::repeat(None));
    let volumes: Vec<Named<'_>> = labels
        .iter()
        .zip(&config.backings)
        .zip(given)
        .map(|((label, path), given)| Named { given, label, path })
        .collect();
    export_names(&volumes)
}

async fn run(
    world: &World,
    config: &ServeConfig,
    daemon: &Rc<Daemon>,
    io: &'static str,
    ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    daemon.set_attributes(None, &config.settings).await.map_err(|error| Failure::usage("--set", error))?;
    let control_path = control_path(config, daemon.uuid)?;
    let control = ControlServer::bind(world, &control_path).await?;
    let addresses = match config.nbd.as_slice() {
        [] => vec![NbdAddress::Unix(control_path.with_extension("nbd"))],
        given => given.to_vec(),
    };
    let exports = Rc::new(Exports::new());
    for served in &daemon.volumes {
        exports
            .add_as(served.name.clone(), String::new(), served.volume.clone())
            .map_err(|error| Failure::refused(&served.path, error).advice("give it another label"))?;
        exports.also_as(&served.name, served.volume.uuid().to_string());
    }
    let listeners = Rc::new(Listeners::bind(world, &addresses, exports).await?);
    let addresses = listeners.addresses();
    let uris = move |name: &str| addresses.iter().map(|address| address.uri(name)).collect::<Vec<_>>();
    listeners.start(world);
    let control = control.start(world, daemon.clone(), uris.clone());
    ready(&Ready {
        set: daemon.uuid,
        control: control_path,
        io,
        exports: daemon
            .volumes
            .iter()
            .map(|served| {
                (served.name.clone(), served.volume.info().sectors * SECTOR_BYTES, uris(&served.name))
            })
            .collect(),
    });
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "can't tell systemd that the daemon is ready");
    }
    tracing::info!(set = %daemon.uuid, io, "serving");

    daemon.stop_wanted.wait().await;
    tracing::info!("stopping");
    // Telling systemd is a courtesy.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    listeners.close(world, CLIENTS_PATIENCE).await;
    let stopped = daemon.set.stop().await;
    if let Err(error) = &stopped {
        *daemon.stop_failure.borrow_mut() = Some(error.to_string());
    }
    daemon.stopped.set();
    control.finish(world).await;
    tracing::info!("stopped");
    stopped.map_err(|error| engine_failure(&daemon.cache_path, &error))
}

/// Where the control socket goes.
fn control_path(config: &ServeConfig, uuid: Uuid) -> Result<PathBuf, Failure> {
    if let Some(path) = &config.control {
        return Ok(path.clone());
    }
    let mut why = None;
    for directory in socket_directories() {
        let made = std::fs::create_dir_all(&directory);
        let writable = made.and_then(|()| {
            // A directory that is there already may belong to somebody else.
            let probe = directory.join(format!(".{}", std::process::id()));
            std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe))
        });
        match writable {
            Ok(()) => return Ok(directory.join(format!("{uuid}.sock"))),
            Err(error) => {
                why = Some(Failure::could_not_run(
                    &directory,
                    format_args!("can't put the control socket there: {error}"),
                ))
            }
        }
    }
    Err(why
        .unwrap_or_else(|| Failure::usage("--control", "there is no usual directory for the control socket"))
        .advice("say where with --control PATH"))
}

/// What the command line says about each disk that is not of one run with the cache.
fn choices(config: &ServeConfig, names: &[String]) -> Result<Vec<Option<Choice>>, Failure> {
    let default = config.drop_clean_cache.then_some(Choice::DropClean);
    let mut choices = vec![default; names.len()];
    let disks = config.believe_disk.iter().map(|name| ("--believe-disk", name, Choice::BelieveDisk));
    let caches = config.believe_cache.iter().map(|name| ("--believe-cache", name, Choice::BelieveCache));
    for (option, given, choice) in disks.chain(caches) {
        let is_it = |(name, path): (&String, &PathBuf)| given == name || path.as_path() == Path::new(given);
        let at = names.iter().zip(&config.backings).position(is_it);
        let at = at.ok_or_else(|| {
            Failure::usage(format_args!("{option} {given}"), "there is no such disk")
                .expected(format_args!("one of {}, or a path after -B", names.join(", ")))
        })?;
        match choices[at] {
            Some(other) if Some(other) != default && other != choice => {
                return Err(Failure::usage(
                    format_args!("{option} {given}"),
                    "the other choice is given, too",
                )
                .expected("one of --believe-disk and --believe-cache for a disk"));
            }
            _ => choices[at] = Some(choice),
        }
    }
    Ok(choices)
}

/// Says so if the cache device is longer than the set.
fn say_unused(path: &Path, backings: &[PathBuf], set: &Set) {
    let unused = set.unused_bytes();
    if unused > 0 {
        let recover = |disk: &PathBuf| {
            format!("`ubcache recover -C {} -B {} --detach`", path.display(), disk.display())
        };
        let recover = backings.iter().map(recover).collect::<Vec<_>>().join("; ");
        tracing::info!(
            cache = %path.display(),
            bytes = unused,
            "the cache device is longer than when the set was made; to use all of it, stop, and make it again: {recover}; \
             `ubcache make -C {} --wipe-bcache`",
            path.display()
        );
    }
}

/// Words for what the engine refuses of a backing device.
fn member_failure(cache: &Path, path: &Path, name: &str, error: &EngineError) -> Failure {
    match error {
        EngineError::OlderCopy { apart, .. } => {
            let what = format_args!("this disk and the cache {} are not of one run", cache.display());
            Failure::refused(path, what)
                .found(apart)
                .expected("the same run on both, as every start and every clean stop leaves it")
                .advice(format_args!(
                    "find the newer one and name that. To go on without it: --drop-clean-cache drops what {cache} has of the \
                     disk if nothing of it is dirty; --believe-disk {name} drops dirty data, too; --believe-cache {name} keeps \
                     dirty data, and writes it over the disk. `ubcache check {cache} -B {path}` says how much it is; nothing \
                     was changed",
                    cache = cache.display(),
                    path = path.display()
                ))
        }
        EngineError::DirtyElsewhere { set, .. } => {
            Failure::refused(path, format_args!("the disk is dirty, and the cache {} knows nothing of it", cache.display()))
                .found(format_args!("state dirty, and no record of the disk in set {set}"))
                .expected("the cache that has the newest data of the disk")
                .advice(format_args!(
                    "find that cache; nothing was changed. If that data is lost, or was given up (ubcache forget-disk), go on with \
                     what the disk has: ubcache forget-cache {} --discard-dirty",
                    path.display()
                ))
        }
        EngineError::WouldLose(why) => Failure::refused(path, format_args!("--drop-clean-cache does not do here: {why}"))
            .expected("a disk that has everything by itself")
            .advice(format_args!(
                "say what counts: --believe-disk {name}, what the disk has, or --believe-cache {name}, the cache's dirty data"
            )),
        EngineError::BeyondEnd { dirty, last, end } => {
            Failure::refused(path, "the disk is shorter than it was, and the cache has dirty data beyond its end")
                .found(format_args!(
                    "the disk ends at byte {}; {} bytes of dirty data beyond that, up to byte {}",
                    end.bytes(),
                    dirty * SECTOR_BYTES,
                    last.bytes()
                ))
                .expected(format_args!("at least {} bytes", last.bytes()))
                .advice(format_args!(
                    "give it its full size again. To give up all dirty data of this disk: ubcache forget-cache {} \
                     --discard-dirty",
                    path.display()
                ))
        }
        error => engine_failure(path, error),
    }
}

/// Words for what the engine refuses.
fn engine_failure(path: &Path, error: &EngineError) -> Failure {
    match error {
        EngineError::Format { what, at, source } => {
            let place = at.map(|at| format!(" (sector {at}, byte {})", at.bytes())).unwrap_or_default();
            Failure::refused(path, format_args!("damaged: {what}{place}"))
                .found(source)
                .expected("metadata as the last run left it")
                .advice("nothing was changed; keep a copy of the cache and the backing devices before trying anything")
        }
        error => Failure::refused(path, error),
    }
}

impl Daemon {
    /// Sets attributes in order, each of the named volume, or of all volumes, or of the set if volumes have none of that
    /// name. If one can't be set, none is. Returns when those that survive a restart are durable.
    pub async fn set_attributes(
        &self,
        volume: Option<&str>,
        settings: &[(String, String)],
    ) -> Result<(), String> {
        let volumes = self.select(volume)?;
        let pairs: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut of_set = vec![false; pairs.len()];
        for served in &volumes {
            for (index, tried) in served.volume.try_attributes(&pairs).into_iter().enumerate() {
                match tried {
                    Err(AttributeError::UnknownName { .. }) if volume.is_none() => of_set[index] = true,
                    tried => tried.map_err(|error| error.to_string())?,
                }
            }
        }
        let pairs_of_set: Vec<(&str, &str)> =
            pairs.iter().zip(&of_set).filter(|(_, of_set)| **of_set).map(|(pair, _)| *pair).collect();
        for tried in self.set.try_attributes(&pairs_of_set) {
            tried.map_err(|error| error.to_string())?;
        }
        for ((name, value), of_set) in pairs.into_iter().zip(of_set) {
            if of_set {
                self.set.set_attribute(name, value).map_err(|error| error.to_string())?;
                continue;
            }
            for served in &volumes {
                served.volume.set_attribute(name, value).map_err(|error| error.to_string())?;
            }
        }
        let not_kept = |error: EngineError| format!("in force, but not kept for the next start: {error}");
        for served in volumes {
            served.volume.save_attributes().await.map_err(not_kept)?;
        }
        if pairs_of_set.is_empty() { Ok(()) } else { self.set.save_attributes().await.map_err(not_kept) }
    }

    /// Reads an attribute: an object from export to value, or the set's value.
    pub fn attribute(&self, volume: Option<&str>, name: &str) -> Result<serde_json::Value, String> {
        let mut values = serde_json::Map::new();
        for served in self.select(volume)? {
            let value =
                if name == "state" { Some(served.state().to_owned()) } else { served.volume.attribute(name) };
            if let Some(value) = value {
                values.insert(served.name.clone(), value.into());
            }
        }
        if !values.is_empty() {
            return Ok(values.into());
        }
        let of_set = if volume.is_none() { self.set.attribute(name) } else { None };
        of_set.map(Into::into).ok_or_else(|| format!("there is no attribute \"{name}\""))
    }

    /// Parts a volume from the set, and says which it was.
    pub async fn detach(&self, volume: Option<&str>) -> Result<String, String> {
        let served = self.only(volume)?;
        tracing::info!(export = served.name, "detaching");
        self.set.detach(&served.volume).await.map_err(|error| error.to_string())?;
        tracing::info!(export = served.name, "detached");
        Ok(served.name.clone())
    }

    /// Gives a detached volume its cache again, and says which it was.
    pub async fn attach(&self, volume: Option<&str>) -> Result<String, String> {
        let served = self.only(volume)?;
        self.set.attach_again(&served.volume).await.map_err(|error| error.to_string())?;
        tracing::info!(export = served.name, "attached");
        Ok(served.name.clone())
    }

    /// Forgets a disk that is not served, by UUID or label; says in words which it was, and what was given up.
    pub async fn forget_disk(&self, disk: &str, discard_dirty: bool) -> Result<String, String> {
        let is_served = |served: &&Served| {
            let label = served.volume.attribute("label").unwrap_or_default();
            [served.volume.uuid().to_string(), served.name.clone(), label].iter().any(|name| name == disk)
        };
        if let Some(served) = self.volumes.iter().find(is_served) {
            return Err(format!(
                "the disk {disk} is here: it is the export \"{name}\", {path}; to part it from its cache with all of its data: \
                 ubcache detach {name}",
                name = served.name,
                path = served.path.display()
            ));
        }
        let absent = self.set.absent();
        let meant: Vec<&Absent> = absent
            .iter()
            .filter(|it| disk == it.uuid.to_string() || !disk.is_empty() && disk == it.label)
            .collect();
        let uuids = |of: &mut dyn Iterator<Item = &Absent>| {
            of.map(|it| it.uuid.to_string()).collect::<Vec<_>>().join(", ")
        };
        let absent = match meant.as_slice() {
            [absent] => *absent,
            [] if absent.is_empty() => {
                return Err(format!("there is no disk \"{disk}\", and none that is not served"));
            }
            [] => {
                return Err(format!(
                    "there is no disk \"{disk}\"; not served are {}",
                    uuids(&mut absent.iter())
                ));
            }
            several => {
                return Err(format!(
                    "several disks have the label \"{disk}\"; say which by UUID: {}",
                    uuids(&mut several.iter().copied())
                ));
            }
        };
        let name = match absent.label.as_str() {
            "" => absent.uuid.to_string(),
            label => format!("{} ({label})", absent.uuid),
        };
        let dropped = self.set.forget(absent.uuid, discard_dirty).await.map_err(|error| match error {
            EngineError::HasDirty(bytes) => format!(
                "the newest data of the disk {name} is in the cache only: {}. If the disk still exists, `ubcache stop`, and serve it \
                 as well. To give that data up: ubcache forget-disk {} --discard-dirty",
                show_size(bytes),
                absent.uuid
            ),
            error => error.to_string(),
        })?;
        tracing::info!(disk = name, dropped, "forgotten");
        Ok(match dropped {
            0 => format!("{name}: forgotten"),
            bytes => format!("{name}: forgotten, with {} that only the cache had", show_size(bytes)),
        })
    }

    fn only(&self, volume: Option<&str>) -> Result<&Served, String> {
        match self.select(volume)?.as_slice() {
            [served] => Ok(served),
            several => {
                let names: Vec<&str> = several.iter().map(|served| served.name.as_str()).collect();
                Err(format!("say which export: there are {}", names.join(", ")))
            }
        }
    }

    fn select(&self, volume: Option<&str>) -> Result<Vec<&Served>, String> {
        let found: Vec<&Served> =
            self.volumes.iter().filter(|served| volume.is_none_or(|name| name == served.name)).collect();
        match (found.is_empty(), volume) {
            (true, Some(name)) => Err(format!("there is no export \"{name}\"")),
            _ => Ok(found),
        }
    }

    /// The report of `status --json`.
    pub fn report(&self, uris: impl Fn(&str) -> Vec<String>) -> Report {
        let status = self.set.status();
        let volumes = self.volumes.iter().map(|served| {
            let status = served.volume.status();
            VolumeReport {
                name: served.name.clone(),
                backing: BackingReport {
                    path: served.path.display().to_string(),
                    counters: counters(&status.backing),
                },
                size_bytes: status.size_bytes,
                mode: mode_name(status.mode).to_owned(),
                state: served.state().to_owned(),
                dirty_bytes: status.dirty_bytes,
                stats: StatsReport {
                    cache_hits: status.stats.cache_hits,
                    cache_misses: status.stats.cache_misses,
                    cache_bypass_hits: status.stats.cache_bypass_hits,
                    cache_bypass_misses: status.stats.cache_bypass_misses,
                    bypassed_bytes: status.stats.bypassed_bytes,
                    cache_miss_collisions: status.stats.cache_miss_collisions,
                    fills_doomed: status.stats.fills_doomed,
                    durable_invalidations: status.stats.durable_invalidations,
                },
                uris: uris(&served.name),
            }
        });
        let absent = self.set.absent().into_iter().map(|absent| AbsentReport {
            uuid: absent.uuid.to_string(),
            label: absent.label,
            dirty_bytes: absent.dirty_bytes,
        });
        let set = SetReport {
            uuid: self.uuid.to_string(),
            state: match &status.failed {
                Some(why) => format!("failed: {why}"),
                None => "running".to_owned(),
            },
            cache: CacheReport {
                path: self.cache_path.display().to_string(),
                size_bytes: status.size_bytes,
                bucket_bytes: status.bucket_bytes,
                available_percent: status.available_percent as f64,
                put_aside_bytes: status.put_aside_bytes,
                counters: counters(&status.cache),
            },
            volumes: volumes.collect(),
            absent: absent.collect(),
        };
        Report { version: env!("CARGO_PKG_VERSION").to_owned(), sets: vec![set] }
    }
}

fn counters(from: &ubcache_engine::DeviceCounters) -> Counters {
    Counters {
        reads: from.reads,
        read_bytes: from.read_bytes,
        writes: from.writes,
        written_bytes: from.written_bytes,
        flushes: from.flushes,
        errors: from.errors,
    }
}

/// The word of the `cache_mode` attribute.
fn mode_name(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::Writethrough => "writethrough",
        CacheMode::Writeback => "writeback",
        CacheMode::Writearound => "writearound",
        CacheMode::None => "none",
    }
}
