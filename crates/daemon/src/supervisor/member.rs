//! A set of the process, with its thread.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::Sender;

use ubcache_host::PassedSocket;

use super::apply::Applied;
use crate::config::{Origin, ServeConfig};
use crate::config_file::SetFile;
use crate::config_file::files::{Configuration, Resolved};
use crate::control::process::ProcessMessage;
use crate::control::{SetHandle, mailbox};
use crate::failure::{Code, Failure};
use crate::log::{STATE, THREAD_OF_SET};
use crate::serve::{Ready, serve_beside_others};
use crate::served::health::Health;
use crate::served::orders::{Order, Orders};
use crate::served::process::SharedProcess;
use crate::served::report::SetReport;
use crate::served::systemd::Message;

/// Something that happens, with the number of the set.
pub(super) enum Event {
    /// A signal was delivered.
    Signal(i32),
    /// Clients can connect.
    Ready(usize, Box<Ready>),
    /// A request of the control API.
    Request(ProcessMessage),
    /// The configuration was read, for a request or for SIGHUP.
    Read(Box<(Configuration, Vec<Resolved>)>),
    /// Changes of the configuration were carried out.
    Applied(Vec<Applied>),
    /// A message for the service manager.
    Message(usize, Message),
    /// The thread has ended.
    Ended(usize, Result<(), Failure>),
}

/// A set that serves, or the reason why it does not.
pub struct Started<'a> {
    /// Name of the set.
    pub name: &'a str,
    /// Its exports.
    pub ready: Result<&'a Ready, &'a Failure>,
}

/// State of a set.
pub(super) enum State {
    /// The thread opens the devices.
    Starting,
    /// Clients can connect.
    Serving(Box<Ready>),
    /// It was never served.
    NotStarted(Failure),
    /// It was served, and has failed.
    Failed(Failure),
    /// It was stopped.
    Stopped,
}

/// A set of the process.
pub(super) struct Member {
    /// The configuration in effect.
    pub file: SetFile,
    /// The way of requests to the set.
    pub handle: Option<SetHandle>,
    pub state: State,
    orders: Orders,
    /// The set has said so since the last message to the watchdog.
    pub is_alive: bool,
    /// The set in a line, by itself.
    pub line: String,
}

impl Member {
    pub fn new(file: SetFile) -> Member {
        let (state, orders) = (State::Stopped, Orders::default());
        Member { file, handle: None, state, orders, is_alive: false, line: String::new() }
    }

    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Starts the thread.
    pub fn start(
        &mut self,
        number: usize,
        config: ServeConfig,
        passed: Vec<PassedSocket>,
        sender: &Sender<Event>,
        control: PathBuf,
    ) {
        self.orders = Orders::default();
        let (handle, mailroom) = mailbox(self.name());
        self.handle = Some(handle);
        let mut config = config;
        config.origin = Some(Origin { set: self.file.name.clone(), file: self.file.file.clone() });
        self.state = State::Starting;
        let (orders, events, name) = (self.orders.clone(), sender.clone(), self.name().to_owned());
        let ended = sender.clone();
        // The kernel shows 15 bytes of the name.
        let thread = std::thread::Builder::new().name(format!("{THREAD_OF_SET}{name}"));
        let started = thread.spawn(move || {
            // Every line of the log from this thread has the name of the set.
            let _of_set = tracing::error_span!("set", set_name = name).entered();
            let notify = events.clone();
            // The supervisor outlives all threads.
            let notify = Rc::new(move |it| drop(notify.send(Event::Message(number, it))));
            let shared = SharedProcess { orders, passed, mailroom, control, notify };
            let serve = std::panic::AssertUnwindSafe(|| {
                serve_beside_others(&config, shared, |ready: &Ready| {
                    drop(events.send(Event::Ready(number, Box::new(ready.clone()))));
                })
            });
            let result = std::panic::catch_unwind(serve).unwrap_or_else(|_| {
                Err(Failure::refused_because("set", "its thread has panicked")
                    .advice("report it, with the log")
                    .with_code(Code::SetFailed))
            });
            // The receiver lives until all threads have ended.
            let _ = ended.send(Event::Ended(number, result));
        });
        if let Err(error) = started {
            self.state = State::NotStarted(Failure::refused_because(
                self.name(),
                format_args!("can't start a thread: {error}"),
            ));
        }
    }

    /// Takes note that the thread has ended.
    pub fn ended(&mut self, result: Result<(), Failure>) {
        let was_serving = matches!(self.state, State::Serving(_));
        self.state = match result {
            Ok(()) => State::Stopped,
            Err(why) if was_serving => {
                let name = self.name();
                tracing::error!(target: STATE, name, "the set has ended by an error: {why:#}");
                State::Failed(why)
            }
            Err(why) => State::NotStarted(why),
        };
        self.handle = None;
        self.line = String::new();
        self.log_if_not_started();
    }

    pub fn log_if_not_started(&self) {
        if let State::NotStarted(why) = &self.state {
            let (name, file) = (self.name(), self.file.file.display());
            tracing::error!(target: STATE, name, %file, "the set is not started: {why:#}");
        }
    }

    pub fn has_thread(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving(_))
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// The report of a set that is configured and not served.
    pub fn not_served(&self) -> Option<SetReport> {
        let (word, why) = match &self.state {
            State::NotStarted(why) => ("not started", why),
            State::Failed(why) => ("failed", why),
            _ => return None,
        };
        Some(not_served(self.name(), &self.file.file, word, &format!("{why:#}")))
    }

    pub fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::NotStarted(why) | State::Failed(why) => Some(why),
            _ => None,
        }
    }

    pub fn started(&self) -> Option<Started<'_>> {
        let name = self.name();
        match &self.state {
            State::Serving(ready) => Some(Started { name, ready: Ok(ready) }),
            State::NotStarted(why) | State::Failed(why) => Some(Started { name, ready: Err(why) }),
            State::Starting | State::Stopped => None,
        }
    }

    /// The volumes that clients find now.
    pub fn volumes(&self) -> Vec<String> {
        self.handle.as_ref().map(|handle| handle.names.get().volumes).unwrap_or_default()
    }

    /// The state, with the reason if the set is not served.
    pub fn state_in_words(&self) -> String {
        match &self.state {
            State::Starting => "started".to_owned(),
            State::Serving(_) => "serving".to_owned(),
            State::NotStarted(why) => format!("not started: {why:#}"),
            State::Failed(why) => format!("failed: {why:#}"),
            State::Stopped => "stopped".to_owned(),
        }
    }

    /// The set in a line.
    pub fn summary(&self) -> String {
        let state = match &self.state {
            State::Starting => "starting",
            State::Serving(_) if self.line.is_empty() => "running",
            State::Serving(_) => &self.line,
            State::NotStarted(_) => "not started",
            State::Failed(_) => "failed",
            State::Stopped => "stopped",
        };
        format!("{}: {state}", self.name())
    }

    /// Has the set stop.
    pub fn stop(&self) {
        self.orders.give(Order::Stop);
    }

    /// Has the set read its certificates again.
    pub fn reload_certificates(&self) {
        self.orders.give(Order::ReloadCertificates);
    }
}

/// The report of a set that is not served.
pub(super) fn not_served(name: &str, file: &Path, word: &str, why: &str) -> SetReport {
    SetReport {
        name: name.to_owned(),
        file: file.display().to_string(),
        state: format!("{word}: {why}"),
        health: Health::Failed.to_string(),
        warnings: vec![format!("the set {name} is not served: {why}")],
        ..SetReport::default()
    }
}
