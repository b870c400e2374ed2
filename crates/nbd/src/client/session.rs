//! Sessions: the server is reached, gets what it may have lost, carries requests until a
//! connection is lost, and is reached again.
//!
//! ```text
//!            all connections are there        everything urgent is answered
//!   Down ──────────────────────────► Replaying ───────────────────────────► Open
//!    ▲                                   │ one is lost                        │ one is lost
//!    └───── all others are empty ◄───────┴────────────────────────────────────┘
//! ```
//!
//! A session begins when all connections of the former one have ended, and its first request is
//! sent when all of its own are there. So all answers of a session come from one server, and a
//! flush of it stands for all of them, and for what was written again (L2).

use std::rc::Rc;

use ubcache_env::local::{Either, Event, first};
use ubcache_env::{Env, IntervalSet, IoError, Nanos, Priority, Stream, Task};

use super::export::Export;
use super::handshake::{Fresh, shake_hands};
use super::kept::Content;
use super::link::{Link, receive_replies, say_goodbye, send_requests, watch_deadline};
use super::request::{Ask, Request};
use super::shared::{Phase, Shared};
use super::{Connect, OpenFailure, RemoteEvent, RemoteOptions};
use crate::proto::constants::transmission;

/// Time for each connection beyond the first: a server may allow fewer, and let others wait.
const FURTHER_CONNECTION: Nanos = Nanos::from_secs(5);

/// Connections of a new session.
pub(super) type Connections<S> = Vec<Fresh<S>>;

/// Connections of a session.
type Links<S> = Vec<Rc<Link<S>>>;

/// Makes the connections of a session.
pub(super) async fn connect_all<E: Env, C: Connect>(
    env: &E,
    connect: &C,
    name: &str,
    options: &RemoteOptions,
) -> Result<Connections<C::Stream>, OpenFailure> {
    let one = connect_one(env, connect, name, options.deadline).await?;
    let several = one.export.has(transmission::CAN_MULTI_CONN);
    let mut all = vec![one];
    while several && (all.len() as u32) < options.connections {
        let limit = FURTHER_CONNECTION.min(options.deadline);
        match connect_one(env, connect, name, limit).await {
            Ok(next) if next.export == all[0].export => all.push(next),
            Ok(next) => {
                next.stream.close();
                break;
            }
            Err(_) => break,
        }
    }
    Ok(all)
}

async fn connect_one<E: Env, C: Connect>(
    env: &E,
    connect: &C,
    name: &str,
    limit: Nanos,
) -> Result<Fresh<C::Stream>, OpenFailure> {
    let attempt = async {
        let stream = connect.connect().await.map_err(OpenFailure::Connect)?;
        shake_hands(stream, name).await
    };
    match first(attempt, env.sleep(limit)).await {
        Either::Left(outcome) => outcome,
        Either::Right(()) => Err(OpenFailure::Silent(limit)),
    }
}

/// Time without a server.
struct Outage {
    since: Nanos,
    over: Rc<Event>,
}

/// Runs sessions until the disk is closed, or given up.
pub(super) async fn supervise<E: Env, C: Connect>(
    shared: Rc<Shared<E, C>>,
    first: Connections<C::Stream>,
) {
    let mut connections = first;
    let mut outage: Option<Outage> = None;
    let mut wait = shared.options.retry_min;
    loop {
        let began = shared.env.now();
        let again = shared.prepare();
        let (links, tasks) = shared.begin(connections);
        shared.run_session(&mut outage, again).await;
        let reason = shared.drain(&links).await;
        for task in tasks {
            task.join().await;
        }
        if shared.closing.is_set() {
            break;
        }
        if outage.is_none() {
            shared.tell(RemoteEvent::Lost { reason: reason.clone() });
            outage = Some(shared.begin_outage(reason));
        }
        shared.collect(&links);
        // A server that ends each session at once is not asked for one after the other.
        if shared.env.now().since(began) >= shared.options.retry_max {
            wait = shared.options.retry_min;
        } else {
            first_or_close(&shared, shared.pause(&mut wait)).await;
        }
        match first_or_close(&shared, shared.find_server(&mut wait)).await {
            Some(Ok(found)) => connections = found,
            Some(Err(failure)) => {
                shared.phase.set(Phase::GivenUp);
                shared.tell(RemoteEvent::GivenUp { reason: failure.to_string() });
                shared.fail_all(&IoError::Gone);
                break;
            }
            None => break,
        }
    }
    if let Some(outage) = outage {
        outage.over.set();
    }
    if shared.closing.is_set() {
        shared.phase.set(Phase::Closed);
        let links = shared.links.take();
        shared.collect(&links);
        shared.fail_all(&IoError::Gone);
    }
}

/// The outcome, unless the disk is closed before.
async fn first_or_close<E: Env, C: Connect, T>(
    shared: &Rc<Shared<E, C>>,
    wait: impl Future<Output = T>,
) -> Option<T> {
    match first(wait, shared.closing.wait()).await {
        Either::Left(outcome) => Some(outcome),
        Either::Right(()) => None,
    }
}

impl<E: Env, C: Connect> Shared<E, C> {
    /// Determines what a new session sends before anything else. Returns how many that is.
    fn prepare(self: &Rc<Self>) -> u64 {
        self.doubt_is_loss();
        let again = self.again.borrow().clone();
        // The newest content counts: where a write is sent again, the copy below it is not.
        let mut over = IntervalSet::default();
        again.iter().for_each(|request| over.insert(request.range));
        let mut urgent: Vec<Rc<Request>> = again;
        if !self.options.rules.no_replay {
            let copies = self.kept.borrow().copies(&over);
            urgent.extend(copies.into_iter().map(|(range, content)| {
                let ask = match content {
                    Content::Data(data) => Ask::Write { data, fua: false },
                    Content::Zeroes { holes } => Ask::Zeroes { holes, fast: false },
                };
                Rc::new(Request { replay: true, ..Request::new(ask, range, self.env.now()) })
            }));
        }
        urgent.iter().for_each(|request| request.urgent.set(true));
        if !urgent.is_empty() {
            self.env.mark("remote_writes_are_sent_again");
        }
        let count = urgent.len();
        self.urgent_left.set(count);
        *self.urgent.borrow_mut() = urgent.into();
        self.resent.set(self.resent.get() + count as u64);
        count as u64
    }

    /// Starts the tasks of the connections.
    fn begin(
        self: &Rc<Self>,
        connections: Connections<C::Stream>,
    ) -> (Links<C::Stream>, Vec<Task>) {
        let mut tasks = Vec::new();
        let mut links = Vec::new();
        let mut parts = Vec::new();
        for Fresh { stream, decoder, rest, export } in connections {
            let link = Rc::new(Link::new(stream, export));
            links.push(link.clone());
            parts.push((link, decoder, rest));
        }
        *self.links.borrow_mut() = links.clone();
        self.phase.set(Phase::Replaying);
        for (link, decoder, rest) in parts {
            let foreground = Priority::Foreground;
            let receive = receive_replies(self.clone(), link.clone(), decoder, rest);
            tasks.push(self.env.spawn(foreground, receive));
            tasks.push(self.env.spawn(foreground, send_requests(self.clone(), link.clone())));
            tasks.push(self.env.spawn(foreground, watch_deadline(self.clone(), link)));
        }
        (links, tasks)
    }

    /// Returns when a connection has ended, or the disk is closed.
    async fn run_session(self: &Rc<Self>, outage: &mut Option<Outage>, again: u64) {
        loop {
            let trouble = self.trouble.notified();
            let ended = self.links.borrow().iter().any(|link| link.ended.is_set());
            if ended || self.closing.is_set() {
                return;
            }
            if self.phase.get() == Phase::Replaying && self.urgent_left.get() == 0 {
                self.phase.set(Phase::Open);
                self.failing.set(false);
                if let Some(outage) = outage.take() {
                    outage.over.set();
                    self.reconnects.set(self.reconnects.get() + 1);
                    let after = self.env.now().since(outage.since);
                    self.tell(RemoteEvent::Back { after, again });
                }
                self.work.notify_all();
            }
            trouble.await;
        }
    }

    /// No request is sent any more; those under way are answered, or their connections end. Returns
    /// the reason of the first loss.
    async fn drain(&self, links: &[Rc<Link<C::Stream>>]) -> String {
        self.phase.set(Phase::Down);
        links.iter().for_each(|link| link.draining.set(true));
        let reason = links.iter().find_map(|link| link.reason.borrow().clone());
        self.work.notify_all();
        for link in links {
            loop {
                let changed = link.changed.notified();
                if link.ended.is_set() {
                    break;
                }
                if link.is_idle() {
                    say_goodbye(link).await;
                    link.end(None);
                    break;
                }
                changed.await;
            }
        }
        self.work.notify_all();
        reason.unwrap_or_else(|| "closed".to_owned())
    }

    fn begin_outage(self: &Rc<Self>, reason: String) -> Outage {
        let outage = Outage { since: self.env.now(), over: Rc::default() };
        if self.options.patience < Nanos(u64::MAX) {
            let (shared, over, ends) = (self.clone(), outage.over.clone(), self.patience_ends());
            self.env.spawn(Priority::Foreground, async move {
                match first(over.wait(), shared.env.sleep_until(ends)).await {
                    Either::Left(()) => {}
                    Either::Right(()) => shared.lose_patience(reason),
                }
            });
        }
        outage
    }

    /// Sorts what was under way when its connection ended.
    fn collect(self: &Rc<Self>, links: &[Rc<Link<C::Stream>>]) {
        let fence = self.env.now().after(self.options.fence);
        let mut back = Vec::new();
        for link in links {
            let under_way = std::mem::take(&mut *link.under_way.borrow_mut());
            for (request, _) in under_way.into_values() {
                if request.changes() {
                    self.landing.quarantine(request.range, fence);
                    request.fence.set(Some(fence));
                }
                if request.replay {
                    if self.failing.get() {
                        // A server that hangs over a copy would keep everything else waiting.
                        self.kept.borrow_mut().doubt(request.range);
                    }
                    continue;
                }
                request.lost.set(request.changes());
                if matches!(request.ask, Ask::Trim) {
                    self.settle_trim(&request);
                    continue;
                }
                let waits = self.again.borrow().iter().any(|other| Rc::ptr_eq(other, &request));
                if self.is_too_old(&request) {
                    self.again.borrow_mut().retain(|other| !Rc::ptr_eq(other, &request));
                    self.give_up_on(&request);
                } else if request.changes() && !waits {
                    self.again.borrow_mut().push(request);
                } else if !waits {
                    back.push(request);
                }
            }
        }
        self.put_back(back);
    }

    /// Tries to reach the server until it has the export that it had.
    async fn find_server(
        self: &Rc<Self>,
        wait: &mut Nanos,
    ) -> Result<Connections<C::Stream>, OpenFailure> {
        let mut grown = false;
        loop {
            let attempt = connect_all(&self.env, &self.connect, &self.name, &self.options);
            let failure = match Box::pin(attempt).await {
                Ok(found) => match self.check_same(&found[0].export, &mut grown) {
                    Ok(()) => return Ok(found),
                    Err(failure) => {
                        found.iter().for_each(|fresh| fresh.stream.close());
                        failure
                    }
                },
                Err(failure) => failure,
            };
            if !failure.may_pass() {
                return Err(failure);
            }
            self.pause(wait).await;
        }
    }

    /// Waits, and makes the next wait longer.
    async fn pause(&self, wait: &mut Nanos) {
        self.env.sleep(*wait).await;
        *wait = Nanos(wait.0.saturating_mul(2)).min(self.options.retry_max);
    }

    fn check_same(&self, found: &Export, grown: &mut bool) -> Result<(), OpenFailure> {
        let size = self.size.get();
        found.check_same(&Export { size, ..self.export.clone() })?;
        self.size_found.set(found.size);
        if found.size > size && !std::mem::replace(grown, true) {
            self.tell(RemoteEvent::Grown { found: found.size, expected: size });
        }
        Ok(())
    }
}
