//! Several sets in one process: a thread for each, and this one, which starts them, passes signals
//! on and speaks to the service manager for all.
//!
//! ```text
//!  files ─▶ sets ─▶ threads ──ready, alive, status, ended──▶ supervisor ──▶ systemd
//!                    ▲   ▲                                     │ ▲  ▲
//!                    │   └──────────── orders (stop, …) ───────┘ │  └── SIGTERM, SIGINT, SIGHUP
//!                    └── mailboxes ── control API ── config diff, apply
//! ```
//!
//! A set that can't be started, or that ends by an error, is logged; the others go on.
//!
//! | module | holds |
//! |---|---|
//! | `member` | a set with its thread |
//! | `sets` | all of them, and their events |
//! | `changes` | the files and what is in effect |
//! | `pending` | a request about them that is being carried out |
//! | `plan` | the steps from one configuration of a set to another |
//! | `apply` | carrying them out |

mod apply;
mod changes;
mod member;
mod pending;
mod plan;
mod sets;

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use ubcache_host::{SocketError, passed_sockets, signal};

use self::member::Event;
pub use self::member::Started;
use self::sets::Supervisor;
use crate::config_file::files::Configuration;
use crate::config_file::{DEFAULT_DIRECTORY, Lookup};
use crate::control::api::browsers::StatusPage;
use crate::control::process::ProcessMailbox;
use crate::control::{Api, ControlSocket, Registry};
use crate::failure::Failure;
use crate::log::STATE;
use crate::open::preconditions::hold_memory;
use crate::page::StatusPageOptions;
use crate::serve::usable_directory;
use crate::served::systemd::Systemd;

/// Name of the control socket of a daemon of several sets.
pub const SOCKET: &str = "ubcached.sock";
/// Time for a control socket of a process that has just been killed to go away.
const SOCKET_BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for responses that are under way at the end.
const LAST_RESPONSES_PATIENCE: Duration = Duration::from_secs(1);

/// Options of the process.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files and directories of the configuration; none: [`DEFAULT_DIRECTORY`].
    pub paths: Vec<PathBuf>,
    /// Path of the control socket; none: [`SOCKET`] in the usual directory.
    pub control: Option<PathBuf>,
    /// The status page over TCP.
    pub status_page: StatusPageOptions,
    /// Keep memory from being paged out.
    pub lock_memory: bool,
}

/// Serves all sets of a configuration until a stop is requested. `ready` is called once, when all
/// that can be started serve, with the URL of the status page.
///
/// # Errors
/// No set could be started; or a set that served has failed, or did not stop cleanly.
pub fn run(
    options: &Options,
    ready: impl FnOnce(&[Started<'_>], Option<&str>),
) -> Result<(), Failure> {
    let (sender, events) = channel();
    follow_signals(&sender)?;
    hold_memory(options.lock_memory)?;
    let passed = passed_sockets().map_err(|error| Failure::usage("LISTEN_FDS", error))?;
    let paths = match options.paths.as_slice() {
        [] => vec![PathBuf::from(DEFAULT_DIRECTORY)],
        paths => paths.to_vec(),
    };
    let mut configuration = Configuration::read(&paths);
    let sets = configuration.resolve(&Lookup::default());
    for fault in &configuration.faults {
        tracing::error!(target: STATE, "configuration: {fault}");
    }
    if sets.is_empty() {
        return Err(nothing_configured(&paths, &configuration));
    }
    let control = match &options.control {
        Some(path) => path.clone(),
        None => usable_directory()?.join(SOCKET),
    };
    let page = StatusPage::bind(&options.status_page)?;
    let url = page.as_ref().map(StatusPage::url);
    let registry = Registry::default();
    let requests = sender.clone();
    registry.set_process(ProcessMailbox::new(move |message| {
        // Dropped, the message is answered: the daemon is being stopped.
        drop(requests.send(Event::Request(message)));
    }));
    let api = Api::start(listen(&control)?, registry.clone(), page)?;
    let mut supervisor = Supervisor {
        paths,
        control,
        registry,
        faulty: configuration.first_faults(),
        members: Vec::new(),
        sender,
        lock_memory: options.lock_memory,
        systemd: Systemd::connect(),
        stopping: false,
        pending: None,
    };
    supervisor.start(sets, passed);
    let result = supervisor.serve(&events, |sets| ready(sets, url.as_deref()));
    api.finish_blocking(LAST_RESPONSES_PATIENCE);
    result
}

/// Makes the control socket.
fn listen(path: &std::path::Path) -> Result<ControlSocket, Failure> {
    let end = Instant::now() + SOCKET_BUSY_TIMEOUT;
    loop {
        match ControlSocket::bind(path) {
            Err(SocketError::InUse { .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            made => {
                return made.map_err(|error| {
                    Failure::could_not_run(
                        path,
                        format_args!("can't make the control socket: {error}"),
                    )
                    .advice("stop the daemon that uses it, or choose another path with --control")
                });
            }
        }
    }
}

fn nothing_configured(paths: &[PathBuf], configuration: &Configuration) -> Failure {
    let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let places = places.join(", ");
    match configuration.faults.first() {
        Some(fault) => Failure::refused_because("configuration", "no set can be started")
            .found(fault)
            .expected("a good file")
            .advice(format_args!("ubcache config check {places}")),
        None => Failure::usage("configuration", format_args!("there is no file in {places}"))
            .expected("a file NAME.toml for each set")
            .advice("docs/reference/config.md has the keys"),
    }
}

/// Has signals sent as events, from a thread of its own.
fn follow_signals(sender: &Sender<Event>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::refused_because("signals", format_args!("can't wait for them: {error}"))
    };
    let deliveries = signal::Deliveries::of(&[signal::SIGTERM, signal::SIGINT, signal::SIGHUP])
        .map_err(failed)?;
    let sender = sender.clone();
    let started = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(number) = deliveries.next() {
            if sender.send(Event::Signal(number)).is_err() {
                return;
            }
        }
    });
    started.map(drop).map_err(failed)
}
