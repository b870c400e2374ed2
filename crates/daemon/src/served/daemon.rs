//! The running set and the state that its parts share: the volumes, attributes, the report.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ubcache_engine::settings::table::{Attribute, OF_SETS, OF_VOLUMES, nearest};
use ubcache_engine::{
    AttributeError, CacheSet, CachedVolume, EngineError, Exported, FlashVolume, ServedVolume,
    VolumeState,
};
use ubcache_env::local::{Event, Lock};
use ubcache_format::Uuid;
use ubcache_host::FileToRead;
use ubcache_nbd::{Exports, Rates};

use super::former_set::Former;
use super::header_copy::{CacheCopies, OpenHeader};
use super::health::{Health, warnings};
use super::late_writes::LateWrites;
use super::listen::Listeners;
use super::moving::Moving;
use super::pace::Paces;
use super::report::{
    AbsentReport, BackingReport, CacheReport, Counters, DownReport, LogReport, MemoryReport,
    Report, SetReport, StatsReport, VolumeReport,
};
use super::request_report::{paths, periods, reasons};
use super::scrub_report::ScrubReport;
use super::shrinking::Shrinking;
use super::upgrades::Upgrades;
use super::world::World;
use crate::backing::Remote;
use crate::config::ServeConfig;
use crate::control::names::SharedNames;
use crate::control::refusal::{Kind, Refusal};
use crate::open::precheck::Down;
use crate::ublk::device::BlockDevice;
use crate::vhost_user::socket::GuestSocket;

/// The running set: state that all parts of the daemon share.
pub struct Daemon<W: World> {
    pub(crate) world: W,
    pub(crate) config: ServeConfig,
    pub(crate) set: RefCell<CacheSet<W>>,
    /// Sets whose cache was replaced, and which some volume still needs.
    pub(crate) former: RefCell<Vec<Former<W>>>,
    /// Set when the set has ended because another one has taken its place.
    pub(crate) set_ended: RefCell<Rc<Event>>,
    /// UUID of the set, at the start.
    pub uuid: Uuid,
    pub(crate) volumes: RefCell<Vec<Rc<Served<W>>>>,
    pub(crate) flash: RefCell<Vec<Rc<ServedFlash<W>>>>,
    pub(crate) down: RefCell<Vec<Down>>,
    pub(crate) cache_path: RefCell<PathBuf>,
    /// The cache device, for the copies of headers on it.
    pub(crate) header_copies: RefCell<Option<CacheCopies>>,
    pub(crate) late_writes: LateWrites,
    /// Reason why there is no cache.
    pub(crate) no_cache: RefCell<Option<String>>,
    /// The place of the kept memory of its sets, if there is one.
    pub(crate) kept_directory: Option<PathBuf>,
    pub(crate) exports: Rc<Exports<Exported<W>>>,
    pub(crate) listeners: RefCell<Option<Rc<Listeners<W>>>>,
    pub(crate) block_devices: RefCell<Vec<Rc<BlockDevice>>>,
    pub(crate) guest_sockets: RefCell<Vec<Rc<GuestSocket>>>,
    /// Number of the next stream of a guest.
    pub(crate) guest_streams: Rc<Cell<u64>>,
    /// Volumes come and go, and caches, one at a time.
    pub(crate) membership: Lock,
    /// Volumes that are being moved to other disks.
    pub(crate) moves: RefCell<Vec<Rc<Moving<W>>>>,
    /// The cache is becoming smaller.
    pub(crate) shrinking: RefCell<Option<Rc<Shrinking<W>>>>,
    /// The path by which this program was started.
    pub(crate) program: PathBuf,
    pub(crate) upgrades: Upgrades,
    /// The names by which the control API finds the set.
    pub(crate) published: RefCell<Option<SharedNames>>,
    /// Words of the requests at the control socket that are under way.
    pub(crate) commands: RefCell<Vec<&'static str>>,
    /// Speeds of writeback.
    pub(crate) paces: Paces,
    /// Maps are drawn one at a time.
    pub(crate) drawing: Lock,
    /// The set has failed, no volume is whole, and no client is connected.
    pub(crate) nothing_left: Cell<bool>,
    /// Limits of exports that were changed since the start.
    pub(crate) rates: RefCell<BTreeMap<String, Rates>>,
    /// Other sets are served by the same process.
    pub(crate) shares_process: bool,
    /// Set when a signal or a client requests the end of the daemon.
    pub stop_wanted: Event,
    /// Set when the devices are closed.
    pub stopped: Event,
    /// Reason why the stop did not succeed.
    pub stop_failure: std::cell::RefCell<Option<String>>,
}

/// A volume, and the daemon's own state of it.
pub struct Served<W: World> {
    /// Name of its export.
    pub name: String,
    /// The volume that clients use.
    pub volume: Rc<ServedVolume<W>>,
    pub(crate) path: PathBuf,
    /// The backing device takes no writes any more.
    pub(crate) lost: Rc<Cell<bool>>,
    /// The backing device, if it is behind a network.
    pub(crate) remote: Option<Rc<Remote>>,
    /// The header of a disk that has no superblock.
    pub(crate) header: Option<Rc<OpenHeader>>,
}

/// A flash-only volume that is served.
pub struct ServedFlash<W: World> {
    /// Name of its export.
    pub name: String,
    /// Its label.
    pub label: String,
    /// The volume that clients use.
    pub volume: Rc<FlashVolume<W>>,
}

impl<W: World> Served<W> {
    /// The state in one word.
    pub(crate) fn state(&self) -> &'static str {
        if self.lost.get() { VolumeState::Failed.word() } else { self.now().state().word() }
    }

    /// The volume as it is now, with the cache that it has now.
    pub(crate) fn now(&self) -> Rc<CachedVolume<W>> {
        self.volume.current()
    }
}

impl<W: World> Daemon<W> {
    /// The set.
    pub fn set(&self) -> CacheSet<W> {
        self.set.borrow().clone()
    }

    /// The set, and its cache device for threads that read it, if it has one. An error is logged:
    /// then the set's thread reads all.
    pub(crate) fn cache_to_read(&self) -> Option<(Uuid, FileToRead)> {
        let copies = self.header_copies.borrow();
        let file = copies.as_ref()?.device().file()?.to_read();
        let failed = |error: &std::io::Error| {
            let cache = self.cache_path.borrow();
            tracing::warn!(cache = %cache.display(), %error, "no descriptor for other threads");
        };
        Some((self.set().status().uuid, file.inspect_err(failed).ok()?))
    }

    /// The move of an export that is under way.
    pub(crate) fn move_of(&self, name: &str) -> Option<Rc<Moving<W>>> {
        self.moves.borrow().iter().find(|moving| moving.name == name).cloned()
    }

    /// The volumes, in the order of the command line and of their coming.
    pub fn volumes(&self) -> Vec<Rc<Served<W>>> {
        self.volumes.borrow().clone()
    }

    /// Sets attributes in order, each of the named volume, or of all volumes, or of the set if
    /// volumes have none of that name. If one can't be set, none is. Returns when those that
    /// survive a restart are durable.
    pub async fn set_attributes(
        &self,
        volume: Option<&str>,
        settings: &[(String, String)],
    ) -> Result<(), Refusal> {
        let volumes = self.select(volume)?;
        let mut pairs: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // Some limit others, and the order of an object's fields says nothing: that of the table
        // is tried where the given one is refused, and its reverse.
        let place = |name: &str| OF_VOLUMES.iter().position(|it| it.name == name);
        let refused = |pairs: &[(&str, &str)]| {
            let tried = volumes.iter().flat_map(|served| served.now().try_attributes(pairs));
            tried.into_iter().any(|it| matches!(it, Err(AttributeError::OutOfRange { .. })))
        };
        if pairs.len() > 1 && refused(&pairs) {
            let given = pairs.clone();
            pairs.sort_by_key(|(name, _)| place(name));
            if refused(&pairs) {
                pairs.reverse();
            }
            if refused(&pairs) {
                pairs = given;
            }
        }
        let mut of_set = vec![false; pairs.len()];
        for served in &volumes {
            for (index, tried) in served.now().try_attributes(&pairs).into_iter().enumerate() {
                match tried {
                    Err(AttributeError::UnknownName { .. }) if volume.is_none() => {
                        of_set[index] = true
                    }
                    tried => tried.map_err(|error| self.refusal(volume, error))?,
                }
            }
        }
        let pairs_of_set: Vec<(&str, &str)> = pairs
            .iter()
            .zip(&of_set)
            .filter(|(_, of_set)| **of_set)
            .map(|(pair, _)| *pair)
            .collect();
        for tried in self.set().try_attributes(&pairs_of_set) {
            tried.map_err(|error| self.refusal(volume, error))?;
        }
        for ((name, value), of_set) in pairs.into_iter().zip(of_set) {
            if of_set {
                self.set().set_attribute(name, value)?;
                continue;
            }
            for served in &volumes {
                served.now().set_attribute(name, value)?;
            }
        }
        let not_kept = |error: EngineError| {
            let what = "in effect, but not stored for the next start";
            Refusal::new(Kind::Failed, format_args!("{what}: {error}"))
        };
        for served in volumes {
            served.now().save_attributes().await.map_err(not_kept)?;
        }
        if !pairs_of_set.is_empty() {
            self.set().save_attributes().await.map_err(not_kept)?;
        }
        for (name, value) in settings {
            tracing::info!(export = volume.unwrap_or("all"), name, value, "attribute set");
        }
        Ok(())
    }

    /// Reads an attribute: an object from export to value, or the set's value.
    pub fn attribute(
        &self,
        volume: Option<&str>,
        name: &str,
    ) -> Result<serde_json::Value, Refusal> {
        let mut values = serde_json::Map::new();
        for served in self.select(volume)? {
            let value = if name == "state" {
                Some(served.state().to_owned())
            } else {
                served.now().attribute(name)
            };
            if let Some(value) = value {
                values.insert(served.name.clone(), value.into());
            }
        }
        if !values.is_empty() {
            return Ok(values.into());
        }
        let of_set = if volume.is_none() { self.set().attribute(name) } else { None };
        of_set.map(Into::into).ok_or_else(|| self.unknown(volume, name))
    }

    /// All attributes: of each export, and those of the set unless one export is asked for.
    pub fn attributes(&self, volume: Option<&str>) -> Result<serde_json::Value, Refusal> {
        let object = |attributes: Vec<(&str, String)>| -> serde_json::Value {
            let pairs = attributes.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
            serde_json::Value::Object(pairs.collect())
        };
        let mut volumes = serde_json::Map::new();
        for served in self.select(volume)? {
            let mut values = object(served.now().attributes());
            values["state"] = served.state().into();
            volumes.insert(served.name.clone(), values);
        }
        let mut all = serde_json::Map::from_iter([("volumes".to_owned(), volumes.into())]);
        if volume.is_none() {
            all.insert("set".to_owned(), object(self.set().attributes()));
        }
        Ok(all.into())
    }

    /// A refused setting in words; an unknown name with all that are known.
    fn refusal(&self, volume: Option<&str>, error: AttributeError) -> Refusal {
        match error {
            AttributeError::UnknownName { name, .. } => self.unknown(volume, &name),
            error => error.into(),
        }
    }

    fn unknown(&self, volume: Option<&str>, name: &str) -> Refusal {
        let names = |attributes: &'static [Attribute]| attributes.iter().map(|it| it.name);
        let listed =
            |names: &mut dyn Iterator<Item = &'static str>| names.collect::<Vec<_>>().join(", ");
        let of_volumes = listed(&mut names(OF_VOLUMES));
        let of_sets = if volume.is_none() { OF_SETS } else { &[] };
        let near = nearest(name, names(OF_VOLUMES).chain(names(of_sets)));
        let meant = near.map_or_else(String::new, |near| format!(": did you mean \"{near}\"?"));
        let said = match volume {
            Some(_) => {
                format!(
                    "there is no attribute \"{name}\" of an export{meant}; known are {of_volumes}"
                )
            }
            None => format!(
                "there is no attribute \"{name}\"{meant}; known are of exports: {of_volumes}; of \
                 the set: {}",
                listed(&mut names(OF_SETS))
            ),
        };
        Refusal::new(Kind::Missing, said)
    }

    /// Detaches a volume from the set, and returns its name.
    pub async fn detach(&self, volume: Option<&str>) -> Result<String, Refusal> {
        let served = self.only(volume)?;
        let detached = self.set_of(&served).detach(&served.now()).await;
        detached.map_err(|error| {
            tracing::error!(export = served.name, "the detach failed: {error}");
            Refusal::new(Kind::Conflict, error)
        })?;
        Ok(served.name.clone())
    }

    /// Gives a detached volume its cache again, and returns its name.
    pub async fn attach(&self, volume: Option<&str>) -> Result<String, Refusal> {
        let served = self.only(volume)?;
        let now = served.now();
        if self.no_cache.borrow().is_some() {
            let advice = "there is no cache; to give the volumes one that `ubcache make -C NEW` \
                          has made: ubcache attach --cache NEW";
            return Err(Refusal::new(Kind::Conflict, advice));
        }
        let attached = match self.set().has(&now) {
            true => self.set().attach_again(&now).await,
            false => {
                let _one = self.change_membership().await?;
                self.move_volume(&served).await.inspect(|()| self.end_former_sets())
            }
        };
        attached.map_err(|error| {
            tracing::error!(export = served.name, "the attach failed: {error}");
            Refusal::new(Kind::Conflict, error)
        })?;
        Ok(served.name.clone())
    }

    pub(crate) fn only(&self, volume: Option<&str>) -> Result<Rc<Served<W>>, Refusal> {
        match self.select(volume)?.as_slice() {
            [served] => Ok(served.clone()),
            several => {
                let names: Vec<&str> = several.iter().map(|served| served.name.as_str()).collect();
                let names = names.join(", ");
                let said = format_args!("several exports ({names}): name one of them").to_string();
                Err(Refusal::new(Kind::Conflict, said))
            }
        }
    }

    pub(crate) fn select(&self, volume: Option<&str>) -> Result<Vec<Rc<Served<W>>>, Refusal> {
        let found: Vec<Rc<Served<W>>> = self
            .volumes()
            .into_iter()
            .filter(|served| volume.is_none_or(|name| self.is_named(served, name)))
            .collect();
        match (found.is_empty(), volume) {
            (true, Some(name)) => {
                let names = self.volumes();
                let names = names.iter().map(|served| served.name.as_str());
                Err(Refusal::missing("export", name, names))
            }
            _ => Ok(found),
        }
    }

    /// UUID of the set now.
    pub(crate) fn uuid_now(&self) -> Uuid {
        if self.no_cache.borrow().is_some() { self.uuid } else { self.set().status().uuid }
    }

    /// Returns true if the name means that volume: its own, or `SET/EXPORT`.
    fn is_named(&self, served: &Served<W>, name: &str) -> bool {
        let with_set = || {
            let (set, export) = name.split_once('/')?;
            Some(self.config.origin.as_ref()?.set == set && served.name == export)
        };
        name == served.name || with_set().unwrap_or(false)
    }

    /// The report of `status --json`.
    pub fn report(&self, uris: impl Fn(&str) -> Vec<String>) -> Report {
        let status = self.set().status();
        let no_cache = self.no_cache.borrow().clone();
        let served = self.volumes();
        let volumes = served.iter().map(|served| {
            let status = served.now().status();
            VolumeReport {
                name: served.name.clone(),
                uuid: status.uuid.to_string(),
                label: served.now().attribute("label").unwrap_or_default(),
                backing: BackingReport {
                    path: served.path.display().to_string(),
                    latency: (&status.backing_latencies).into(),
                    connection: served.remote.as_ref().map(|it| it.connection().into()),
                    counters: counters(&status.backing),
                },
                size_bytes: status.size_bytes,
                mode: status.mode.sysfs_word().to_owned(),
                state: served.state().to_owned(),
                dirty_bytes: status.dirty_bytes,
                writeback: self.paces.report(&status),
                scrub: ScrubReport::new(&status),
                moving: self.move_of(&served.name).map(|it| it.report(self.world.now())),
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
                requests: paths(&status.requests),
                bypassed: reasons(&status.requests),
                periods: periods(&status.periods),
                frontends: self.frontends(&served.name),
                uris: uris(&served.name),
            }
        });
        let absent = self.set().absent().into_iter().map(|absent| AbsentReport {
            uuid: absent.uuid.to_string(),
            label: absent.label,
            dirty_bytes: absent.dirty_bytes,
        });
        let held = self.set().held();
        let origin = self.config.origin.as_ref();
        let mut set = SetReport {
            name: origin.map(|origin| origin.set.clone()).unwrap_or_default(),
            file: origin.map(|it| it.file.display().to_string()).unwrap_or_default(),
            uuid: self.uuid_now().to_string(),
            health: String::new(),
            warnings: Vec::new(),
            state: match (&no_cache, &status.failed) {
                (Some(why), _) => format!("no cache: {why}"),
                (None, Some(why)) => format!("failed: {why}"),
                (None, None) => "running".to_owned(),
            },
            cache: CacheReport {
                path: self.cache_path.borrow().display().to_string(),
                size_bytes: if no_cache.is_some() { 0 } else { status.size_bytes },
                bucket_bytes: status.bucket_bytes,
                available_percent: status.available_percent as f64,
                filled_percent: status.filled_percent,
                used_bytes: status.used_bytes,
                dirty_bytes: status.volumes.iter().map(|volume| volume.dirty_bytes).sum::<u64>()
                    + status.flash.iter().map(|volume| volume.used_bytes).sum::<u64>(),
                counted: status.counted,
                put_aside_bytes: status.put_aside_bytes,
                flash_room_bytes: status.flash_room_bytes,
                shrinking: self.shrinking.borrow().as_ref().map(|it| it.report(self.world.now())),
                latency: (&status.cache_latencies).into(),
                counters: counters(&status.cache),
            },
            volumes: volumes.collect(),
            flash: self.flash_report(&uris),
            absent: absent.collect(),
            down: self.down.borrow().iter().map(DownReport::from).collect(),
            periods: periods(&self.set().periods()),
            memory: MemoryReport {
                bytes: held.bytes(),
                extents: held.extents,
                in_flight: held.in_flight,
                copies: held.copies,
                unflushed: held.unflushed,
                ghosts: held.ghosts,
                streams: held.streams,
            },
            log: LogReport { dropped_lines: crate::log::dropped_lines() },
        };
        let found = warnings(&set);
        set.health = found.first().map_or(Health::Healthy, |(health, _)| *health).to_string();
        set.warnings = found.into_iter().map(|(_, text)| text).collect();
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
