//! State of a remote disk that its connections share: requests that wait, and what becomes of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::local::{Event, Lock, Notify};
use ubcache_env::{DeviceLimits, Env, IntervalSet, IoError, IoResult, Nanos, Priority};

use super::export::Export;
use super::fence::Landing;
use super::kept::{Content, Kept};
use super::link::{Link, Reason};
use super::request::{Ask, ENOTSUP, Request, error_of};
use super::{Connect, RemoteEvent, RemoteOptions, SECTOR_BYTES};

const EIO: i32 = 5;
const ETIMEDOUT: i32 = 110;

/// State of the connection to the server.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// There is none.
    Down,
    /// It is there again, and gets what it may have lost.
    Replaying,
    /// Requests go out.
    Open,
    /// The server has another export now.
    GivenUp,
    /// The disk was closed.
    Closed,
}

/// See the module.
pub(super) struct Shared<E: Env, C: Connect> {
    pub env: E,
    pub connect: C,
    pub name: String,
    pub options: RemoteOptions,
    /// Properties when the disk was opened.
    pub export: Export,
    /// Size of the disk in bytes, and that of the export as the present session has it.
    pub size: Cell<u64>,
    pub size_found: Cell<u64>,
    pub phase: Cell<Phase>,
    /// Patience is over.
    pub failing: Cell<bool>,
    pub links: RefCell<Vec<Rc<Link<C::Stream>>>>,
    /// Requests that wait for a connection.
    pending: RefCell<VecDeque<Rc<Request>>>,
    /// Requests that go first: what a server may have lost, or may not have carried out.
    pub urgent: RefCell<VecDeque<Rc<Request>>>,
    /// Urgent requests of this session that have no answer.
    pub urgent_left: Cell<usize>,
    /// Writes whose outcome is not known, until they have an answer.
    pub again: RefCell<Vec<Rc<Request>>>,
    /// Requests can be taken, or a connection ends.
    pub work: Notify,
    /// A connection has ended, all of what is urgent has an answer, or the disk is closed.
    pub trouble: Notify,
    pub closing: Event,
    pub landing: Landing,
    pub kept: RefCell<Kept>,
    /// Sectors that the server may have lost and that nobody has been told of.
    pub lost: RefCell<IntervalSet>,
    /// The next flush fails.
    pub owed: Cell<bool>,
    /// Flushes that have failed.
    failed_flushes: Cell<u64>,
    /// Flushes are under way one by one: what one of them has used up, the next one can't know.
    flushing: Lock,
    /// A flush makes room for copies.
    making_room: Cell<bool>,
    cookie: Cell<u64>,
    pub reconnects: Cell<u64>,
    pub resent: Cell<u64>,
    fenced: Cell<u64>,
    given_up: Cell<u64>,
}

impl<E: Env, C: Connect> Shared<E, C> {
    pub fn new(
        env: E,
        connect: C,
        name: String,
        options: RemoteOptions,
        export: Export,
    ) -> Shared<E, C> {
        let kept = Kept::new(options.keep_bytes, export.limits().sectors);
        let (size, size_found) = (Cell::new(export.size), Cell::new(export.size));
        Shared {
            env,
            connect,
            name,
            options,
            export,
            size,
            size_found,
            phase: Cell::new(Phase::Down),
            failing: Cell::default(),
            links: RefCell::default(),
            pending: RefCell::default(),
            urgent: RefCell::default(),
            urgent_left: Cell::default(),
            again: RefCell::default(),
            work: Notify::default(),
            trouble: Notify::default(),
            closing: Event::default(),
            landing: Landing::default(),
            kept: RefCell::new(kept),
            lost: RefCell::default(),
            owed: Cell::default(),
            failed_flushes: Cell::default(),
            flushing: Lock::default(),
            making_room: Cell::default(),
            cookie: Cell::new(1),
            reconnects: Cell::default(),
            resent: Cell::default(),
            fenced: Cell::default(),
            given_up: Cell::default(),
        }
    }

    /// Limits of the disk, with its present size.
    pub fn limits(&self) -> DeviceLimits {
        DeviceLimits { sectors: self.size.get() / SECTOR_BYTES, ..self.export.limits() }
    }

    /// Takes the size that the export had when the server was last reached, if it is longer.
    pub fn grow(&self) {
        let found = self.size_found.get();
        if found > self.size.get() {
            self.size.set(found);
            self.kept.borrow_mut().grow(found / SECTOR_BYTES);
        }
    }

    pub fn tell(&self, event: RemoteEvent) {
        if let Some(events) = &self.options.events {
            events(event);
        }
    }

    pub fn counters(&self) -> super::RemoteCounters {
        let open = self.links.borrow().iter().filter(|link| !link.ended.is_set()).count();
        super::RemoteCounters {
            connections: open as u64,
            reconnects: self.reconnects.get(),
            resent: self.resent.get(),
            quarantined_sectors: self.landing.quarantined(self.env.now()),
            fenced: self.fenced.get(),
            kept_bytes: self.kept.borrow().bytes() as u64,
            given_up: self.given_up.get(),
        }
    }

    /// So many cookies that no other request has.
    pub fn cookies(&self, count: u64) -> u64 {
        self.cookie.replace(self.cookie.get() + count)
    }

    /// Ends a connection.
    pub fn lose(&self, link: &Link<C::Stream>, reason: Reason) {
        link.end(Some(reason));
        self.work.notify_all();
        self.trouble.notify_all();
    }

    /// The error of requests that can't wait for a server.
    pub fn refusal(&self) -> Option<IoError> {
        match self.phase.get() {
            Phase::GivenUp | Phase::Closed => Some(IoError::Gone),
            _ if self.failing.get() => Some(IoError::Os(ETIMEDOUT)),
            _ => None,
        }
    }

    /// Sends a request as soon as there is a connection with room.
    pub fn submit(self: &Rc<Self>, request: Rc<Request>) {
        match self.refusal() {
            Some(error) => self.fail(&request, error),
            None => {
                self.pending.borrow_mut().push_back(request);
                self.work.notify_all();
            }
        }
    }

    /// The next requests for a connection.
    pub fn next_batch(self: &Rc<Self>, link: &Link<C::Stream>) -> Vec<Rc<Request>> {
        let room = link.room();
        let mut batch: Vec<Rc<Request>> = Vec::new();
        let share = |waiting: usize| waiting.div_ceil(self.links.borrow().len().max(1)).min(room);
        let mut bytes = 0;
        let urgent = share(self.urgent.borrow().len());
        while batch.len() < urgent
            && bytes < super::link::WINDOW_BYTES
            && let Some(request) = self.urgent.borrow_mut().pop_front()
        {
            bytes += request.payload();
            request.mark.set(self.failed_flushes.get());
            batch.push(request);
        }
        if self.phase.get() != Phase::Open || !batch.is_empty() {
            return batch;
        }
        let most = share(self.pending.borrow().len());
        while batch.len() < most && bytes < super::link::WINDOW_BYTES {
            let Some(request) = self.pending.borrow_mut().pop_front() else { break };
            if self.may_go(&request) {
                bytes += request.payload();
                batch.push(request);
            }
        }
        batch
    }

    /// Returns false if the request has to wait, or has failed.
    fn may_go(self: &Rc<Self>, request: &Rc<Request>) -> bool {
        let now = self.env.now();
        if request.changes() {
            request.mark.set(self.failed_flushes.get());
            if let Some(fence) = self.landing.fence_over(request.range, now)
                && !self.options.rules.no_fence
            {
                // L1: a write of a connection that was lost may land until then.
                self.env.mark("remote_write_waits_for_fence");
                self.fenced.set(self.fenced.get() + 1);
                let (shared, request) = (self.clone(), request.clone());
                self.env.spawn(Priority::Foreground, async move {
                    shared.env.sleep_until(fence).await;
                    shared.submit(request);
                });
                return false;
            }
        }
        if matches!(request.ask, Ask::Read | Ask::Status)
            && self.lost.borrow().overlaps(request.range)
        {
            // L2: it would be older than what was answered before.
            self.env.mark("remote_read_of_lost_data_fails");
            self.finish(request, Err(IoError::Os(EIO)));
            return false;
        }
        if matches!(request.ask, Ask::Flush) {
            request.mark.set(self.kept.borrow_mut().flush_begins());
        }
        true
    }

    /// The server has answered.
    pub fn settle(self: &Rc<Self>, request: &Rc<Request>, error: Option<i32>) {
        if request.urgent.replace(false) {
            self.urgent_left.set(self.urgent_left.get() - 1);
            self.again.borrow_mut().retain(|other| !Rc::ptr_eq(other, request));
            if self.urgent_left.get() == 0 {
                self.trouble.notify_all();
            }
        }
        if request.replay {
            if error.is_some() {
                self.kept.borrow_mut().doubt(request.range);
                self.doubt_is_loss();
            }
            return;
        }
        match (&request.ask, error) {
            (Ask::Flush, None) => {
                self.kept.borrow_mut().flush_ends(request.mark.get());
                self.finish(request, Ok(()));
            }
            (Ask::Flush, Some(errno)) => {
                self.failed_flushes.set(self.failed_flushes.get() + 1);
                self.kept.borrow_mut().flush_failed();
                self.finish(request, Err(error_of(errno)));
            }
            (Ask::Zeroes { fast: true, .. }, Some(ENOTSUP)) if !request.lost.get() => {
                self.finish(request, Err(IoError::NotSupported));
            }
            (_, Some(errno)) => self.fail(request, error_of(errno)),
            (Ask::Trim, None) => self.settle_trim(request),
            (_, None) => {
                if request.changes() {
                    self.write_answered(request);
                }
                self.finish(request, Ok(()));
            }
        }
    }

    fn write_answered(self: &Rc<Self>, request: &Request) {
        let mut kept = self.kept.borrow_mut();
        self.lost.borrow_mut().remove(request.range);
        let durable = matches!(request.ask, Ask::Write { fua: true, .. });
        // A flush that failed meanwhile may have cost it, and the caller of the flush was told.
        let told = request.mark.get() != self.failed_flushes.get();
        if durable && self.export.has_fua() || told || !self.export.is_volatile() {
            kept.forget(request.range);
            return;
        }
        let content = match &request.ask {
            Ask::Write { data, .. } => Content::Data(data.clone()),
            Ask::Zeroes { holes, .. } => Content::Zeroes { holes: *holes },
            _ => return,
        };
        kept.answered(request.range, &content);
        if kept.wants_flush() && !self.making_room.replace(true) {
            drop(kept);
            self.make_room();
        }
    }

    /// Flushes, so that copies can go.
    fn make_room(self: &Rc<Self>) {
        let shared = self.clone();
        self.env.spawn(Priority::Background, async move {
            shared.env.mark("remote_flush_makes_room");
            let _ = shared.flush_for_itself().await;
            shared.making_room.set(false);
        });
    }

    /// A trim that was carried out, or that was lost and is not sent again, is answered when it is
    /// durable and can't land any more. Its result is not known to be the same each time, so no
    /// later session could repeat it.
    pub fn settle_trim(self: &Rc<Self>, request: &Rc<Request>) {
        let (shared, request) = (self.clone(), request.clone());
        self.env.spawn(Priority::Foreground, async move {
            if let Some(fence) = request.fence.get() {
                shared.env.sleep_until(fence).await;
            }
            let result = shared.flush_for_itself().await;
            shared.finish(&request, result);
        });
    }

    /// Flushes for a reason of the client. The caller of the next flush is told of an error.
    pub async fn flush_for_itself(self: &Rc<Self>) -> IoResult {
        if !self.export.is_volatile() {
            return Ok(());
        }
        self.flush_once(true).await
    }

    /// Flushes when no other flush is under way: of two, the one that the server answers with
    /// success may stand for what the other one has failed to write. Goes on to its end also if
    /// nobody waits any more.
    async fn flush_once(self: &Rc<Self>, own: bool) -> IoResult {
        let request = Rc::new(Request::flush(self.env.now(), own));
        let (shared, sent) = (self.clone(), request.clone());
        self.env.spawn(Priority::Foreground, async move {
            let _one = shared.flushing.lock().await;
            shared.submit(sent.clone());
            sent.done.wait().await;
        });
        request.done.wait().await;
        request.result.take().unwrap_or(Err(IoError::Gone))
    }

    /// Flushes; fails once if the server may have lost what it had answered.
    pub async fn flush(self: &Rc<Self>) -> IoResult {
        let result = self.flush_once(false).await;
        if self.owed.get() && result.is_ok() {
            // L2: told once.
            self.env.mark("remote_flush_fails_after_loss");
            self.owed.set(false);
            self.lost.borrow_mut().clear();
            return Err(IoError::Os(EIO));
        }
        result
    }

    /// Data without a copy may be lost: reads of it fail until a flush has.
    pub fn doubt_is_loss(&self) {
        let lost = self.kept.borrow_mut().take_bare();
        if lost.is_empty() {
            return;
        }
        self.owed.set(true);
        self.lost.borrow_mut().merge(&lost);
        self.tell(RemoteEvent::MayBeLost { sectors: lost.sectors() });
    }

    /// The request fails: at once, or when it can't land any more (L3).
    pub fn fail(self: &Rc<Self>, request: &Rc<Request>, error: IoError) {
        if request.replay {
            return;
        }
        if request.changes() && request.sent.get() && self.export.is_volatile() {
            // It may have landed, so what was there before can't be written again.
            self.kept.borrow_mut().doubt(request.range);
            if request.lost.get() {
                // Nor was that written again to this server, which may have lost it.
                self.doubt_is_loss();
            }
        }
        match request.fence.get() {
            Some(fence) if fence > self.env.now() && !self.options.rules.early_errors => {
                self.env.mark("remote_error_waits_for_fence");
                let (shared, request) = (self.clone(), request.clone());
                self.env.spawn(Priority::Foreground, async move {
                    shared.env.sleep_until(fence).await;
                    shared.finish(&request, Err(error));
                });
            }
            _ => self.finish(request, Err(error)),
        }
    }

    fn finish(&self, request: &Request, result: IoResult) {
        if request.done.is_set() {
            return;
        }
        if request.changes() {
            self.landing.release(request.range);
        }
        if request.own && result.is_err() {
            // L2: whoever flushes next is told.
            self.owed.set(true);
        }
        *request.result.borrow_mut() = Some(result);
        request.done.set();
    }

    /// Puts requests back that were under way, in their order, before those that wait.
    pub fn put_back(&self, requests: Vec<Rc<Request>>) {
        let mut pending = self.pending.borrow_mut();
        requests.into_iter().rev().for_each(|request| pending.push_front(request));
    }

    /// Everything that waits fails. Requests that are under way have an answer, or their connection
    /// is lost.
    pub fn fail_all(self: &Rc<Self>, error: &IoError) {
        let is_under_way = |request: &Rc<Request>| {
            let links = self.links.borrow();
            links.iter().any(|link| {
                link.under_way.borrow().values().any(|(other, _)| Rc::ptr_eq(other, request))
            })
        };
        let (under_way, again): (Vec<_>, Vec<_>) =
            self.again.take().into_iter().partition(is_under_way);
        *self.again.borrow_mut() = under_way;
        let pending = self.pending.take();
        self.given_up.set(self.given_up.get() + (again.len() + pending.len()) as u64);
        for request in again.iter().chain(&pending) {
            if request.urgent.replace(false) {
                self.urgent.borrow_mut().retain(|other| !Rc::ptr_eq(other, request));
                self.urgent_left.set(self.urgent_left.get() - 1);
            }
            self.fail(request, error.clone());
        }
        self.trouble.notify_all();
    }

    /// One request fails because it has waited for too long.
    pub fn give_up_on(self: &Rc<Self>, request: &Rc<Request>) {
        self.given_up.set(self.given_up.get() + 1);
        self.fail(request, IoError::Os(ETIMEDOUT));
    }

    /// Returns true if a request that was lost is not sent again.
    pub fn is_too_old(&self, request: &Request) -> bool {
        self.failing.get() || self.env.now().since(request.asked) >= self.options.patience
    }

    /// Patience is over: requests fail until the server is back.
    pub fn lose_patience(self: &Rc<Self>, reason: String) {
        if matches!(self.phase.get(), Phase::Down | Phase::Replaying) && !self.failing.get() {
            self.failing.set(true);
            self.tell(RemoteEvent::Failing { reason });
            self.fail_all(&IoError::Os(ETIMEDOUT));
        }
    }

    /// The moment at which patience is over, if it began now.
    pub fn patience_ends(&self) -> Nanos {
        self.env.now().after(self.options.patience)
    }
}
