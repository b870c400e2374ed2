//! One daemon: opens a set, serves its volumes over NBD, stops cleanly on request.
//!
//! ```text
//!  precheck ─▶ open cache ─▶ attach backings ─▶ settings ─▶ listen ─▶ "ready" ─▶ wait ─▶ stop
//!  (changes nothing)                                                   SIGTERM, SIGINT, `ubcache stop`
//! ```
//!
//! | module | holds |
//! |---|---|
//! | here | the order of start and stop |
//! | `names` | names of exports, and options that go by them |
//! | `open_set` | opening of devices, engine and volumes |
//! | `control` | the way of requests to the set |
//! | `orders` | orders to stop and to read certificates again |

mod control;
mod names;
mod open_set;
mod orders;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ubcache_env::local::{Either, Event, first};
use ubcache_env::{Env, Nanos, Priority, Volume};
use ubcache_format::{SECTOR_BYTES, Uuid};
use ubcache_host::{PassedSocket, passed_sockets};

pub(crate) use self::control::usable_directory;
use self::control::{Way, control_path, kept_directory, own_control};
use self::names::{check_names, names_of};
use self::open_set::open;
use self::orders::{follow_orders, follow_signals};
use crate::config::{NbdAddress, ServeConfig};
use crate::control::api::browsers::StatusPage;
use crate::control::{Api, Registry, mailbox, serve_mailbox};
use crate::failure::{Code, Failure};
use crate::log::STATE;
use crate::open::adopt::adopt_new;
use crate::open::io::start_io;
use crate::open::precheck::precheck;
use crate::open::preconditions::{hold_memory, inherited_tcp, tcp_port};
use crate::open::refusal::engine_failure;
use crate::served::daemon::Daemon;
use crate::served::events::{log_events, log_left, log_waiting_stop};
use crate::served::handover::{report, take_up};
use crate::served::lanes::Threads;
use crate::served::listen::{Listeners, Places};
use crate::served::process::{Process, SharedProcess};
use crate::served::world::World;
use crate::served::{returning, watch};
use crate::tls::Certificates;
use crate::upgrade::heritage::{Heritage, commit, pending_state};

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

/// A call when clients can connect.
type OnReady<'a> = Box<dyn FnOnce(&Ready) + 'a>;

/// Serves until a stop is requested. `ready` is called once, when clients can connect, unless this
/// program goes on with those of another one ([`crate::upgrade::receive`]).
pub fn serve(config: &ServeConfig, ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    // Not generic, so that the crate of the caller does not compile all of this again.
    serve_and_hand_over(config, Box::new(ready))
}

fn serve_and_hand_over(config: &ServeConfig, ready: OnReady<'_>) -> Result<(), Failure> {
    let mut ready = Some(ready);
    loop {
        match serve_once(config, Process::Own, &mut ready)? {
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
    let ready: OnReady<'_> = Box::new(ready);
    serve_once(config, Process::Shared(shared), &mut Some(ready)).map(drop)
}

fn serve_once(
    config: &ServeConfig,
    mut process: Process,
    ready: &mut Option<OnReady<'_>>,
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
    if inherited.is_none() {
        adopt_new(config);
    }
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
    let world = host.env();
    if config.lock_memory {
        world.buffers().fill();
    }
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
        let kept = kept_directory(config, &process);
        let mut daemon = Box::pin(open(&world, config, &members, state, kept)).await?;
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
                let _ = Box::pin(daemon.stop_sets()).await;
                Err(failure)
            }
        }
    })
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
    ready: &mut Option<OnReady<'_>>,
) -> Result<End, Failure> {
    for served in daemon.volumes() {
        daemon.export(&served).map_err(|error| {
            Failure::refused(&served.path, error).advice("give it another label")
        })?;
    }
    daemon.serve_flash().map_err(|error| engine_failure(&daemon.cache_path.borrow(), &error))?;
    let mut heritage = if process.is_own() { commit() } else { None };
    if heritage.is_none() {
        set_attributes(config, daemon).await?;
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
    let (count, busy_poll) = (config.threads, config.busy_poll);
    let threads = Threads { count, busy_poll, lock_memory: config.lock_memory };
    let listeners = Listeners::bind(world, places, daemon.exports.clone(), limits, threads).await?;
    let listeners = Rc::new(listeners);
    listeners.set_cache(daemon.cache_to_read());
    *daemon.listeners.borrow_mut() = Some(listeners.clone());
    let addresses = listeners.addresses();
    let own = daemon.clone();
    let uris = move |name: &str| {
        let devices = own.block_devices();
        let devices = devices.iter().filter(|device| device.export == name);
        let devices = devices.map(|device| device.path().display().to_string());
        let sockets = own.guest_sockets();
        let sockets = sockets.iter().filter(|socket| socket.export == name);
        let sockets = sockets.map(|socket| format!("vhost-user:{}", socket.path.display()));
        let uris = addresses.iter().map(|address| address.uri(name));
        uris.chain(devices).chain(sockets).collect::<Vec<_>>()
    };
    let clients = heritage.as_mut().map(|heritage| take_up(world, heritage, &listeners));
    daemon.start_block_devices().await?;
    daemon.start_guest_sockets().await?;
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
    let owed = serve_mailbox(world, daemon, mailroom, uris.clone());
    let summary = summary(daemon, control_path, status_page, io, &uris);
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
    returning::start(daemon, world);
    tracing::info!(set = %daemon.uuid, io, "serving");

    let sets_stopped = match until_end(daemon, &listeners, control.as_mut()).await {
        Until::Stop => false,
        Until::StopInHandOver => true,
        Until::HandOver(heritage) => return Ok(End::HandOver(heritage)),
    };
    tracing::info!(target: STATE, clients = listeners.active(), "stopping");
    let connected = listeners.clone();
    log_waiting_stop(daemon, world, move || connected.active());
    systemd.stopping();
    listeners.close(world, config.drain_timeout).await;
    daemon.end_guest_sockets(config.drain_timeout).await;
    daemon.end_block_devices().await;
    let stopped = if sets_stopped { Ok(()) } else { daemon.stop_sets().await };
    if let Err(error) = &stopped {
        *daemon.stop_failure.borrow_mut() = Some(error.to_string());
    }
    daemon.stopped.set();
    log_left(daemon);
    // Clients that wait for the end of the stop get their responses.
    match control {
        Some(control) => control.finish(LAST_RESPONSES_PATIENCE).await,
        None => {
            let patience = Nanos::from_millis(LAST_RESPONSES_PATIENCE.as_millis() as u64);
            first(owed.given(), world.sleep(patience)).await;
        }
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

/// The reason why a daemon does not go on serving.
enum Until {
    /// A stop was requested.
    Stop,
    /// It was when the set had been stopped for another program.
    StopInHandOver,
    /// Another program goes on.
    HandOver(Box<Heritage>),
}

/// Serves, until a stop is requested or another program can go on.
async fn until_end<W: World>(
    daemon: &Rc<Daemon<W>>,
    listeners: &Rc<Listeners<W>>,
    mut control: Option<&mut Api>,
) -> Until {
    loop {
        let Either::Right(upgrade) = first(daemon.stop_wanted.wait(), daemon.upgrades.next()).await
        else {
            return Until::Stop;
        };
        let handed_over = match &mut control {
            Some(control) => daemon.hand_over(&upgrade, listeners, control).await,
            None => Err("the process has other sets".to_owned()),
        };
        match handed_over {
            Ok(Some(heritage)) => return Until::HandOver(Box::new(heritage)),
            Ok(None) => {
                daemon.upgrades.refuse("the daemon was told to stop meanwhile");
                return Until::StopInHandOver;
            }
            Err(why) => {
                tracing::error!(target: STATE, "no upgrade: {why}");
                daemon.upgrades.refuse(&why);
            }
        }
    }
}

/// Sets the attributes of the start.
async fn set_attributes<W: World>(
    config: &ServeConfig,
    daemon: &Rc<Daemon<W>>,
) -> Result<(), Failure> {
    let of_all = daemon.set_attributes(None, &config.settings).await;
    of_all.map_err(|error| Failure::usage("--set", error))?;
    for (export, settings) in &config.volume_settings {
        if settings.is_empty() || !daemon.volumes().iter().any(|it| it.name == *export) {
            continue;
        }
        let of_one = daemon.set_attributes(Some(export), settings).await;
        of_one.map_err(|error| Failure::usage(format_args!("attributes of {export}"), error))?;
    }
    Ok(())
}

fn summary<W: World>(
    daemon: &Rc<Daemon<W>>,
    control: PathBuf,
    status_page: Option<String>,
    io: &'static str,
    uris: &impl Fn(&str) -> Vec<String>,
) -> Ready {
    let volumes = daemon.volumes();
    let exports = volumes.iter().map(|served| {
        let bytes = served.volume.info().sectors * SECTOR_BYTES;
        (served.name.clone(), bytes, uris(&served.name))
    });
    let flash = daemon.flash();
    let flash = flash.iter().map(|served| {
        let bytes = served.volume.info().sectors * SECTOR_BYTES;
        (served.name.clone(), bytes, uris(&served.name))
    });
    let down = daemon.down.borrow();
    let down = down.iter().map(|down| (down.name.clone(), down.path.clone()));
    Ready {
        set: daemon.uuid,
        control,
        status_page,
        io,
        exports: exports.chain(flash).collect(),
        down: down.collect(),
    }
}
