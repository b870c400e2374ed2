//! One daemon: opens a set, serves its volumes over NBD, stops cleanly on request.
//!
//! ```text
//!  precheck ─▶ open cache ─▶ attach backings ─▶ settings ─▶ listen ─▶ "ready" ─▶ wait ─▶ stop
//!  (changes nothing)                                                   SIGTERM, SIGINT, `ubcache stop`
//! ```

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ubcache_engine::{
    AttachOptions, AttributeError, CacheSet, CacheUse, CachedVolume, Choice, EngineError,
    FormerRun, ServedVolume, SetOptions, TakenOver,
};
use ubcache_env::local::{Either, Event, Lock, first};
use ubcache_env::{Env, Nanos, Priority, Volume};
use ubcache_format::{BackingState, SECTOR_BYTES, Uuid};
use ubcache_host::{Host, HostEnv, HostFile, PassedSocket, SocketError, passed_sockets, signal};
use ubcache_nbd::Exports;

use crate::config::{Named, NbdAddress, ReadOnly, ServeConfig, export_names};
use crate::control::api::browsers::StatusPage;
use crate::control::{
    Api, ControlSocket, Mailroom, Registry, mailbox, serve_mailbox, socket_directories,
};
use crate::failure::{Code, Failure};

use crate::log::STATE;
use crate::open::precheck::{Down, Member, Members, dirty_without_cache, make_for, precheck};
use crate::open::preconditions::{inherited_tcp, start_io, tcp_port};
use crate::open::refusal::{engine_failure, member_failure};
use crate::open::target::missing_room;
use crate::served::cache::{set_options, without_cache};
use crate::served::daemon::{Daemon, Served};
use crate::served::events::{log_events, log_left, log_waiting_stop};
use crate::served::handover::{report, take_up};
use crate::served::listen::{Listeners, Places};
use crate::served::orders::{Order, Orders};
use crate::served::pace::Paces;
use crate::served::process::{Process, SharedProcess};
use crate::served::upgrades::Upgrades;
use crate::served::watch;
use crate::served::world::{
    DEVICE_BUSY_TIMEOUT, World, open as open_device, refuse_vague_discards,
};
use crate::size::show_size;
use crate::tls::Certificates;
use crate::upgrade::heritage::{Heritage, commit, own_path, pending_state};
use crate::upgrade::state::{State, VolumeState};

/// Time for responses that are under way when the daemon ends.
const LAST_RESPONSES_PATIENCE: Duration = Duration::from_secs(1);

/// Summary of a daemon that serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// UUID of the set.
    pub set: Uuid,
    /// The control socket.
    pub control: PathBuf,
    /// URL of the status page, if there is one over TCP.
    pub status_page: Option<String>,
    /// Way of I/O: `ring` or `pool`.
    pub io: &'static str,
    /// The exports: name, size in bytes, URIs.
    pub exports: Vec<(String, u64, Vec<String>)>,
    /// The backing devices that are not served: name and path.
    pub down: Vec<(String, PathBuf)>,
}

/// The end of a daemon in this program.
enum End {
    Stopped,
    /// Another program goes on.
    HandOver(Box<Heritage>),
}

/// Serves until a stop is requested. `ready` is called once, when clients can connect, unless this
/// program goes on with those of another one ([`crate::upgrade::receive`]).
pub fn serve(config: &ServeConfig, ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    serve_in(config, |host| host, ready)
}

/// [`serve`] in a world of the caller's, made over the host.
pub fn serve_in<W: World>(
    config: &ServeConfig,
    make_world: impl Fn(HostEnv) -> W,
    ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    let mut ready = Some(ready);
    loop {
        match serve_once(config, Process::Own, &make_world, &mut ready)? {
            End::Stopped => return Ok(()),
            // If no other program can be run, this one goes on as if it had taken over.
            End::HandOver(heritage) => heritage.hand_over(),
        }
    }
}

/// [`serve`] on one of several threads of a process: until its orders say so.
pub(crate) fn serve_beside_others(
    config: &ServeConfig,
    shared: SharedProcess,
    ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    serve_once(config, Process::Shared(shared), |host| host, &mut Some(ready)).map(drop)
}

fn serve_once<W: World>(
    config: &ServeConfig,
    mut process: Process,
    make_world: impl Fn(HostEnv) -> W,
    ready: &mut Option<impl FnOnce(&Ready)>,
) -> Result<End, Failure> {
    let inherited = pending_state().filter(|_| process.is_own());
    let adjusted = inherited.as_ref().map(|state| state.adjust(config));
    let config = adjusted.as_ref().unwrap_or(config);
    let passed = match &mut process {
        Process::Own => passed_sockets().map_err(|error| Failure::usage("LISTEN_FDS", error))?,
        Process::Shared(shared) => std::mem::take(&mut shared.passed),
    };
    let inherited_tcp = inherited.as_ref().and_then(inherited_tcp);
    let tls = config.tls.load(inherited_tcp.or_else(|| tcp_port(config, &passed)))?;
    let page = StatusPage::bind(&config.status_page)?;
    let members = precheck(config)?;
    let names = names_of(&members)?;
    if inherited.is_none() {
        check_names(config, &names)?;
    }
    if process.is_own() {
        hold_memory(config.lock_memory)?;
    }
    let host = start_io()?;
    host.set_busy_poll(config.busy_poll);
    let world = make_world(host.env());
    let io = host.backend_name();
    let (stop, certificates) = (Rc::<Event>::default(), tls.clone());
    match &process {
        Process::Own => follow_signals(&host, &world, &stop, certificates)?,
        Process::Shared(shared) => {
            follow_orders(&world, shared.orders.clone(), stop.clone(), certificates);
        }
    }
    host.block_on(async {
        let state = inherited.as_ref();
        let mut daemon = Box::pin(open(&world, config, &members, state)).await?;
        daemon.shares_process = !process.is_own();
        let daemon = Rc::new(daemon);
        let stopping = daemon.clone();
        world.spawn(Priority::Foreground, async move {
            stop.wait().await;
            stopping.stop_wanted.set();
        });
        let sockets = Sockets { passed, tls, page };
        let result = Box::pin(run(&world, config, &daemon, process, sockets, io, ready)).await;
        match result {
            Ok(end) => Ok(end),
            Err(failure) => {
                // Report the first failure; the set closes as well as it can.
                let _ = daemon.stop_sets().await;
                Err(failure)
            }
        }
    })
}

/// SIGTERM and SIGINT stop the set, SIGHUP has the certificates read again.
fn follow_signals<W: World>(
    host: &Host,
    world: &W,
    stop: &Rc<Event>,
    certificates: Option<Rc<Certificates>>,
) -> Result<(), Failure> {
    let take_signal = |number| {
        host.signal(number).map_err(|error| {
            Failure::refused_because("signals", format_args!("can't wait for them: {error}"))
        })
    };
    for number in [signal::SIGTERM, signal::SIGINT] {
        let (signal, stop) = (take_signal(number)?, stop.clone());
        world.spawn(Priority::Foreground, async move {
            signal.wait().await;
            stop.set();
        });
    }
    let hang_up = take_signal(signal::SIGHUP)?;
    world.spawn(Priority::Background, async move {
        let Some(certificates) = certificates else {
            hang_up.wait().await;
            return tracing::info!(
                "SIGHUP is ignored, as nothing is configured in a file; `ubcache stop` and SIGTERM \
                 stop"
            );
        };
        loop {
            hang_up.wait().await;
            certificates.reload();
        }
    });
    Ok(())
}

/// Carries out the orders of other threads.
fn follow_orders<W: World>(
    world: &W,
    orders: Orders,
    stop: Rc<Event>,
    certificates: Option<Rc<Certificates>>,
) {
    world.spawn(Priority::Foreground, async move {
        loop {
            match orders.next().await {
                Order::Stop => stop.set(),
                Order::ReloadCertificates => {
                    certificates.iter().for_each(|certificates| certificates.reload());
                }
            }
        }
    });
}

/// Refuses options for exports that there are not.
fn check_names(config: &ServeConfig, names: &[String]) -> Result<(), Failure> {
    config.clients.check_names(names)?;
    let ReadOnly::Some(given) = &config.read_only else { return Ok(()) };
    match given.iter().find(|given| !names.contains(given)) {
        None => Ok(()),
        Some(unknown) => {
            Err(Failure::usage(format_args!("--read-only={unknown}"), "there is no such export")
                .expected(format_args!("one of {}", names.join(", "))))
        }
    }
}

/// Before any thread is started: see [`ubcache_host::memory`].
pub(crate) fn hold_memory(lock: bool) -> Result<(), Failure> {
    if let Err(error) = ubcache_host::memory::become_io_flusher() {
        tracing::debug!(%error, "not allowed to be an I/O flusher (PR_SET_IO_FLUSHER, \
            CAP_SYS_RESOURCE)");
    }
    if !lock {
        return Ok(());
    }
    ubcache_host::memory::lock_memory().map_err(|error| {
        Failure::usage(
            "--lock-memory",
            format_args!("can't keep memory from being paged out: {error}"),
        )
        .expected("root, or no limit for locked memory")
        .advice("`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the systemd unit")
    })
}

async fn open<W: World>(
    world: &W,
    config: &ServeConfig,
    members: &Members,
    inherited: Option<&State>,
) -> Result<Daemon<W>, Failure> {
    names_of(members)?;
    let uuid = match &members.cache {
        Ok(cache) => cache.set_uuid,
        Err(_) => members.backings[0].superblock.set_uuid,
    };
    for path in std::iter::once(&members.cache_path) {
        if let Some((missing, free)) = missing_room(path) {
            tracing::warn!(
                path = %path.display(),
                "a sparse file: {} of it are not allocated, and {} are free on its file system; \
                 when that is full, the cache stops growing",
                show_size(missing),
                show_size(free)
            );
        }
    }
    // All devices are taken before anything is changed on any of them.
    let host = world.host();
    let cache = match &members.cache {
        Ok(_) => Ok(open_device(host, &members.cache_path, config.page_cache).await?),
        Err(why) => Err(why.clone()),
    };
    let mut down = members.down.clone();
    let mut opened: Vec<(&Member, HostFile)> = Vec::new();
    for member in &members.backings {
        let path = &member.path;
        let backing = match open_device(host, path, config.page_cache).await {
            Ok(backing) => backing,
            Err(why) => {
                down.push(Down::new(path, member.given.as_deref(), why));
                continue;
            }
        };
        if !config.trust_discards && refuse_vague_discards(&backing) {
            tracing::info!(
                device = %path.display(),
                "discards are not passed on to this device: discarded sectors may read \
                 differently every time (--trust-discards passes them on)"
            );
        }
        opened.push((member, backing));
    }
    if opened.is_empty() {
        return Err(first_reason(down));
    }
    let served: Vec<&Member> = opened.iter().map(|(member, _)| *member).collect();
    let names = names_among(&served)?;
    let choices = choices(config, &served, &names)?;
    let unchosen = served.iter().zip(&choices).filter(|(_, choice)| choice.is_none());
    let expected = unchosen.map(|(member, _)| member.superblock.clone()).collect();
    let options = SetOptions { expected, ..set_options(config) };
    let opening = match cache {
        Ok(cache) => match CacheSet::open(world.clone(), world.cache(cache), options).await {
            Ok(set) => Ok(set),
            Err(EngineError::OlderCopy { uuid, apart }) => {
                let at = served.iter().position(|member| member.superblock.uuid == uuid);
                let at = at.expect("only what is expected is refused");
                let error = EngineError::OlderCopy { uuid, apart };
                let (path, name) = (&served[at].path, &names[at]);
                return Err(member_failure(&members.cache_path, path, name, &error));
            }
            Err(error) => Err(engine_failure(&members.cache_path, &error)),
        },
        Err(why) => Err(why),
    };
    let (set, no_cache) = match opening {
        Ok(set) => (set, None),
        Err(why) if config.cache_optional => {
            tracing::error!("there is no cache, clean disks are served without it: {why}");
            (without_cache(world).await?, why.to_string().lines().next().map(str::to_owned))
        }
        Err(why) => return Err(why),
    };
    if let Some(state) = inherited {
        set.remember(&state.attributes).unwrap_or_else(not_kept);
    }
    if no_cache.is_none() {
        say_unused(&members.cache_path, &served, &names, &set);
    }
    if let Some(TakenOver { from, dropped_bytes }) = set.taken_over() {
        let whose = match from {
            FormerRun::Driver => "the Linux driver ran this set last",
            FormerRun::Unknown => {
                "an early ubcache ran this set last, or the Linux driver after it: they can't be \
                 told apart"
            }
            FormerRun::Tool => "`ubcache repair` or `ubcache restore` wrote this set",
        };
        match dropped_bytes {
            Some(bytes) => tracing::info!(
                bytes,
                "{whose}: its clean data was dropped, as it may be stale (--keep-clean keeps it)"
            ),
            None => {
                tracing::info!(
                    "{whose}: its clean data was kept (--keep-clean), although it may be stale"
                )
            }
        }
    }
    // Checks all choices before any disk is changed. Any other error concerns one disk alone.
    for ((member, name), choice) in served.iter().zip(&names).zip(&choices) {
        let checked = set.check_choice(&member.superblock, *choice).await;
        if let Err(error @ (EngineError::OlderCopy { .. } | EngineError::WouldLose(_))) = checked {
            let why = member_failure(&members.cache_path, &member.path, name, &error);
            return refuse(&set, why).await;
        }
    }
    let mut volumes = Vec::new();
    for (((member, backing), name), choice) in opened.into_iter().zip(names).zip(choices) {
        let path = &member.path;
        let cache = match no_cache {
            Some(_) => CacheUse::Uncached,
            None => CacheUse::UnlessDetached,
        };
        let read_only = config.read_only.holds_for(&name);
        let options = AttachOptions { name: name.clone(), read_only, cache, choice };
        let lost = backing.lost();
        if no_cache.is_some() && member.superblock.state() == BackingState::Dirty {
            let why = dirty_without_cache(path, Some(&name), &member.superblock);
            down.push(Down { path: path.clone(), name, why, optional: false });
            continue;
        }
        match set.attach(world.backing(backing), options).await {
            Ok(volume) => {
                if no_cache.is_none() && volume.needs_no_cache() {
                    tracing::info!(
                        export = name,
                        "served without a cache, as it was detached: `ubcache attach {name}` \
                         gives it one"
                    );
                }
                // Before its writeback begins.
                match known(inherited, &name) {
                    Some(known) => {
                        volume.remember(&known.remembered()).unwrap_or_else(not_kept);
                    }
                    None => set_early(&volume, &config.settings_of(&name)),
                }
                let volume = Rc::new(ServedVolume::new(volume));
                volumes.push(Rc::new(Served { name, volume, path: path.clone(), lost }));
            }
            // The cache failed: no disk can be served.
            Err(EngineError::OfCache(error)) => {
                return refuse(&set, engine_failure(&members.cache_path, &error)).await;
            }
            Err(error @ (EngineError::OlderCopy { .. } | EngineError::WouldLose(_))) => {
                let why = member_failure(&members.cache_path, path, &name, &error);
                return refuse(&set, why).await;
            }
            Err(error) => {
                let why = member_failure(&members.cache_path, path, &name, &error);
                down.push(Down { path: path.clone(), name, why, optional: false });
            }
        }
    }
    if volumes.is_empty() {
        return refuse(&set, first_reason(down)).await;
    }
    if let Some(state) = inherited {
        let missing = |it: &&Down| state.volumes.iter().any(|volume| volume.name == it.name);
        let missing = down.iter().find(missing).filter(|_| state.failed.is_none());
        if let Some(missing) = missing {
            return refuse(&set, missing.why.clone()).await;
        }
    }
    for Down { path, name, why, optional } in &down {
        match optional {
            true => tracing::info!(export = name, "not served, as it may be missing: {why:#}"),
            false => tracing::error!(export = name, path = %path.display(), "not served: {why:#}"),
        }
    }
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
        down: RefCell::new(down),
        cache_path: RefCell::new(members.cache_path.clone()),
        no_cache: RefCell::new(no_cache),
        exports,
        listeners: RefCell::default(),
        membership: Lock::default(),
        program: inherited.map_or_else(own_path, State::own_program),
        upgrades: Upgrades::default(),
        published: RefCell::default(),
        commands: RefCell::default(),
        paces: Paces::default(),
        nothing_left: Cell::new(false),
        rates: RefCell::default(),
        shares_process: false,
        stop_wanted: Event::default(),
        stopped: Event::default(),
        stop_failure: RefCell::default(),
    })
}

/// The volume of that name in the state of the program before.
fn known<'a>(inherited: Option<&'a State>, name: &str) -> Option<&'a VolumeState> {
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

/// The names of the exports, none of them twice.
fn names_of(members: &Members) -> Result<Vec<String>, Failure> {
    names_among(&members.backings.iter().collect::<Vec<_>>())
}

fn names_among(members: &[&Member]) -> Result<Vec<String>, Failure> {
    let labels: Vec<String> = members.iter().map(|member| member.superblock.label_str()).collect();
    let volumes: Vec<Named<'_>> = labels
        .iter()
        .zip(members)
        .map(|(label, member)| Named { given: member.given.as_deref(), label, path: &member.path })
        .collect();
    let names = export_names(&volumes)?;
    // Clients may ask for each export by its UUID: no other one may have that for a name.
    for (index, (name, Member { path, .. })) in names.iter().zip(members.iter()).enumerate() {
        let of_uuid = members.iter().position(|other| other.superblock.uuid.to_string() == *name);
        if let Some(other) = of_uuid.filter(|other| *other != index) {
            return Err(Failure::refused(path, format_args!("its export would be named {name}"))
                .found(format_args!("the UUID of {}", members[other].path.display()))
                .expected("a name that is no UUID of another disk")
                .advice(format_args!("give it another name: -B NAME={}", path.display())));
        }
    }
    Ok(names)
}

/// Sockets of the parent process, and encryption.
struct Sockets {
    passed: Vec<PassedSocket>,
    tls: Option<Rc<Certificates>>,
    page: Option<StatusPage>,
}

async fn run<W: World>(
    world: &W,
    config: &ServeConfig,
    daemon: &Rc<Daemon<W>>,
    process: Process,
    Sockets { passed, tls, page }: Sockets,
    io: &'static str,
    ready: &mut Option<impl FnOnce(&Ready)>,
) -> Result<End, Failure> {
    for served in daemon.volumes() {
        daemon.export(&served).map_err(|error| {
            Failure::refused(&served.path, error).advice("give it another label")
        })?;
    }
    let mut heritage = if process.is_own() { commit() } else { None };
    if heritage.is_none() {
        daemon
            .set_attributes(None, &config.settings)
            .await
            .map_err(|error| Failure::usage("--set", error))?;
        for (export, settings) in &config.volume_settings {
            if settings.is_empty() || !daemon.volumes().iter().any(|it| it.name == *export) {
                continue;
            }
            daemon
                .set_attributes(Some(export), settings)
                .await
                .map_err(|error| Failure::usage(format_args!("attributes of {export}"), error))?;
        }
    }
    let systemd = process.systemd();
    let (control_path, way) = match process {
        Process::Shared(shared) => (shared.control, Way::Mailroom(shared.mailroom)),
        Process::Own => {
            let path = control_path(config, daemon.uuid)?;
            let way = own_control(world, &path, heritage.as_mut()).await?;
            (path, way)
        }
    };
    let addresses = match config.nbd.as_slice() {
        [] if !passed.is_empty() => Vec::new(),
        [] => vec![NbdAddress::Unix(control_path.with_extension("nbd"))],
        given => given.to_vec(),
    };
    let inherited = heritage.as_mut().map(Heritage::take_listeners).unwrap_or_default();
    let addresses = if inherited.is_empty() { addresses } else { Vec::new() };
    let (access, allow) = (config.socket_access, config.allow.clone());
    let places = Places { addresses, access, passed, inherited, allow, tls };
    let limits = config.clients.clone();
    let listeners = Listeners::bind(world, places, daemon.exports.clone(), limits).await?;
    let listeners = Rc::new(listeners);
    *daemon.listeners.borrow_mut() = Some(listeners.clone());
    let addresses = listeners.addresses();
    let uris =
        move |name: &str| addresses.iter().map(|address| address.uri(name)).collect::<Vec<_>>();
    let clients = heritage.as_mut().map(|heritage| take_up(world, heritage, &listeners));
    listeners.start(world);
    let status_page = page.as_ref().map(StatusPage::url);
    let (mailroom, mut control) = match way {
        Way::Mailroom(mailroom) => (mailroom, None),
        Way::Socket(socket) => {
            let (handle, mailroom) = mailbox("");
            let registry = Registry::default();
            registry.add(handle);
            (mailroom, Some(Api::start(socket, registry, page)?))
        }
    };
    serve_mailbox(world, daemon, mailroom, uris.clone());
    let summary = Ready {
        set: daemon.uuid,
        control: control_path,
        status_page,
        io,
        exports: daemon
            .volumes()
            .iter()
            .map(|served| {
                (
                    served.name.clone(),
                    served.volume.info().sectors * SECTOR_BYTES,
                    uris(&served.name),
                )
            })
            .collect(),
        down: daemon
            .down
            .borrow()
            .iter()
            .map(|down| (down.name.clone(), down.path.clone()))
            .collect(),
    };
    match &mut heritage {
        Some(heritage) => report(world, daemon, heritage, clients.unwrap_or_default()).await,
        None => ready.take().into_iter().for_each(|ready| ready(&summary)),
    }
    drop(heritage);
    systemd.ready();
    systemd.start_watchdog(world);
    log_events(daemon, world);
    let connected = listeners.clone();
    watch::start(daemon, world, &systemd, move || connected.active());
    tracing::info!(set = %daemon.uuid, io, "serving");

    let handed_over = loop {
        let Either::Right(upgrade) = first(daemon.stop_wanted.wait(), daemon.upgrades.next()).await
        else {
            break false;
        };
        let handed_over = match &mut control {
            Some(control) => daemon.hand_over(&upgrade, &listeners, control).await,
            None => Err("the process has other sets".to_owned()),
        };
        match handed_over {
            Ok(Some(heritage)) => return Ok(End::HandOver(Box::new(heritage))),
            Ok(None) => {
                daemon.upgrades.refuse("the daemon was told to stop meanwhile");
                break true;
            }
            Err(why) => {
                tracing::error!(target: STATE, "no upgrade: {why}");
                daemon.upgrades.refuse(&why);
            }
        }
    };
    tracing::info!(target: STATE, clients = listeners.active(), "stopping");
    let connected = listeners.clone();
    log_waiting_stop(daemon, world, move || connected.active());
    systemd.stopping();
    listeners.close(world, config.drain_timeout).await;
    let stopped = if handed_over { Ok(()) } else { daemon.stop_sets().await };
    if let Err(error) = &stopped {
        *daemon.stop_failure.borrow_mut() = Some(error.to_string());
    }
    daemon.stopped.set();
    log_left(daemon);
    // Clients that wait for the end of the stop get their responses.
    match control {
        Some(control) => control.finish(LAST_RESPONSES_PATIENCE).await,
        // The tasks of requests run once more, and give their answers to the control API.
        None => world.sleep(Nanos::from_millis(1)).await,
    }
    match &stopped {
        Ok(()) => tracing::info!(target: STATE, "stopped"),
        Err(error) => tracing::error!(target: STATE, "stopped, but not cleanly: {error}"),
    }
    let stopped = stopped.map_err(|error| engine_failure(&daemon.cache_path.borrow(), &error));
    match daemon.nothing_left.get() {
        true => stopped.map_err(|failure| failure.with_code(Code::SetFailed)),
        false => stopped,
    }?;
    Ok(End::Stopped)
}

/// The way of requests to the set.
enum Way {
    /// A control socket of its own.
    Socket(ControlSocket),
    /// The mailbox that the control API of the process has.
    Mailroom(Mailroom),
}

/// The set's own control socket, made or inherited.
async fn own_control<W: World>(
    world: &W,
    path: &Path,
    heritage: Option<&mut Heritage>,
) -> Result<Way, Failure> {
    match heritage.and_then(Heritage::take_control) {
        Some((fd, place)) => Ok(Way::Socket(ControlSocket::inherited(fd, place))),
        None => listen_for_control(world.host(), path).await.map(Way::Socket),
    }
}

/// Makes the control socket. One of a process that was killed gets a moment to go away.
async fn listen_for_control(host: &HostEnv, path: &Path) -> Result<ControlSocket, Failure> {
    let end = host.now().after(DEVICE_BUSY_TIMEOUT);
    let mut made = ControlSocket::bind(path);
    while matches!(made, Err(SocketError::InUse { .. })) && host.now() < end {
        host.sleep(Nanos::from_millis(20)).await;
        made = ControlSocket::bind(path);
    }
    made.map_err(|error| {
        Failure::could_not_run(path, format_args!("can't make the control socket: {error}"))
            .advice("stop the daemon that uses it, or choose another path with --control PATH")
    })
}

/// Path of the control socket.
fn control_path(config: &ServeConfig, uuid: Uuid) -> Result<PathBuf, Failure> {
    match &config.control {
        Some(path) => Ok(path.clone()),
        None => Ok(usable_directory()?.join(format!("{uuid}.sock"))),
    }
}

/// The directory of the control socket, made if it is not there.
pub(crate) fn usable_directory() -> Result<PathBuf, Failure> {
    let mut why = None;
    for directory in socket_directories() {
        let made = std::fs::create_dir_all(&directory);
        let writable = made.and_then(|()| {
            // A directory that exists already may belong to another user.
            let probe = directory.join(format!(".{}", probe_number()));
            std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe))
        });
        match writable {
            Ok(()) => return Ok(directory),
            Err(error) => {
                why = Some(Failure::could_not_run(
                    &directory,
                    format_args!("can't put the control socket there: {error}"),
                ))
            }
        }
    }
    Err(why
        .unwrap_or_else(|| {
            Failure::usage("--control", "no default directory for the control socket exists")
        })
        .advice("give a path with --control PATH"))
}

/// A number that no other thread of this machine has at this time.
fn probe_number() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Choices of the command line for disks that are not of one run with the cache.
fn choices(
    config: &ServeConfig,
    members: &[&Member],
    names: &[String],
) -> Result<Vec<Option<Choice>>, Failure> {
    let default = config.drop_clean_cache.then_some(Choice::DropClean);
    let mut choices = vec![default; names.len()];
    let disks =
        config.believe_disk.iter().map(|name| ("--believe-disk", name, Choice::BelieveDisk));
    let caches =
        config.believe_cache.iter().map(|name| ("--believe-cache", name, Choice::BelieveCache));
    for (option, given, choice) in disks.chain(caches) {
        let is_it = |(name, it): (&String, &&Member)| given == name || it.path == Path::new(given);
        let at = names.iter().zip(members).position(is_it);
        let at = at.ok_or_else(|| {
            Failure::usage(format_args!("{option} {given}"), "there is no such disk")
                .expected(format_args!("one of {}, or a path after -B", names.join(", ")))
        })?;
        match choices[at] {
            Some(other) if Some(other) != default && other != choice => {
                return Err(Failure::usage(
                    format_args!("{option} {given}"),
                    "both choices are given",
                )
                .expected("one of --believe-disk and --believe-cache for a disk"));
            }
            _ => choices[at] = Some(choice),
        }
    }
    Ok(choices)
}

/// Logs a cache device that is longer than the set.
fn say_unused<W: World>(path: &Path, members: &[&Member], names: &[String], set: &CacheSet<W>) {
    let unused = set.unused_bytes();
    if unused > 0 {
        let each = |word: &str| {
            let commands = names.iter().map(|name| format!("`ubcache {word} {name}`"));
            commands.collect::<Vec<_>>().join("; ")
        };
        let (detach, attach) = (each("detach"), each("attach"));
        let superblocks = members.iter().map(|member| &member.superblock);
        let smallest = superblocks.min_by_key(|superblock| superblock.block_sectors);
        let Some(smallest) = smallest else { return };
        let make = make_for(smallest, &path.display().to_string());
        tracing::info!(
            cache = %path.display(),
            bytes = unused,
            "the cache device is longer than when the set was made; to use all of it, make it \
             again: {detach}; `ubcache stop`; `{make} --wipe-bcache`; serve as before, and then: \
             {attach}"
        );
    }
}
