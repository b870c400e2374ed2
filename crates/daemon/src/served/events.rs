//! Words for what happens to the set: a line for each change of state, and errors of devices, which
//! come at most every ten seconds from one device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ubcache_engine::events::{DeviceFault, Difference, FaultyDevice, SetEvent, VolumeChange};
use ubcache_engine::{ScrubState, ScrubStatus, StopStep, VolumeState};
use ubcache_env::local::{Either, first};
use ubcache_env::{IoError, Nanos, Priority};
use ubcache_format::{SECTOR_BYTES, Uuid};

use super::daemon::{Daemon, Served};
use super::world::World;
use crate::log::STATE;
use crate::size::show_size;

/// After a line about errors of a device, the others are counted for so long.
const FAULTS_PAUSE: Nanos = Nanos::from_secs(10);
/// Interval of the lines of a stop that waits.
const STOP_PAUSE: Nanos = Nanos::from_secs(5);

/// Errors of devices that were counted, and are to be logged when the pause of the device ends.
type Counted = RefCell<BTreeMap<FaultyDevice, Vec<DeviceFault>>>;

/// The set whose events are logged: it may be a former one.
struct Followed {
    uuid: Uuid,
    cache: PathBuf,
    counted: Counted,
}

/// Logs the set and its volumes as they were found, and then everything that happens to them.
pub fn log_events<W: World>(daemon: &Rc<Daemon<W>>, world: &W) {
    log_start(daemon);
    follow_events(daemon, world);
}

/// Logs everything that happens to the set that there is now.
pub(crate) fn follow_events<W: World>(daemon: &Rc<Daemon<W>>, world: &W) {
    let (daemon, env, set) = (daemon.clone(), world.clone(), daemon.set());
    let (uuid, cache) = (set.status().uuid, daemon.cache_path.borrow().clone());
    let ended = daemon.set_ended.borrow().clone();
    let has_cache = daemon.no_cache.borrow().is_none();
    let followed = Rc::new(Followed { uuid, cache, counted: Counted::default() });
    world.spawn(Priority::Background, async move {
        while let Either::Left(event) = first(set.next_event(), ended.wait()).await {
            log_event(&daemon, &env, &followed, event);
        }
        // Its devices are open as long as somebody has the set.
        drop(set);
        if has_cache {
            let cache = followed.cache.display();
            tracing::info!(target: STATE, %cache, "the former cache is free");
        }
    });
}

fn log_event<W: World>(
    daemon: &Rc<Daemon<W>>,
    world: &W,
    followed: &Rc<Followed>,
    event: SetEvent,
) {
    match event {
        SetEvent::Failed { reason } => tracing::error!(
            target: STATE,
            set = %followed.uuid,
            cache = %followed.cache.display(),
            "the set has failed: {reason}"
        ),
        SetEvent::Counted => log_counted(daemon),
        SetEvent::Volume { uuid, change } => {
            if let Some(served) = by_uuid(daemon, uuid) {
                log_change(&served, change);
            }
        }
        SetEvent::Fault(fault) => log_fault(daemon, world, followed, fault),
        SetEvent::Differs(found) => log_difference(daemon, followed, &found),
        SetEvent::Lost(events) => {
            tracing::warn!(target: STATE, events, "events were lost: too many at once");
        }
        _ => {}
    }
}

fn by_uuid<W: World>(daemon: &Daemon<W>, uuid: Uuid) -> Option<Rc<Served<W>>> {
    daemon.volumes().into_iter().find(|served| served.now().uuid() == uuid)
}

fn log_start<W: World>(daemon: &Daemon<W>) {
    let (status, replayed) = (daemon.set().status(), daemon.set().replayed());
    let found = if replayed.records > 0 {
        "the last run did not end cleanly: its journal was replayed"
    } else {
        "there was nothing to replay"
    };
    tracing::info!(
        target: STATE,
        version = env!("CARGO_PKG_VERSION"),
        set = %daemon.uuid,
        cache = %daemon.cache_path.borrow().display(),
        size = show_size(status.size_bytes),
        bucket = show_size(status.bucket_bytes),
        journal_entries = replayed.entries,
        changes = replayed.records,
        "the set was opened; {found}"
    );
    for served in &daemon.volumes() {
        let status = served.now().status();
        tracing::info!(
            target: STATE,
            export = served.name,
            disk = %served.path.display(),
            uuid = %status.uuid,
            size = show_size(status.size_bytes),
            mode = status.mode.sysfs_word(),
            state = status.state.word(),
            "the volume was attached"
        );
    }
}

fn log_counted<W: World>(daemon: &Daemon<W>) {
    let status = daemon.set().status();
    let dirty: u64 = status.volumes.iter().map(|volume| volume.dirty_bytes).sum();
    tracing::info!(
        target: STATE,
        dirty = show_size(dirty),
        used = show_size(status.used_bytes),
        size = show_size(status.size_bytes),
        "the content of the cache was counted"
    );
}

fn log_scrub(export: &str, pass: &ScrubStatus) {
    let ended = match pass.state {
        ScrubState::Complete => "the scrub is complete",
        _ => "the scrub was stopped",
    };
    tracing::info!(
        target: STATE,
        export,
        compared = show_size(pass.compared_bytes),
        differing = pass.differing_bytes,
        skipped = pass.skipped_bytes,
        unreadable = pass.unreadable_bytes,
        "{ended}"
    );
}

/// Cached data that a scrub has dropped. Places of the first piece, and the number of all sectors:
/// a disk that was written without ubcache has thousands.
fn log_difference<W: World>(daemon: &Daemon<W>, followed: &Followed, found: &Difference) {
    let Some(served) = by_uuid(daemon, found.uuid) else { return };
    tracing::error!(
        target: STATE,
        export = served.name,
        disk = %served.path.display(),
        bytes = %format_args!("{}-{}", found.range.start.bytes(), found.range.end.bytes()),
        cache = %followed.cache.display(),
        cache_byte = found.cache.bytes(),
        sectors = found.sectors,
        "cached data differed from the disk and was dropped; reads return the data of the disk"
    );
}

fn log_change<W: World>(served: &Served<W>, change: VolumeChange) {
    let (export, disk) = (&served.name, served.path.display());
    match change {
        // Writeback of a light load comes and goes: these two have the limit of other lines.
        VolumeChange::Dirty => tracing::info!(
            export,
            "the volume is dirty: the cache has data that the disk lacks, and writeback begins"
        ),
        VolumeChange::Clean => {
            tracing::info!(export, "the volume is clean: all data is on the disk");
        }
        VolumeChange::DrainStarts => tracing::info!(
            target: STATE,
            export,
            dirty = show_size(served.now().status().dirty_bytes),
            "all dirty data is being written back"
        ),
        VolumeChange::Detached => tracing::info!(
            target: STATE,
            export,
            %disk,
            "detached: all data is on the disk, and requests go past the cache"
        ),
        VolumeChange::Attached => {
            tracing::info!(target: STATE, export, %disk, "attached, with an empty cache");
        }
        VolumeChange::ScrubStarts => {
            tracing::info!(target: STATE, export, %disk, "a scrub compares its cached data");
        }
        VolumeChange::ScrubEnds(pass) => log_scrub(export, &pass),
        VolumeChange::CacheLost => tracing::error!(
            target: STATE,
            export,
            %disk,
            "the volume goes on without its cache, which had nothing that the disk lacks"
        ),
        VolumeChange::Failed { dirty } => tracing::error!(
            target: STATE,
            export,
            %disk,
            dirty = show_size(dirty * SECTOR_BYTES),
            "the volume has failed: the cache had the only copy of its dirty data"
        ),
    }
}

/// Logs an error of a device that has had none for a while; counts the others.
fn log_fault<W: World>(
    daemon: &Rc<Daemon<W>>,
    world: &W,
    followed: &Rc<Followed>,
    fault: DeviceFault,
) {
    let device = fault.device;
    if let Some(counted) = followed.counted.borrow_mut().get_mut(&device) {
        match counted.iter_mut().find(|other| is_like(other, &fault)) {
            Some(same) => same.count += fault.count,
            None => counted.push(fault),
        }
        return;
    }
    word_fault(daemon, followed, &fault, "");
    followed.counted.borrow_mut().insert(device, Vec::new());
    let (daemon, env, followed) = (daemon.clone(), world.clone(), followed.clone());
    world.spawn(Priority::Background, async move {
        loop {
            env.sleep(FAULTS_PAUSE).await;
            let more = followed.counted.borrow_mut().get_mut(&device).map(std::mem::take);
            match more {
                Some(more) if !more.is_empty() => {
                    more.iter().for_each(|fault| word_fault(&daemon, &followed, fault, "more "));
                }
                _ => break,
            }
        }
        followed.counted.borrow_mut().remove(&device);
    });
}

fn is_like(one: &DeviceFault, other: &DeviceFault) -> bool {
    one.operation == other.operation && one.error.errno() == other.error.errno()
}

fn word_fault<W: World>(daemon: &Daemon<W>, followed: &Followed, fault: &DeviceFault, more: &str) {
    let (kind, path) = match fault.device {
        FaultyDevice::Cache => ("cache", Some(followed.cache.clone())),
        FaultyDevice::Backing(uuid) => {
            ("disk", by_uuid(daemon, uuid).map(|served| served.path.clone()))
        }
    };
    let device = path.map(|path| path.display().to_string()).unwrap_or_default();
    let (operation, errno, error) = (fault.operation.word(), fault.error.errno(), &fault.error);
    let (sector, sectors, count) = (fault.range.start.0, fault.range.sectors(), fault.count);
    // Lack of room or memory is no fault of the device.
    if fault.error.is_no_space() || *error == IoError::NoMemory {
        tracing::warn!(
            target: STATE,
            device, operation, sector, sectors, errno, count,
            "{more}requests to the {kind} device failed: {error}"
        );
    } else {
        tracing::error!(
            target: STATE,
            device, operation, sector, sectors, errno, count,
            "{more}requests to the {kind} device failed: {error}"
        );
    }
}

/// Logs what is left in the cache, when the clients are gone.
pub fn log_left<W: World>(daemon: &Daemon<W>) {
    for served in &daemon.volumes() {
        let status = served.now().status();
        tracing::info!(
            target: STATE,
            export = served.name,
            state = served.state(),
            dirty = show_size(status.dirty_bytes),
            "{}",
            match status.dirty_bytes {
                0 => "the volume is stopped; the disk has all data",
                _ => "the volume is stopped; its dirty data stays in the cache",
            }
        );
    }
}

/// While a stop waits, logs every few seconds what it waits for. `clients`: the number of
/// connections with requests under way.
pub fn log_waiting_stop<W: World>(
    daemon: &Rc<Daemon<W>>,
    world: &W,
    clients: impl Fn() -> u64 + 'static,
) {
    let (daemon, env) = (daemon.clone(), world.clone());
    world.spawn(Priority::Background, async move {
        loop {
            env.sleep(STOP_PAUSE).await;
            if daemon.stopped.is_set() {
                return;
            }
            let cache = daemon.cache_path.borrow().display().to_string();
            let waits_for = match daemon.set().stopping_at() {
                None => format!("requests of {} clients", clients()),
                Some(StopStep::Volume(uuid)) => {
                    let served = by_uuid(&daemon, uuid);
                    let disk = served.map_or_else(String::new, |served| {
                        format!("{} (export \"{}\")", served.path.display(), served.name)
                    });
                    format!("requests to the disk {disk}, or its flush")
                }
                Some(StopStep::Metadata) => format!("writes of metadata to {cache}"),
                Some(StopStep::Tasks) => format!("background I/O to {cache}"),
                Some(StopStep::Flush) => format!("the flush of {cache}"),
                Some(StopStep::Runs) => "writes of the superblocks of all devices".to_owned(),
            };
            tracing::warn!(target: STATE, "the stop waits for {waits_for}");
        }
    });
}

/// True if a set has failed, and none of its volumes is whole any more.
pub fn is_all_lost<W: World>(daemon: &Daemon<W>) -> bool {
    daemon.set().status().failed.is_some()
        && daemon.volumes().iter().all(|served| served.now().state() == VolumeState::Failed)
}
