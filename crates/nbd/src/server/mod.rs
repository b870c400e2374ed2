//! One connection from greeting to goodbye.
//!
//! | module | verb |
//! |---|---|
//! | `negotiate` | agrees on an export and on the form of replies |
//! | `requests` | receives requests, checks them, starts them |
//! | `workers` | carries requests out: hits where they are received, others in tasks of their own |
//! | `contexts` | gives names and numbers to what the status of blocks can be asked for |
//! | `block_status` | brings the status of blocks into the form of the protocol |
//! | `replies` | sends what is ready, as much as possible at once |
//! | `limits` | bounds what is in flight |
//! | `drain` | ends connections in good order |
//! | `handover` | lets another server go on with connections |
//! | `shares` | divides among connections what they have in common |
//! | `pace` | limits requests and bytes a second |
//! | `watch` | signs of life, for the one who ends silent connections |
//! | `input` | receives bytes |
//!
//! ```text
//!           ┌ serve_connection: one task ───────────────┐
//! stream ───┤► Input ─► ServerDecoder ─► requests ──┐   │  workers: at once, or a task
//!           │             (waits for room: Limits)  ├───┼──► in flight, execute ─► Volume
//! stream ◄──┤◄ IoVec ◄─ replies ◄─ outbox ◄─────────┼───┼─────┘
//!           └───────────────────────────────────────────┘
//! ```
//!
//! A request holds its room in the `limits` until its reply is sent, so a client that does not
//! read its replies is not read from either. It starts when its connection has its turn on the
//! volume, so that one that asks for much does not keep the others from theirs. Requests run
//! concurrently and are answered in the order of completion. Whatever the client does, only its
//! own connection ends.

mod block_status;
mod contexts;
mod drain;
mod handover;
mod input;
mod limits;
mod negotiate;
mod pace;
mod replies;
mod requests;
pub(crate) mod shares;
mod watch;
mod workers;

use std::rc::Rc;

use ubcache_env::local::{first, join};
use ubcache_env::{Buf, Env, Nanos, Protection, Stream, StreamEnd, StreamError, StreamId, Volume};

use crate::exports::Exports;
use crate::proto::{ProtocolError, ServerDecoder};
use crate::stats::ConnectionStats;
pub use drain::Drain;
pub use handover::{Handover, Parked, Refused};
use input::Input;
use limits::Limits;
pub use pace::{Pace, Rates};
use replies::Outbox;
use requests::Connection;
use shares::Shared;
pub use watch::{Silence, Watch};

/// Time for the last words to a client.
const GOODBYE_TIMEOUT: Nanos = Nanos::from_secs(1);

/// Settings for serving a connection.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Bytes of content that requests in flight may hold; a longer request goes alone.
    pub max_inflight_bytes: u64,
    /// Requests that may be in flight.
    pub max_requests: u32,
    /// Size of the buffer that requests are received into.
    pub receive_buffer_bytes: usize,
    /// True if zeroing a range is faster than writing zeroes to it. If not, requests that insist on
    /// speed (`NBD_CMD_FLAG_FAST_ZERO`) get `NBD_ENOTSUP`.
    pub fast_zero: bool,
    /// Counters of the connection; a clone of the options shares them.
    pub stats: Rc<ConnectionStats>,
    /// The end of all connections that share it.
    pub drain: Rc<Drain>,
    /// The moment at which another server goes on with all connections that share it.
    pub handover: Rc<Handover>,
    /// The memory of all connections; a clone of the options shares it.
    pub memory: ClientMemory,
    /// Limits of the connection on requests and bytes a second.
    pub pace: Option<Rc<Pace>>,
    /// Signs of life; a clone of the options shares them.
    pub watch: Rc<Watch>,
}

/// Memory that all connections have together for the content of requests and replies, and for what
/// their streams take ([`Stream::memory_bytes`]).
#[derive(Clone, Debug)]
pub struct ClientMemory(Rc<Shared>);

impl ClientMemory {
    /// So many bytes. A request that is longer goes alone.
    pub fn new(bytes: u64) -> ClientMemory {
        ClientMemory(Shared::new(bytes))
    }

    /// Bytes that are in use.
    pub fn held_bytes(&self) -> u64 {
        self.0.held()
    }

    /// Returns true if a request waits for memory that others hold.
    pub fn is_short(&self) -> bool {
        self.0.is_short()
    }
}

impl Default for ClientMemory {
    fn default() -> ClientMemory {
        ClientMemory::new(256 << 20)
    }
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            max_inflight_bytes: 64 << 20,
            max_requests: 1024,
            receive_buffer_bytes: 128 << 10,
            fast_zero: false,
            stats: Rc::default(),
            drain: Rc::default(),
            handover: Rc::default(),
            memory: ClientMemory::default(),
            pace: None,
            watch: Rc::default(),
        }
    }
}

/// Reasons for an abnormal end of a connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServeError {
    /// The client violates the protocol, or exceeds a limit.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// The client has gone in the middle of a message, or before it had all replies.
    #[error("the client closed the connection inside a message")]
    Disconnected,
    /// The client chose an export that does not exist, by an option that can't be refused.
    #[error("there is no export \"{0}\"")]
    UnknownExport(String),
    /// The client asked for something else than TLS first, and left when it was refused.
    #[error("the client does not use TLS, which is required here")]
    TlsRequired,
    /// The stream failed.
    #[error(transparent)]
    Stream(StreamError),
}

impl From<StreamError> for ServeError {
    fn from(error: StreamError) -> ServeError {
        match error {
            StreamError::Closed => ServeError::Disconnected,
            error @ (StreamError::Os(_) | StreamError::Tls(_)) => ServeError::Stream(error),
        }
    }
}

/// Serves one client until it leaves; the stream is closed afterwards and no request is in flight.
///
/// To end it from this side, close the stream, or drain it first ([`Drain`]). Sequential access is
/// detected per `stream_id`: give each connection its own.
pub async fn serve_connection<E: Env, S: Stream, V: Volume>(
    env: E,
    stream: Rc<S>,
    exports: Rc<Exports<V>>,
    options: ServerOptions,
    stream_id: StreamId,
) -> Result<(), ServeError> {
    serve_until_handover(env, stream, exports, options, stream_id, None).await.map(drop)
}

/// Serves one client like [`serve_connection`], until it leaves or [`Handover`] begins. In the
/// latter case the stream stays open, and what another server needs is returned. `from`: what such
/// a server has left; without it, the connection is a new one.
pub async fn serve_until_handover<E: Env, S: Stream, V: Volume>(
    env: E,
    stream: Rc<S>,
    exports: Rc<Exports<V>>,
    options: ServerOptions,
    stream_id: StreamId,
    from: Option<Parked>,
) -> Result<Option<Parked>, ServeError> {
    let result = serve(&env, &stream, &exports, &options, stream_id, from).await;
    if matches!(result, Ok(Some(_))) {
        return result;
    }
    if stream.protection() == Protection::Encrypted {
        // A client that reads nothing more is not waited for.
        first(stream.say_goodbye(), env.sleep(GOODBYE_TIMEOUT)).await;
    }
    stream.close();
    result
}

async fn serve<E: Env, S: Stream, V: Volume>(
    env: &E,
    stream: &Rc<S>,
    exports: &Exports<V>,
    options: &ServerOptions,
    stream_id: StreamId,
    from: Option<Parked>,
) -> Result<Option<Parked>, ServeError> {
    let _of_stream = options.memory.0.set_aside(stream.memory_bytes());
    let mut input = Input::new(stream.clone(), options);
    let mut decoder = ServerDecoder::new();
    let mut unsent = Vec::new();
    let session = match from {
        Some(parked) => {
            input.put_back(&parked.received);
            decoder = ServerDecoder::in_transmission();
            unsent.clone_from(&parked.unsent);
            negotiate::session_of(parked, exports)?
        }
        None => match negotiate::negotiate(&mut input, &mut decoder, exports, options).await {
            Ok(Some(session)) => session,
            Ok(None) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    let mut parked = session.parked();
    options.stats.update(|counts| counts.export = Some(session.name.clone()));
    options.stats.settle();
    options.watch.set_negotiated();
    input.grow(options);
    let stats = &options.stats;
    let (max_bytes, memory) = (options.max_inflight_bytes, options.memory.0.share());
    let limits = Rc::new(Limits::new(max_bytes, options.max_requests, memory, stats.clone()));
    let outbox = Rc::new(Outbox::new(session.structured, limits.clone(), stats.clone()));
    options.drain.joins(&outbox);
    let held = (!unsent.is_empty()).then(|| limits.hold(unsent.len() as u64));
    let connection = Rc::new(Connection::new(session, options, stream_id, limits, outbox.clone()));
    let reading = async {
        let requests = requests::read_requests(env, &connection, &mut input, &mut decoder);
        let result = options.watch.unless_given_up(requests).await;
        let result = result.unwrap_or(Err(ServeError::Disconnected));
        if result.is_err() {
            // The client reads no replies any more, and a send that waits for it must not go on.
            stream.close();
        }
        outbox.end();
        result
    };
    let sending = async {
        let mut rest = Ok(());
        if let Some(held) = held {
            let replies = Buf::from_bytes(&std::mem::take(&mut unsent));
            options.watch.set_sending(true);
            rest = stream.send(replies.into()).await;
            options.watch.set_sending(false);
            drop(held);
        }
        if rest.is_err() {
            // The same as after any other reply that can't be sent.
            options.watch.give_up();
            stream.close();
        }
        rest.and(replies::send_replies(&**stream, &outbox, &options.watch).await)
    };
    let (read, sent) = join(reading, sending).await;
    connection.workers.end().await;
    let end = match (&read, &sent) {
        (Ok(Some(end)), Ok(())) => *end,
        (Ok(None), Ok(())) => {
            parked.received = input.available().to_vec();
            parked.refused = connection.take_refused();
            return Ok(Some(parked));
        }
        _ => StreamEnd::Cut,
    };
    connection.volume.stream_ended(stream_id, end);
    read?;
    sent?;
    Ok(None)
}
