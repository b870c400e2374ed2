//! Several sets in one process: a thread for each, and this one, which starts them, passes signals
//! on and speaks to the service manager for all.
//!
//! ```text
//!  files ─▶ sets ─▶ threads ──ready, alive, status, ended──▶ supervisor ──▶ systemd
//!                      ▲                                         │ ▲
//!                      └──────────── orders (stop, …) ───────────┘ └── SIGTERM, SIGINT, SIGHUP
//! ```
//!
//! A set that can't be started, or that ends by an error, is logged; the others go on.
//!
//! | module | holds |
//! |---|---|
//! | `member` | a set with its thread |

mod member;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use ubcache_host::{PassedAddress, PassedSocket, passed_sockets, signal};

pub use self::member::Started;
use self::member::{Event, Member, State};
use crate::config::NbdAddress;
use crate::config_file::files::{Configuration, Resolved};
use crate::config_file::{DEFAULT_DIRECTORY, Lookup};

use crate::failure::{Code, Failure};
use crate::log::STATE;
use crate::serve::{hold_memory, usable_directory};
use crate::served::systemd::{Message, Systemd};

/// Options of the process.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files and directories of the configuration; none: [`DEFAULT_DIRECTORY`].
    pub paths: Vec<PathBuf>,
    /// Keep memory from being paged out.
    pub lock_memory: bool,
}

/// Serves all sets of a configuration until a stop is requested. `ready` is called once, when all
/// that can be started serve.
///
/// # Errors
/// No set could be started; or a set that served has failed, or did not stop cleanly.
pub fn run(options: &Options, ready: impl FnOnce(&[Started<'_>])) -> Result<(), Failure> {
    let (sender, events) = channel();
    follow_signals(&sender)?;
    hold_memory(options.lock_memory)?;
    let passed = passed_sockets().map_err(|error| Failure::usage("LISTEN_FDS", error))?;
    let default = [PathBuf::from(DEFAULT_DIRECTORY)];
    let paths = if options.paths.is_empty() { &default[..] } else { &options.paths };
    let mut configuration = Configuration::read(paths);
    let sets = configuration.resolve(&Lookup::now());
    for fault in &configuration.faults {
        tracing::error!(target: STATE, "configuration: {fault}");
    }
    if sets.is_empty() {
        return Err(nothing_configured(paths, &configuration));
    }
    let mut supervisor =
        Supervisor { members: Vec::new(), sender, systemd: Systemd::connect(), stopping: false };
    supervisor.start(sets, passed);
    supervisor.serve(&events, ready)
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
            .advice("`man ubcache.toml` and docs/reference/config.md have the keys"),
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

struct Supervisor {
    members: Vec<Member>,
    sender: Sender<Event>,
    systemd: Systemd,
    stopping: bool,
}

impl Supervisor {
    /// Starts a thread for each set whose devices are there.
    fn start(&mut self, sets: Vec<Resolved>, mut passed: Vec<PassedSocket>) {
        let only = sets.len() == 1;
        for Resolved { set, serve } in sets {
            let number = self.members.len();
            let mut member = Member::new(set);
            let serve = serve.and_then(|mut serve| {
                let passed = if only {
                    std::mem::take(&mut passed)
                } else {
                    take_passed(&mut passed, &serve.nbd)
                };
                if serve.nbd.is_empty() && passed.is_empty() {
                    let directory = usable_directory()?;
                    let name = format!("{}.nbd", member.name());
                    serve.nbd = vec![NbdAddress::Unix(directory.join(name))];
                }
                Ok((serve, passed))
            });
            match serve {
                Ok((serve, passed)) => member.start(number, serve, passed, &self.sender),
                Err(why) => member.state = State::NotStarted(why),
            }
            self.members.push(member);
        }
        for socket in passed {
            tracing::error!(
                target: STATE,
                address = ?socket.address,
                "a socket of the parent process is not used: no set has its address in nbd"
            );
        }
    }

    fn serve(
        &mut self,
        events: &Receiver<Event>,
        ready: impl FnOnce(&[Started<'_>]),
    ) -> Result<(), Failure> {
        let mut ready = Some(ready);
        for member in &self.members {
            member.log_if_not_started();
        }
        loop {
            let is_starting = self.members.iter().any(|it| matches!(it.state, State::Starting));
            if !is_starting && let Some(ready) = ready.take() {
                let serving = self.members.iter().filter(|it| it.is_serving()).count();
                if serving == 0 && !self.stopping {
                    return Err(self.none_started());
                }
                ready(&self.started());
                self.systemd.ready();
                self.systemd.status(self.summary());
                let sets = self.members.len();
                tracing::info!(target: STATE, sets, serving, "all sets that can be are started");
            }
            if !self.members.iter().any(Member::has_thread) {
                break;
            }
            // This thread has a sender itself.
            let Ok(event) = events.recv() else { break };
            self.take(event);
        }
        self.result()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Signal(signal::SIGHUP) => {
                for member in self.members.iter().filter(|member| member.has_thread()) {
                    member.reload_certificates();
                }
            }
            Event::Signal(_) => self.stop(),
            Event::Ready(number, ready) => {
                self.members[number].state = State::Serving(ready);
                if self.stopping {
                    self.members[number].stop();
                }
            }
            Event::Message(number, message) => self.pass_on(number, message),
            Event::Ended(number, result) => {
                self.members[number].ended(result);
                self.systemd.status(self.summary());
            }
        }
    }

    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        tracing::info!(target: STATE, "all sets are being stopped");
        self.systemd.stopping();
        self.members.iter().for_each(Member::stop);
    }

    /// Passes on a message of a set to the service manager. The watchdog is content when all sets
    /// are alive.
    fn pass_on(&mut self, number: usize, message: Message) {
        match message {
            Message::Ready | Message::Stopping => {}
            Message::Status(line) => {
                self.members[number].line = line;
                self.systemd.status(self.summary());
            }
            Message::Watchdog => {
                self.members[number].is_alive = true;
                let mut running = self.members.iter_mut().filter(|it| it.has_thread());
                if running.all(|member| member.is_alive || !member.is_serving()) {
                    self.members.iter_mut().for_each(|member| member.is_alive = false);
                    self.systemd.send(Message::Watchdog);
                }
            }
        }
    }

    fn summary(&self) -> String {
        let lines: Vec<String> = self.members.iter().map(Member::summary).collect();
        lines.join("; ")
    }

    fn started(&self) -> Vec<Started<'_>> {
        self.members.iter().filter_map(Member::started).collect()
    }

    fn none_started(&self) -> Failure {
        let whys = self.members.iter().filter_map(|member| member.failure());
        let Some(first) = whys.into_iter().next() else {
            return Failure::refused_because("daemon", "no set could be started");
        };
        match self.members.len() {
            1 => first.clone(),
            sets => Failure::refused_because(
                "daemon",
                format_args!("none of {sets} sets could be started"),
            )
            .found(format_args!("the first reason: {first:#}"))
            .expected("a set that can be served")
            .advice("the log has all reasons")
            .with_code(first.code),
        }
    }

    /// The result of the process: sets that served and failed count.
    fn result(&self) -> Result<(), Failure> {
        let failed: Vec<&Member> =
            self.members.iter().filter(|it| matches!(it.state, State::Failed(_))).collect();
        let Some(failure) = failed.iter().find_map(|member| member.failure()) else {
            return Ok(());
        };
        let names: Vec<&str> = failed.iter().map(|member| member.name()).collect();
        let worst =
            failed.iter().any(|it| it.failure().is_some_and(|it| it.code == Code::SetFailed));
        let code = if worst { Code::SetFailed } else { failure.code };
        Err(Failure::refused_because(format_args!("set {}", names.join(", ")), "has failed")
            .found(format_args!("{failure:#}"))
            .with_code(code))
    }
}

/// Takes the sockets that have one of the addresses.
fn take_passed(passed: &mut Vec<PassedSocket>, addresses: &[NbdAddress]) -> Vec<PassedSocket> {
    let is_meant = |socket: &PassedSocket| {
        addresses.iter().any(|address| match (address, &socket.address) {
            (NbdAddress::Unix(path), PassedAddress::Unix(other)) => path == other,
            (NbdAddress::Tcp(address) | NbdAddress::Tls(address), PassedAddress::Tcp(other)) => {
                address == other
            }
            _ => false,
        })
    };
    let (taken, left) = std::mem::take(passed).into_iter().partition(is_meant);
    *passed = left;
    taken
}
