//! One connection: requests go out as there is room, replies come back in any order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::local::{Event, Notify, first};
use ubcache_env::{Buf, Env, IoVec, Nanos, Stream};

use super::Connect;
use super::export::Export;
use super::request::{Ask, Request};
use super::shared::Shared;
use crate::proto::{Chunk, ClientDecoder, ClientEvent, Command, ErrorCode};

/// Requests under way over one connection.
pub(super) const WINDOW: usize = 64;
/// Bytes of their contents, beyond which none is added.
pub(super) const WINDOW_BYTES: u64 = 16 << 20;
/// Memory for replies.
const RECEIVE_BYTES: usize = 64 << 10;
/// Contents from this length on are received to where they belong.
const DIRECT_BYTES: u32 = 8 << 10;

/// See the module.
pub(super) struct Link<S> {
    pub stream: S,
    pub export: Export,
    /// Requests by cookie, in the order of sending, and when each was sent.
    pub under_way: RefCell<BTreeMap<u64, (Rc<Request>, Nanos)>>,
    /// Bytes of their contents.
    bytes: Cell<u64>,
    /// It takes no more requests.
    pub draining: Cell<bool>,
    /// It is closed.
    pub ended: Event,
    /// Reason of a loss.
    pub reason: RefCell<Option<String>>,
    /// A request was sent, or the last one was answered.
    pub changed: Notify,
}

/// Content that is being received.
struct Body {
    request: Rc<Request>,
    cookie: u64,
    at: usize,
    last: bool,
}

/// Reason for the loss of a connection.
pub(super) type Reason = String;

impl<S: Stream> Link<S> {
    pub fn new(stream: S, export: Export) -> Link<S> {
        Link {
            stream,
            export,
            under_way: RefCell::default(),
            bytes: Cell::default(),
            draining: Cell::default(),
            ended: Event::default(),
            reason: RefCell::default(),
            changed: Notify::default(),
        }
    }

    /// Closes it; the first reason counts.
    pub fn end(&self, reason: Option<Reason>) {
        if !self.ended.is_set() {
            *self.reason.borrow_mut() = reason;
            self.ended.set();
            self.stream.close();
            self.changed.notify_all();
        }
    }

    /// Requests that may be added.
    pub fn room(&self) -> usize {
        if self.ended.is_set() || self.draining.get() || self.bytes.get() >= WINDOW_BYTES {
            return 0;
        }
        WINDOW.saturating_sub(self.under_way.borrow().len())
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.borrow().is_empty()
    }

    fn read_length(&self, cookie: u64) -> Option<u32> {
        self.under_way.borrow().get(&cookie).map(|(request, _)| request.read_length())
    }

    fn request(&self, cookie: u64) -> Result<Rc<Request>, Reason> {
        let under_way = self.under_way.borrow();
        let found = under_way.get(&cookie).map(|(request, _)| request.clone());
        found.ok_or_else(|| format!("reply to unknown request {cookie:#x}"))
    }

    /// Notes requests as sent, and returns what is to be sent.
    fn pack(&self, batch: Vec<Rc<Request>>, first_cookie: u64, now: Nanos) -> IoVec {
        let mut headers = Vec::with_capacity(batch.len() * 28);
        let mut ends = Vec::with_capacity(batch.len());
        for (cookie, request) in (first_cookie..).zip(&batch) {
            request.restart();
            request.header(cookie, &self.export).encode(&mut headers);
            ends.push(headers.len());
        }
        let headers = Buf::from_bytes(&headers).freeze();
        let mut out = IoVec::with_capacity(2 * batch.len());
        let mut at = 0;
        for ((cookie, request), end) in (first_cookie..).zip(batch).zip(ends) {
            out.push(headers.cut(at, end));
            at = end;
            if let Ask::Write { data, .. } = &request.ask {
                out.append(data.clone());
            }
            self.bytes.set(self.bytes.get() + request.payload());
            self.under_way.borrow_mut().insert(cookie, (request, now));
        }
        self.changed.notify_all();
        out
    }

    /// The request is not under way any more. Returns true if another one may be waiting for that.
    fn take(&self, cookie: u64) -> bool {
        let full = self.room() == 0;
        if let Some((request, _)) = self.under_way.borrow_mut().remove(&cookie) {
            self.bytes.set(self.bytes.get() - request.payload());
        }
        if self.is_idle() {
            self.changed.notify_all();
        }
        full
    }
}

/// Sends requests until the connection ends.
pub(super) async fn send_requests<E: Env, C: Connect>(
    shared: Rc<Shared<E, C>>,
    link: Rc<Link<C::Stream>>,
) {
    while !link.ended.is_set() {
        let changed = shared.work.notified();
        let batch = shared.next_batch(&link);
        if batch.is_empty() {
            changed.await;
            continue;
        }
        drop(changed);
        let cookie = shared.cookies(batch.len() as u64);
        let out = link.pack(batch, cookie, shared.env.now());
        if let Err(error) = link.stream.send(out).await {
            shared.lose(&link, format!("sending: {error}"));
        }
    }
}

/// Says goodbye: the server ends the connection when it has answered everything.
pub(super) async fn say_goodbye<S: Stream>(link: &Link<S>) {
    let goodbye = crate::proto::Request {
        flags: 0,
        command: Command::Disconnect,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    let mut out = Vec::new();
    goodbye.encode(&mut out);
    // One that is gone already needs no goodbye.
    let _ = link.stream.send(Buf::from_bytes(&out).into()).await;
    link.stream.say_goodbye().await;
}

/// Closes the connection when its oldest request has waited for too long.
pub(super) async fn watch_deadline<E: Env, C: Connect>(
    shared: Rc<Shared<E, C>>,
    link: Rc<Link<C::Stream>>,
) {
    let deadline = shared.options.deadline;
    while !link.ended.is_set() {
        let changed = link.changed.notified();
        let oldest = link.under_way.borrow().values().next().map(|(request, sent)| {
            let name = request.name();
            (name, sent.after(deadline))
        });
        match oldest {
            None => changed.await,
            Some((name, at)) if at <= shared.env.now() => {
                shared
                    .lose(&link, format!("no answer to a {name} for {} ms", deadline.as_millis()));
            }
            Some((_, at)) => {
                drop(changed);
                first(link.ended.wait(), shared.env.sleep_until(at)).await;
            }
        }
    }
}

/// Receives replies until the connection ends.
pub(super) async fn receive_replies<E: Env, C: Connect>(
    shared: Rc<Shared<E, C>>,
    link: Rc<Link<C::Stream>>,
    decoder: ClientDecoder,
    rest: Vec<u8>,
) {
    let mut receiver = Receiver { shared, link, decoder, body: None };
    let ended = match receiver.take_all(&rest) {
        Ok(()) => receiver.receive().await,
        Err(reason) => reason,
    };
    receiver.shared.lose(&receiver.link, ended);
}

struct Receiver<E: Env, C: Connect> {
    shared: Rc<Shared<E, C>>,
    link: Rc<Link<C::Stream>>,
    decoder: ClientDecoder,
    body: Option<Body>,
}

impl<E: Env, C: Connect> Receiver<E, C> {
    async fn receive(&mut self) -> Reason {
        let mut buf = Buf::zeroed(RECEIVE_BYTES);
        loop {
            let received;
            if let Some((request, memory, at)) = self.direct() {
                let (memory, result) = self.link.stream.recv_at(memory, at).await;
                *request.buf.borrow_mut() = Some(memory);
                received = result;
                if let Ok(count @ 1..) = received
                    && let Err(reason) = self.received_directly(count)
                {
                    return reason;
                }
            } else {
                let result;
                (buf, result) = self.link.stream.recv(buf).await;
                received = result;
                if let Ok(count @ 1..) = received
                    && let Err(reason) = self.take_all(&buf.as_slice()[..count])
                {
                    return reason;
                }
            }
            match received {
                Ok(0) => return "the server ended the connection".to_owned(),
                Ok(_) => {}
                Err(error) => return format!("receiving: {error}"),
            }
        }
    }

    /// Memory to receive to, if the rest of a read comes next and is all that fits there.
    fn direct(&self) -> Option<(Rc<Request>, Buf, usize)> {
        let left = self.decoder.payload_left();
        let body = self.body.as_ref().filter(|_| left >= DIRECT_BYTES)?;
        let mut slot = body.request.buf.borrow_mut();
        let fits = slot.as_ref().is_some_and(|buf| buf.len() == body.at + left as usize);
        let memory = if fits { slot.take() } else { None }?;
        Some((body.request.clone(), memory, body.at))
    }

    fn received_directly(&mut self, count: usize) -> Result<(), Reason> {
        self.decoder.payload_bypassed(count as u32);
        self.got(count)
    }

    /// So many bytes of the content have come.
    fn got(&mut self, count: usize) -> Result<(), Reason> {
        let body = self.body.as_mut().expect("content is announced");
        body.at += count;
        body.request.got.set(body.request.got.get().saturating_add(count as u32));
        if self.decoder.payload_left() == 0 {
            let body = self.body.take().expect("just seen");
            if body.last {
                return self.finish(body.cookie, &body.request);
            }
        }
        Ok(())
    }

    fn take_all(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let mut input = bytes;
        loop {
            let link = &self.link;
            let event = self.decoder.next(&mut input, |cookie| link.read_length(cookie));
            match event.map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(ClientEvent::Reply(reply)) => {
                    let request = self.link.request(reply.cookie)?;
                    set_error(&request, reply.error);
                    if reply.error.is_none() && request.read_length() > 0 {
                        let (cookie, at, last) = (reply.cookie, 0, true);
                        self.body = Some(Body { request, cookie, at, last });
                    } else {
                        self.finish(reply.cookie, &request)?;
                    }
                }
                Some(ClientEvent::Chunk { cookie, done, chunk }) => {
                    self.chunk(cookie, done, chunk)?;
                }
                Some(ClientEvent::Payload(bytes)) => {
                    let body = self.body.as_ref().expect("content is announced");
                    if let Some(buf) = body.request.buf.borrow_mut().as_mut() {
                        let to = body.at..body.at + bytes.len();
                        buf.as_mut_slice()[to].copy_from_slice(bytes);
                    }
                    self.got(bytes.len())?;
                }
                Some(_) => return Err("a message of the negotiation came after it".to_owned()),
            }
        }
    }

    fn chunk(&mut self, cookie: u64, done: bool, chunk: Chunk) -> Result<(), Reason> {
        let request = self.link.request(cookie)?;
        match chunk {
            Chunk::Data { offset, length } => {
                let at = place_in(&request, offset, length)?;
                self.body = Some(Body { request, cookie, at, last: done });
                return Ok(());
            }
            Chunk::Hole { offset, length } => {
                let at = place_in(&request, offset, length)?;
                if let Some(buf) = request.buf.borrow_mut().as_mut() {
                    buf.as_mut_slice()[at..at + length as usize].fill(0);
                }
                request.got.set(request.got.get().saturating_add(length));
            }
            Chunk::BlockStatus { context, extents } => {
                let is_asked = matches!(request.ask, Ask::Status)
                    && Some(context) == self.link.export.allocation
                    && request.extents.borrow().is_empty();
                if !is_asked {
                    let name = request.name();
                    return Err(format!("a block status too many in the answer to a {name}"));
                }
                *request.extents.borrow_mut() = extents;
            }
            Chunk::Error { error, .. } => set_error(&request, Some(error)),
            Chunk::Unknown { kind, .. }
                if kind & crate::proto::constants::chunk::ERROR_BIT != 0 =>
            {
                set_error(&request, Some(ErrorCode::Io));
            }
            Chunk::Unknown { .. } | Chunk::None => {}
        }
        if done { self.finish(cookie, &request) } else { Ok(()) }
    }

    /// The reply is complete.
    fn finish(&mut self, cookie: u64, request: &Rc<Request>) -> Result<(), Reason> {
        let error = request.error.get();
        if error == Some(ErrorCode::Shutdown.to_wire() as i32) {
            // Sent again later: it stays under way until then.
            return Err("the server is on its way down".to_owned());
        }
        if error.is_none() && request.got.get() != request.read_length() {
            return Err(format!(
                "{} bytes in the answer to a {}",
                request.got.get(),
                request.name()
            ));
        }
        let was_full = self.link.take(cookie);
        self.shared.settle(request, error);
        if was_full {
            self.shared.work.notify_all();
        }
        Ok(())
    }
}

fn set_error(request: &Request, error: Option<ErrorCode>) {
    if request.error.get().is_none() {
        request.error.set(error.map(|error| error.to_wire() as i32));
    }
}

/// Byte of the read's memory for a chunk.
fn place_in(request: &Request, offset: u64, length: u32) -> Result<usize, Reason> {
    let start = request.range.start.0 * super::SECTOR_BYTES;
    let from = offset.checked_sub(start);
    let to = from.and_then(|from| from.checked_add(u64::from(length)));
    let inside = from.zip(to).filter(|(_, to)| *to <= u64::from(request.read_length()));
    match inside.filter(|(from, to)| request.cover(*from, *to)) {
        Some((from, _)) => Ok(from as usize),
        None => {
            let name = request.name();
            Err(format!("{length} bytes at {offset} in the answer to a {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::{Sector, SectorRange};

    use super::*;

    #[test]
    fn chunks_outside_the_read_are_refused() {
        let read = || Request::new(Ask::Read, SectorRange::new(Sector(8), 8), Nanos(0));
        assert_eq!(place_in(&read(), 4096, 4096), Ok(0));
        assert_eq!(place_in(&read(), 8000, 192), Ok(3904));
        for (offset, length) in [
            (4095, 2),
            (8000, 193),
            (8192, 1),
            (0, 1),
            (u64::MAX - 255, 4096),
            (u64::MAX, u32::MAX),
        ] {
            assert!(place_in(&read(), offset, length).is_err(), "{length} bytes at {offset}");
        }
    }
}
