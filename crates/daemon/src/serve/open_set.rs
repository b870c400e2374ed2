//! Opening of a set: its devices, the engine, its volumes.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_engine::{
    AttachOptions, AttributeError, CacheSet, CacheUse, CachedVolume, Choice, EngineError,
    FormerRun, Replayed, ServedVolume, SetOptions, TakenOver,
};
use ubcache_env::KeptMemory;
use ubcache_env::local::{Event, Lock};
use ubcache_format::BackingState;
use ubcache_host::{HostDisk, HostFile};
use ubcache_nbd::Exports;

use super::names::{choices, names_among, names_of};
use crate::config::ServeConfig;
use crate::failure::Failure;
use crate::open::precheck::{Down, Member, Members, dirty_without_cache};
use crate::open::refusal::{engine_failure, member_failure};
use crate::open::target::missing_room;
use crate::served::backing::{Backing, open_backing, say_witness};
use crate::served::cache::{set_options, without_cache};
use crate::served::daemon::{Daemon, Served};
use crate::served::header_copy::CacheCopies;
use crate::served::kept::{kept_memory, say_kept};
use crate::served::late_writes::LateWrites;
use crate::served::pace::Paces;
use crate::served::upgrades::Upgrades;
use crate::served::world::{World, open as open_device};
use crate::size::show_size;
use crate::upgrade::heritage::own_path;
use crate::upgrade::state::{State, VolumeState};
use crate::vhost_user::socket::FIRST_STREAM;

/// The set, or the reason why its disks are served without it.
type Opened<W> = (CacheSet<W>, Option<String>);

/// Opens a set and its volumes.
pub(super) async fn open<W: World>(
    world: &W,
    config: &ServeConfig,
    members: &Members,
    inherited: Option<&State>,
    kept_directory: Option<PathBuf>,
) -> Result<Daemon<W>, Failure> {
    names_of(members)?;
    let uuid = match &members.cache {
        Ok(cache) => cache.set_uuid,
        Err(_) => members.backings[0].superblock.set_uuid,
    };
    say_sparse(&members.cache_path);
    let mut down = members.down.clone();
    // All devices are taken before anything is changed on any of them.
    let cache = match &members.cache {
        Ok(_) => Ok(open_device(world.host(), &members.cache_path, config.page_cache).await?),
        Err(why) => Err(why.clone()),
    };
    // Copies of headers go to the cache device as long as it is this one.
    let copies = cache
        .as_ref()
        .ok()
        .map(|cache| CacheCopies::new(&members.cache_path, HostDisk::from(cache.share())));
    let opened = open_backings(world, config, members, (copies.as_ref(), &mut down)).await;
    if opened.is_empty() && !config.backings.is_empty() {
        return Err(first_reason(down));
    }
    let served: Vec<&Member> = opened.iter().map(|(member, _)| *member).collect();
    let names = names_among(&served)?;
    let choices = choices(config, &served, &names)?;
    let kept = match &cache {
        Ok(_) => kept_memory(world.host(), kept_directory.as_deref(), uuid).await,
        Err(_) => None,
    };
    let known = Known { members, served: &served, names: &names, choices: &choices, kept };
    let (set, no_cache) = open_set(world, config, cache, &known).await?;
    if let Some(state) = inherited {
        set.remember(&state.attributes).unwrap_or_else(not_kept);
    }
    if no_cache.is_none() {
        say_unused(&members.cache_path, &set);
    }
    set.taken_over().into_iter().for_each(say_taken_over);
    set.kept_state().into_iter().for_each(say_kept);
    if let Err(why) = check_choices(&set, &known).await {
        return refuse(&set, why).await;
    }
    let may_write_late = |(_, backing): &(&Member, Backing)| backing.may_write_late();
    let late_writes = match inherited {
        Some(_) => LateWrites::of_upgrade(kept_directory.as_deref(), uuid),
        None => {
            let was_clean = no_cache.is_none() && was_clean(&set);
            LateWrites::of_start(world, kept_directory.as_deref(), uuid, was_clean)
        }
    };
    if opened.iter().any(may_write_late) {
        late_writes.pass(world).await;
    }
    let mut volumes = Vec::new();
    for (((member, backing), name), choice) in opened.into_iter().zip(names).zip(choices) {
        let path = &member.path;
        if no_cache.is_some() && member.superblock.state() == BackingState::Dirty {
            let why = dirty_without_cache(path, Some(&name), &member.superblock);
            down.push(Down::new(path, Some(&name), why));
            continue;
        }
        let cache = match no_cache {
            Some(_) => CacheUse::Uncached,
            None => CacheUse::UnlessDetached,
        };
        let read_only = config.read_only.holds_for(&name);
        let options = AttachOptions { name: name.clone(), read_only, cache, choice };
        let Backing { device, lost, remote, header } = backing;
        match set.attach(world.backing(device), options).await {
            Ok(volume) => {
                say_witness(&name, &volume);
                if no_cache.is_none() && volume.needs_no_cache() {
                    tracing::info!(
                        export = name,
                        "served without a cache, as it was detached: `ubcache attach {name}` \
                         gives it one"
                    );
                }
                // Before its writeback begins.
                match known_volume(inherited, &name) {
                    Some(known) => {
                        volume.remember(&known.remembered()).unwrap_or_else(not_kept);
                    }
                    None => set_early(&volume, &config.settings_of(&name)),
                }
                let volume = Rc::new(ServedVolume::new(volume));
                let path = path.clone();
                volumes.push(Rc::new(Served { name, volume, path, lost, remote, header }));
            }
            // The cache failed: no disk can be served.
            Err(EngineError::OfCache(error)) => {
                return refuse(&set, engine_failure(&members.cache_path, &error)).await;
            }
            Err(error) => {
                let why = member_failure(&members.cache_path, path, &name, &error);
                if is_of_all(&error) {
                    return refuse(&set, why).await;
                }
                down.push(Down::new(path, Some(&name), why));
            }
        }
    }
    if volumes.is_empty() && (!down.is_empty() || set.flash_volumes().is_empty()) {
        return refuse(&set, first_reason(down)).await;
    }
    if let Some(state) = inherited {
        let missing = |it: &&Down| state.volumes.iter().any(|volume| volume.name == it.name);
        let missing = down.iter().find(missing).filter(|_| state.failed.is_none());
        if let Some(missing) = missing {
            return refuse(&set, missing.why.clone()).await;
        }
    }
    say_down(&down);
    let exports = Rc::new(Exports::new());
    let has_default = inherited.is_none_or(|state| state.default_export);
    if !has_default || down.iter().any(|down| Some(&down.path) == config.backings.first()) {
        // The empty name never means another disk because the first one is missing.
        exports.drop_default();
    }
    Ok(Daemon {
        world: world.clone(),
        config: config.clone(),
        set: RefCell::new(set),
        former: RefCell::default(),
        set_ended: RefCell::default(),
        uuid,
        volumes: RefCell::new(volumes),
        flash: RefCell::default(),
        down: RefCell::new(down),
        cache_path: RefCell::new(members.cache_path.clone()),
        header_copies: RefCell::new(copies),
        late_writes,
        no_cache: RefCell::new(no_cache),
        kept_directory,
        exports,
        listeners: RefCell::default(),
        block_devices: RefCell::default(),
        guest_sockets: RefCell::default(),
        guest_streams: Rc::new(Cell::new(FIRST_STREAM)),
        membership: Lock::default(),
        moves: RefCell::default(),
        shrinking: RefCell::default(),
        program: inherited.map_or_else(own_path, State::own_program),
        upgrades: Upgrades::default(),
        published: RefCell::default(),
        commands: RefCell::default(),
        paces: Paces::default(),
        drawing: Lock::default(),
        nothing_left: Cell::new(false),
        rates: RefCell::default(),
        shares_process: false,
        stop_wanted: Event::default(),
        stopped: Event::default(),
        stop_failure: RefCell::default(),
    })
}

/// The disks that are going to be served, with their names and choices.
struct Known<'a> {
    members: &'a Members,
    served: &'a [&'a Member],
    names: &'a [String],
    choices: &'a [Option<Choice>],
    kept: Option<Rc<dyn KeptMemory>>,
}

/// Opens the backing devices; those that can't be opened are down.
async fn open_backings<'a, W: World>(
    world: &W,
    config: &ServeConfig,
    members: &'a Members,
    (cache, down): (Option<&CacheCopies>, &mut Vec<Down>),
) -> Vec<(&'a Member, Backing)> {
    let mut opened = Vec::new();
    for member in &members.backings {
        let (path, header) = (&member.path, member.header.as_ref());
        match open_backing(world.host(), config, (path, header), cache).await {
            Ok(backing) => opened.push((member, backing)),
            Err(why) => down.push(Down::new(path, member.given.as_deref(), why)),
        }
    }
    opened
}

/// Opens the set; or a set without a cache, where that may be and the cache can't be had.
async fn open_set<W: World>(
    world: &W,
    config: &ServeConfig,
    cache: Result<HostFile, Failure>,
    known: &Known<'_>,
) -> Result<Opened<W>, Failure> {
    let Known { members, served, names, choices, kept } = known;
    let unchosen = served.iter().zip(*choices).filter(|(_, choice)| choice.is_none());
    let expected = unchosen.map(|(member, _)| member.superblock.clone()).collect();
    let options = SetOptions { expected, kept: kept.clone(), ..set_options(config) };
    let opening = match cache {
        Ok(cache) => match CacheSet::open(world.clone(), world.cache(cache), options).await {
            Ok(set) => Ok(set),
            Err(error @ EngineError::OlderCopy { uuid, .. }) => {
                let at = served.iter().position(|member| member.superblock.uuid == uuid);
                let at = at.expect("only what is expected is refused");
                let (path, name) = (&served[at].path, &names[at]);
                return Err(member_failure(&members.cache_path, path, name, &error));
            }
            Err(error) => Err(engine_failure(&members.cache_path, &error)),
        },
        Err(why) => Err(why),
    };
    match opening {
        Ok(set) => Ok((set, None)),
        Err(why) if config.cache_optional => {
            tracing::error!("there is no cache, clean disks are served without it: {why}");
            let first = why.to_string().lines().next().map(str::to_owned);
            Ok((without_cache(world).await?, first))
        }
        Err(why) => Err(why),
    }
}

/// Returns true if the journal ends as a clean stop leaves it, or as a run that noted nothing.
fn was_clean<W: World>(set: &CacheSet<W>) -> bool {
    let Replayed { entries, records } = set.replayed();
    entries <= 1 && records == 0
}

/// Checks all choices before any disk is changed. Any other error concerns one disk alone.
async fn check_choices<W: World>(set: &CacheSet<W>, known: &Known<'_>) -> Result<(), Failure> {
    let Known { members, served, names, choices, .. } = known;
    for ((member, name), choice) in served.iter().zip(*names).zip(*choices) {
        match set.check_choice(&member.superblock, *choice).await {
            Err(error) if is_of_all(&error) => {
                return Err(member_failure(&members.cache_path, &member.path, name, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns true for an error that an administrator has to decide on before anything is served.
fn is_of_all(error: &EngineError) -> bool {
    matches!(error, EngineError::OlderCopy { .. } | EngineError::WouldLose(_))
}

/// Logs a cache in a sparse file.
fn say_sparse(cache: &Path) {
    if let Some((missing, free)) = missing_room(cache) {
        tracing::warn!(
            path = %cache.display(),
            "a sparse file: {} of it are not allocated, and {} are free on its file system; when \
             that is full, the cache stops growing",
            show_size(missing),
            show_size(free)
        );
    }
}

/// Logs a set that was not run by this program last.
fn say_taken_over(TakenOver { from, dropped_bytes }: TakenOver) {
    let whose = match from {
        FormerRun::Driver => "the Linux driver ran this set last",
        FormerRun::Unknown => {
            "an early ubcache ran this set last, or the Linux driver after it: they can't be told \
             apart"
        }
        FormerRun::Tool => "`ubcache repair` or `ubcache restore` wrote this set",
    };
    match dropped_bytes {
        Some(bytes) => tracing::info!(
            bytes,
            "{whose}: its clean data was dropped, as it may be stale (--keep-clean keeps it)"
        ),
        None => tracing::info!(
            "{whose}: its clean data was kept (--keep-clean), although it may be stale"
        ),
    }
}

/// Logs the disks that are not served.
fn say_down(down: &[Down]) {
    for Down { path, name, why, optional, .. } in down {
        match optional {
            true => tracing::info!(export = name, "not served, as it may be missing: {why:#}"),
            false => tracing::error!(export = name, path = %path.display(), "not served: {why:#}"),
        }
    }
}

/// The volume of that name in the state of the program before.
fn known_volume<'a>(inherited: Option<&'a State>, name: &str) -> Option<&'a VolumeState> {
    inherited?.volumes.iter().find(|known| known.name == name)
}

/// Sets attributes of the start that no device keeps. What can't be set is refused when all
/// attributes are set, also those of the set and of the superblock.
fn set_early<W: World>(volume: &CachedVolume<W>, settings: &[(String, String)]) {
    for (name, value) in settings {
        if !matches!(name.as_str(), "cache_mode" | "label") {
            let _ = volume.set_attribute(name, value);
        }
    }
}

fn not_kept(error: AttributeError) {
    tracing::warn!("an attribute is not kept over the upgrade: {error}");
}

/// Reason for a start without a backing device.
fn first_reason(down: Vec<Down>) -> Failure {
    let first = down.into_iter().next();
    first.map_or_else(|| Failure::usage("-B", "no backing device given"), |down| down.why)
}

/// Ends the set. The refusal is reported, not a failure of the stop.
async fn refuse<W: World, T>(set: &CacheSet<W>, why: Failure) -> Result<T, Failure> {
    let _ = set.stop().await;
    Err(why)
}

/// Logs a cache device that is longer than the set: it has grown, or the set became smaller.
fn say_unused<W: World>(path: &Path, set: &CacheSet<W>) {
    let unused = set.unused_bytes();
    if unused > 0 {
        tracing::info!(
            cache = %path.display(),
            bytes = unused,
            "the cache device is longer than the set; to use all of it: `ubcache resize --cache`, \
             then `ubcache upgrade`"
        );
    }
}
