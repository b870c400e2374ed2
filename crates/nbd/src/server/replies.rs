//! Sends what is ready, as much as possible at once (*Simple reply message*, *Structured reply
//! chunk message*).
//!
//! The headers of a batch are written to one piece of memory; the content of reads is sent from the
//! memory in which the volume returned it. Memory is used again: a batch of one reply costs no
//! allocation, a longer one a single one.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::{Buf, BufPool, IoVec, Slice, Stream, StreamError, VolumeError};

use super::limits::{Limits, Reservation, Signal};
use super::watch::Watch;
use crate::proto::{Chunk, ErrorCode, Request, SimpleReply, StatusExtent};
use crate::stats::ConnectionStats;

/// Parts of one send; the system takes no more than 1024.
const MAX_BATCH_PARTS: usize = 512;
/// Bytes of one send after which no further reply is added: the first of them can free room then.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// Error of a request, for the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) message: Cow<'static, str>,
}

impl Failure {
    pub(super) fn new(code: ErrorCode, message: &'static str) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        Failure { code: ErrorCode::from_errno(error.errno()), message: error.to_string().into() }
    }
}

/// Result of a request.
#[derive(Debug)]
pub(super) enum Body {
    Done,
    Content(IoVec),
    /// Of each context, by its number.
    Extents(Vec<(u32, Vec<StatusExtent>)>),
    Failed(Failure),
}

/// A request that is over.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) request: Request,
    pub(super) body: Body,
    /// Given back when the reply is sent.
    pub(super) reservation: Reservation,
}

/// Replies that are ready, in order of completion.
#[derive(Debug)]
pub(super) struct Outbox {
    structured: bool,
    ready: RefCell<VecDeque<Reply>>,
    ended: Cell<bool>,
    /// New requests are refused, and the stream is to be closed when all are answered.
    draining: Cell<bool>,
    closed: Cell<bool>,
    changed: Signal,
    limits: Rc<Limits>,
    stats: Rc<ConnectionStats>,
}

impl Outbox {
    pub(super) fn new(structured: bool, limits: Rc<Limits>, stats: Rc<ConnectionStats>) -> Outbox {
        Outbox {
            structured,
            ready: RefCell::default(),
            ended: Cell::new(false),
            draining: Cell::new(false),
            closed: Cell::new(false),
            changed: Signal::default(),
            limits,
            stats,
        }
    }

    /// A request is over.
    pub(super) fn push(&self, reply: Reply) {
        self.ready.borrow_mut().push_back(reply);
        self.changed.wake();
    }

    /// No more requests will be started.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.changed.wake();
    }

    /// From now on new requests are refused; the connection ends when all are answered.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.changed.wake();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Waits for something to do.
    async fn next(&self) -> Next {
        let finished = || self.ended.get() && self.limits.is_idle();
        let drained = || self.draining.get() && !self.closed.get() && self.limits.is_drained();
        let is_ready = || !self.ready.borrow().is_empty();
        self.changed.until(|| is_ready() || finished() || drained()).await;
        if is_ready() {
            Next::Send
        } else if finished() {
            Next::End
        } else {
            Next::Close
        }
    }

    /// Takes as many replies as go into one send.
    fn gather(&self, batch: &mut Batch) -> IoVec {
        batch.headers.clear();
        let (mut parts, mut bytes, mut errors) = (1, 0, 0);
        let mut ready = self.ready.borrow_mut();
        while parts < MAX_BATCH_PARTS && bytes < MAX_BATCH_BYTES {
            let Some(reply) = ready.pop_front() else { break };
            errors += u64::from(matches!(reply.body, Body::Failed(_)));
            let content = encode(self.structured, &reply.request, reply.body, &mut batch.headers);
            batch.claims.push(reply.reservation);
            if !content.is_empty() {
                parts += 1 + content.parts().len();
                bytes += content.len();
                batch.contents.push((batch.headers.len(), content));
            }
        }
        self.stats.update(|counts| counts.errors += errors);
        batch.put_together()
    }
}

/// The next thing that the sender does.
enum Next {
    /// Replies are ready.
    Send,
    /// Everything is drained.
    Close,
    /// Everything is sent and nothing will come.
    End,
}

/// The replies of one send.
#[derive(Debug, Default)]
struct Batch {
    /// Headers of all replies, one after the other.
    headers: Vec<u8>,
    /// Contents, and the place of each of them in `headers`.
    contents: Vec<(usize, IoVec)>,
    /// Claims that are dropped when the batch is sent.
    claims: Vec<Reservation>,
    pool: BufPool,
}

impl Batch {
    /// Headers with contents between them.
    fn put_together(&mut self) -> IoVec {
        let headers = self.shared_headers();
        let ends_with_header = self.contents.last().is_none_or(|(place, _)| *place < headers.len());
        let parts =
            self.contents.iter().map(|(_, content)| 1 + content.parts().len()).sum::<usize>();
        let mut batch = IoVec::with_capacity(parts + usize::from(ends_with_header));
        let mut at = 0;
        for (place, content) in self.contents.drain(..) {
            batch.push(headers.cut(at, place));
            batch.append(content);
            at = place;
        }
        batch.push(headers.cut(at, headers.len()));
        batch
    }

    fn shared_headers(&self) -> Slice {
        let len = self.headers.len();
        let mut shared = self.pool.for_bytes(len).unwrap_or_else(|| Buf::zeroed(len));
        shared.as_mut_slice().copy_from_slice(&self.headers);
        shared.freeze()
    }
}

/// Appends the header of a reply; gives the content that follows it.
fn encode(structured: bool, request: &Request, body: Body, out: &mut Vec<u8>) -> IoVec {
    let cookie = request.cookie;
    let simple = |error| SimpleReply { error, cookie };
    match body {
        Body::Done => simple(None).encode(out),
        Body::Failed(failure) if structured => {
            let Failure { code: error, message } = failure;
            Chunk::Error { error, message: message.into_owned(), offset: None }
                .encode(cookie, true, out);
        }
        Body::Failed(failure) => simple(Some(failure.code)).encode(out),
        Body::Content(content) if structured => {
            let length = u32::try_from(content.len()).expect("not longer than the largest request");
            Chunk::Data { offset: request.offset, length }.encode(cookie, true, out);
            return content;
        }
        Body::Content(content) => {
            simple(None).encode(out);
            return content;
        }
        Body::Extents(extents) => {
            let last = extents.len().saturating_sub(1);
            for (at, (context, extents)) in extents.into_iter().enumerate() {
                Chunk::BlockStatus { context, extents }.encode(cookie, at == last, out);
            }
        }
    }
    IoVec::new()
}

/// Sends replies until the last request is answered. After a failure the stream is closed, and the
/// replies still to come are thrown away.
pub(super) async fn send_replies<S: Stream>(
    stream: &S,
    outbox: &Outbox,
    watch: &Watch,
) -> Result<(), StreamError> {
    let mut result = Ok(());
    let mut batch = Batch::default();
    loop {
        match outbox.next().await {
            Next::Send => {}
            Next::Close => {
                outbox.closed.set(true);
                stream.say_goodbye().await;
                stream.close();
                continue;
            }
            Next::End => return result,
        }
        let content = outbox.gather(&mut batch);
        if result.is_ok() {
            let bytes = content.len() as u64;
            watch.set_sending(true);
            result = stream.send(content).await;
            watch.set_sending(false);
            match result {
                Ok(()) => outbox.stats.update(|counts| {
                    counts.sent_bytes += bytes;
                    counts.sends += 1;
                }),
                Err(_) => {
                    watch.give_up();
                    stream.close();
                }
            }
        }
        batch.claims.clear();
    }
}
