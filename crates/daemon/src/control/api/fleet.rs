//! Requests to one set of this process, or to all of them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout_at};

use super::pace::Pace;
use crate::control::mailbox::{Answer, Reply, SetHandle};
use crate::control::process::{ProcessAnswer, ProcessRequest};
use crate::control::refusal::{Kind, Refusal};
use crate::control::registry::Registry;
use crate::control::request::ControlRequest;
use crate::list::{Daemons, Listing};
use crate::served::health::Health;
use crate::served::report::{Report, SetReport};

/// Time for the report of a set. A set that takes longer is reported as one that does not answer.
const REPORT_PATIENCE: Duration = Duration::from_secs(10);

/// Time for a list of devices that another client has asked for. A device that does not answer
/// holds up lists for ever.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

/// The sets of this process.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    pub(super) registry: Registry,
    pub(super) pace: Pace,
    /// The control socket.
    socket: Arc<Path>,
    /// Held by the thread that makes a list of devices: there is one at a time.
    listing: Arc<Mutex<()>>,
}

impl Fleet {
    pub(super) fn new(registry: Registry, socket: &Path) -> Fleet {
        let pace = Pace::new(Instant::now());
        Fleet { registry, pace, socket: socket.into(), listing: Arc::default() }
    }

    /// Asks the set that serves an export.
    pub(super) async fn ask_volume(&self, volume: &str, request: ControlRequest) -> Answer {
        self.registry.of_volume(volume)?.mailbox.send(request, None).await
    }

    /// Asks a set.
    pub(super) async fn ask_set(&self, set: &str, request: ControlRequest) -> Answer {
        self.registry.set(set)?.mailbox.send(request, None).await
    }

    /// The report of all sets; each one's is of one moment.
    pub(super) async fn report(&self) -> Report {
        let sets = self.registry.all();
        // All are asked before the first answer is waited for.
        let asked: Vec<_> =
            sets.iter().map(|set| set.mailbox.send(ControlRequest::Status, None)).collect();
        let end = Instant::now() + REPORT_PATIENCE;
        let mut all = Report { version: env!("CARGO_PKG_VERSION").to_owned(), ..Report::default() };
        for (set, asked) in sets.iter().zip(asked) {
            match timeout_at(end, asked).await {
                Ok(Ok(Reply::Report(report, took))) => {
                    self.pace.charge(Duration::from_nanos(took.0));
                    all.sets.extend(report.sets);
                }
                Ok(Err(refusal)) => all.sets.push(silent(set, &refusal.message)),
                Ok(Ok(_)) | Err(_) => all.sets.push(silent(set, "its thread does not answer")),
            }
        }
        all.sets.extend(self.registry.not_served());
        all
    }

    /// Lists the devices of this machine. They are read on a thread of its own, which a device that
    /// does not answer holds up, and nothing else.
    pub(super) async fn list(&self) -> Result<Listing, Refusal> {
        let busy = || Refusal::new(Kind::Busy, "another list of devices is being made");
        let turn = timeout_at(Instant::now() + LIST_PATIENCE, self.listing.clone().lock_owned());
        let turn = turn.await.map_err(|_| busy().advice("a device does not answer: see dmesg"))?;
        let (sets, socket) = (self.report().await.sets, self.socket.clone());
        let (send, listed) = oneshot::channel();
        let started = std::thread::Builder::new().name("list".to_owned()).spawn(move || {
            let listing = Listing::of_machine(Daemons::find_beside(&socket, sets));
            drop(turn);
            // The client may have gone.
            let _ = send.send(listing);
        });
        started.map_err(|error| {
            Refusal::new(Kind::Failed, format_args!("can't start a thread: {error}"))
        })?;
        listed.await.map_err(|_| Refusal::new(Kind::Failed, "the list of devices has failed"))
    }

    /// Asks the process about its configuration files.
    pub(super) async fn process(&self, request: ProcessRequest) -> ProcessAnswer {
        match self.registry.process() {
            Some(process) => process.send(request).await,
            None => Err(Refusal::new(Kind::Conflict, "the daemon has no configuration files")
                .expected("`ubcache daemon`; this one is `ubcache serve`")),
        }
    }

    /// Stops all sets; the answer comes when everything is on the devices.
    pub(super) async fn stop(&self) -> Answer {
        let sets = self.registry.all();
        let asked: Vec<_> =
            sets.iter().map(|set| set.mailbox.send(ControlRequest::Stop, None)).collect();
        let mut answer = Ok(Reply::Done);
        for asked in asked {
            answer = answer.and(asked.await);
        }
        answer
    }

    /// Has another program go on, which answers at that descriptor.
    pub(super) async fn upgrade(&self, request: ControlRequest, requester: OwnedFd) -> Answer {
        match self.registry.all().as_slice() {
            [set] => set.mailbox.send(request, Some(requester)).await,
            sets => Err(Refusal::new(
                Kind::Conflict,
                "a daemon of several sets can't be upgraded while it runs",
            )
            .found(format_args!("{} sets", sets.len()))
            .expected("one set, as `ubcache serve` has it")
            .advice("`ubcache stop`, and start the new program")),
        }
    }
}

/// The report of a set that does not answer.
fn silent(set: &SetHandle, why: &str) -> SetReport {
    SetReport {
        uuid: set.names.get().uuid,
        state: format!("no answer: {why}"),
        health: Health::Failed.to_string(),
        warnings: vec![format!("the state of the set is not known: {why}")],
        ..SetReport::default()
    }
}
