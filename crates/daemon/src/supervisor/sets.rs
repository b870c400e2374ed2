//! The sets of the process and their events, one after the other.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};

use ubcache_host::{PassedAddress, PassedSocket, signal};

use super::member::{Event, Member, Started, State, not_served};
use super::pending::Pending;
use crate::config::{NbdAddress, ServeConfig};
use crate::config_file::files::Resolved;
use crate::control::Registry;
use crate::control::process::{ProcessMessage, ProcessRequest};
use crate::failure::{Code, Failure};
use crate::log::STATE;
use crate::serve::usable_directory;
use crate::served::systemd::{Message, Systemd};

/// The sets of the process.
pub(super) struct Supervisor {
    pub paths: Vec<PathBuf>,
    pub control: PathBuf,
    pub registry: Registry,
    /// Files with faults, and the first of each.
    pub faulty: Vec<(PathBuf, String)>,
    pub members: Vec<Member>,
    pub sender: Sender<Event>,
    /// Of every set: see [`ServeConfig::lock_memory`].
    pub lock_memory: bool,
    pub systemd: Systemd,
    pub stopping: bool,
    /// A request that is being carried out.
    pub pending: Option<Pending>,
}

impl Supervisor {
    /// Starts a thread for each set whose devices are there.
    pub fn start(&mut self, sets: Vec<Resolved>, mut passed: Vec<PassedSocket>) {
        let only = sets.len() == 1;
        for Resolved { set, serve } in sets {
            let of_set = match &serve {
                Ok(_) if only => std::mem::take(&mut passed),
                Ok(serve) => take_passed(&mut passed, &serve.nbd),
                Err(_) => Vec::new(),
            };
            self.members.push(Member::new(set));
            self.start_member(self.members.len() - 1, serve, of_set);
        }
        for socket in passed {
            tracing::error!(
                target: STATE,
                address = ?socket.address,
                "a socket of the parent process is not used: no set has its address in nbd"
            );
        }
        self.publish();
    }

    pub fn start_member(
        &mut self,
        number: usize,
        serve: Result<ServeConfig, Failure>,
        passed: Vec<PassedSocket>,
    ) {
        let lock_memory = self.lock_memory;
        let member = &mut self.members[number];
        let serve = serve.and_then(|mut serve| {
            serve.lock_memory = lock_memory;
            if serve.nbd.is_empty() && passed.is_empty() {
                let name = format!("{}.nbd", member.name());
                serve.nbd = vec![NbdAddress::Unix(usable_directory()?.join(name))];
            }
            Ok(serve)
        });
        match serve {
            Ok(serve) => {
                member.start(number, serve, passed, &self.sender, self.control.clone());
                member.handle.iter().for_each(|handle| self.registry.add(handle.clone()));
            }
            Err(why) => member.state = State::NotStarted(why),
        }
        member.log_if_not_started();
    }

    /// Publishes the sets that are not served.
    pub fn publish(&self) {
        let members = self.members.iter().filter_map(Member::not_served);
        let faulty = self.faulty.iter().map(|(file, fault)| {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            not_served(&name, file, "not started", fault)
        });
        self.registry.set_not_served(members.chain(faulty).collect());
    }

    pub fn serve(
        &mut self,
        events: &Receiver<Event>,
        ready: impl FnOnce(&[Started<'_>]),
    ) -> Result<(), Failure> {
        let mut ready = Some(ready);
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
                return self.result();
            }
            // This thread has a sender itself.
            let Ok(event) = events.recv() else { return self.result() };
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Signal(signal::SIGHUP) => {
                for member in self.members.iter().filter(|member| member.has_thread()) {
                    member.reload_certificates();
                }
                tracing::info!(target: STATE, "SIGHUP: the configuration is read again");
                self.begin(ProcessRequest::Apply, None);
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
                self.publish();
                self.systemd.status(self.summary());
            }
            Event::Request(ProcessMessage { request, answer }) => self.begin(request, Some(answer)),
            Event::Read(read) => {
                let (configuration, resolved) = *read;
                let changes = self.differences(&configuration, &resolved);
                let request = self.pending.as_ref().map(|pending| pending.request);
                match request {
                    Some(ProcessRequest::Apply) => self.apply(changes, &configuration, resolved),
                    _ => self.answer(Ok(changes)),
                }
            }
            Event::Applied(applied) => self.applied(applied),
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
                let mut serving = self.members.iter().filter(|it| it.is_serving());
                if serving.all(|member| member.is_alive) {
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
        let mut whys = self.members.iter().filter_map(Member::failure);
        let Some(first) = whys.next() else {
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
        let has_set_failed =
            |it: &&Member| it.failure().is_some_and(|it| it.code == Code::SetFailed);
        let code = if failed.iter().any(has_set_failed) { Code::SetFailed } else { failure.code };
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
