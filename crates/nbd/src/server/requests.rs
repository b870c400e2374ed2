//! Receives requests, checks them, starts them (*Transmission phase*).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::bytes::ByteRange;
use ubcache_env::{Buf, Env, IoVec, SectorRange, Slice, Stream, StreamEnd, StreamId, Volume};

use super::block_status::MAX_EXTENTS;
use super::contexts::{Context, Contexts};
use super::handover::{Handover, Refused};
use super::input::Input;
use super::limits::{Limits, Reservation};
use super::negotiate::{Session, size_bytes};
use super::pace::Pace;
use super::replies::{Body, Failure, Outbox, Reply};
use super::shares::{Share, Turn};
use super::watch::Watch;
use super::workers::{Begin, Job, Workers};
use super::{ServeError, ServerOptions};
use crate::proto::constants::{MAX_PAYLOAD_BYTES, cmd_flag};
use crate::proto::{Command, ErrorCode, Request, ServerDecoder, ServerEvent};
use crate::stats::ConnectionStats;

/// Receive a payload straight into its own memory while at least so many bytes of it are to come. A
/// shorter rest is received together with the requests behind it.
const DIRECT_BYTES: usize = 64 << 10;
/// Memory for the payload of a write is taken in pieces of this length.
const PIECE_BYTES: usize = 256 << 10;
/// A volume brings a range to its cache in steps of this length.
const CACHE_BYTES: u64 = 1 << 20;
/// Memory that the longest answer to `BLOCK_STATUS` takes, in all contexts.
const STATUS_BYTES: u64 = 8 * (MAX_EXTENTS * Context::ALL.len()) as u64;

/// Requests are carried out where they are received up to so many bytes, those of one batch
/// together: then other connections have their turn.
const AT_ONCE_BYTES: u64 = 128 << 10;
/// A request counts as so many bytes at least: one without data takes as long as a small one.
const AT_ONCE_BYTES_MIN: u64 = 4096;

/// A longer request counts as so many bytes that a volume has to do.
const SERVICE_BYTES_MAX: u64 = 4 << 20;

/// State that the tasks of a connection share.
#[derive(Debug)]
pub(super) struct Connection<V> {
    pub(super) volume: Rc<V>,
    pub(super) stream: StreamId,
    size: u64,
    pub(super) block: u64,
    read_only: bool,
    structured: bool,
    pub(super) contexts: Contexts,
    fast_zero: bool,
    limits: Rc<Limits>,
    /// Its share of the volume's service.
    service: Rc<Share>,
    /// Limits of the export, and of the connection.
    paces: [Option<Rc<Pace>>; 2],
    pub(super) outbox: Rc<Outbox>,
    pub(super) workers: Workers,
    stats: Rc<ConnectionStats>,
    watch: Rc<Watch>,
    handover: Rc<Handover>,
    /// The refused write whose payload is still to come, from or for another server.
    refused: RefCell<Option<Refused>>,
    /// A receive, by its number, and the bytes of requests that were carried out at once since.
    at_once: Cell<(u64, u64)>,
}

impl<V: Volume> Connection<V> {
    pub(super) fn new(
        session: Session<V>,
        options: &ServerOptions,
        stream: StreamId,
        limits: Rc<Limits>,
        outbox: Rc<Outbox>,
    ) -> Connection<V> {
        Connection {
            service: session.service.share(),
            paces: [session.pace, options.pace.clone()],
            volume: session.volume,
            stream,
            size: size_bytes(&session.info),
            block: u64::from(session.info.block_bytes.max(512)),
            read_only: session.info.read_only,
            structured: session.structured,
            contexts: session.contexts,
            fast_zero: options.fast_zero,
            limits,
            outbox,
            workers: Workers::default(),
            stats: options.stats.clone(),
            watch: options.watch.clone(),
            handover: options.handover.clone(),
            refused: RefCell::new(session.refused),
            at_once: Cell::default(),
        }
    }

    /// Takes the refused write whose payload is still to come.
    pub(super) fn take_refused(&self) -> Option<Refused> {
        self.refused.take()
    }

    /// The moment at which a request with so many bytes begins, after so many receives.
    fn begin(&self, bytes: u64, receives: u64) -> Begin {
        let (of, before) = self.at_once.get();
        let before = if of == receives { before } else { 0 };
        let at_once = before + bytes.max(AT_ONCE_BYTES_MIN);
        self.at_once.set((receives, at_once));
        if at_once > AT_ONCE_BYTES { Begin::InTurn } else { Begin::Now }
    }

    /// A message is being received.
    fn set_receiving(&self, receiving: bool) {
        self.limits.set_receiving(receiving);
        self.watch.set_receiving(receiving);
    }

    /// Waits until limits on requests and bytes a second let the request pass. `false`: it does
    /// not, as another server goes on.
    async fn pace<E: Env>(&self, env: &E, bytes: u64) -> bool {
        for pace in self.paces.iter().flatten() {
            self.limits.set_waiting(true);
            let passes = self.handover.unless_begun(pace.wait(env, bytes)).await;
            self.limits.set_waiting(false);
            if !passes {
                return false;
            }
        }
        true
    }

    /// Checks that the request may be carried out, and returns its range (*Error values* assigns
    /// the errors).
    fn check(&self, request: &Request) -> Result<SectorRange, Failure> {
        let fail = |code, message| Err(Failure::new(code, message));
        if self.outbox.is_draining() {
            return fail(ErrorCode::Shutdown, "the server is being stopped");
        }
        let allowed = cmd_flag::FUA
            | match request.command {
                Command::Read if self.structured => cmd_flag::DF,
                Command::WriteZeroes => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
                Command::BlockStatus => cmd_flag::REQ_ONE,
                Command::Unknown(_) => return fail(ErrorCode::Inval, "unknown command"),
                _ => 0,
            };
        if request.flags & !allowed != 0 {
            return fail(ErrorCode::Inval, "flags that do not go with the command");
        }
        let writes = match request.command {
            Command::Write | Command::WriteZeroes | Command::Trim => true,
            Command::Flush if request.offset == 0 && request.length == 0 => {
                return Ok(SectorRange::default());
            }
            Command::Flush => {
                return fail(ErrorCode::Inval, "a flush has neither offset nor length");
            }
            Command::BlockStatus if self.contexts.are_none() => {
                return fail(ErrorCode::Inval, "no metadata context was negotiated");
            }
            Command::Read if request.length > MAX_PAYLOAD_BYTES => {
                return fail(ErrorCode::Inval, "longer than the largest request");
            }
            _ => false,
        };
        if writes && self.read_only {
            return fail(ErrorCode::Perm, "the export is read-only");
        }
        self.range(request)
    }

    /// The blocks that the request touches.
    fn range(&self, request: &Request) -> Result<SectorRange, Failure> {
        let length = u64::from(request.length);
        if length == 0 {
            return Err(Failure::new(ErrorCode::Inval, "empty range"));
        }
        if request.offset.checked_add(length).is_none_or(|end| end > self.size) {
            let code = match request.command {
                Command::Write | Command::WriteZeroes => ErrorCode::NoSpc,
                _ => ErrorCode::Inval,
            };
            return Err(Failure::new(code, "beyond the end of the export"));
        }
        if request.has(cmd_flag::FAST_ZERO) && (!self.fast_zero || request.has(cmd_flag::NO_HOLE)) {
            return Err(Failure::new(ErrorCode::NotSup, "fast zeroing is not supported"));
        }
        Ok(ByteRange::new(request.offset, length, self.block).around())
    }
}

/// Receives requests and starts them until the client leaves, which is orderly if it says so, or
/// until another server goes on (`None`): then those that were not started are in the input. Those
/// in flight are not waited for.
pub(super) async fn read_requests<E: Env, S: Stream, V: Volume>(
    env: &E,
    connection: &Rc<Connection<V>>,
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
) -> Result<Option<StreamEnd>, ServeError> {
    if let Some(Refused { cookie, error, message, left }) = connection.take_refused() {
        let code = ErrorCode::from_wire(error).unwrap_or(ErrorCode::Io);
        let failure = Failure { code, message: message.into() };
        let (command, flags, offset, length) = (Command::Write, 0, 0, left);
        let request = Request { command, flags, cookie, offset, length };
        decoder.expect_payload(left);
        let reservation = connection.limits.reserve(0).await;
        refuse(connection, input, decoder, (request, failure, reservation)).await?;
    }
    loop {
        if connection.handover.has_begun() {
            input.put_back(&decoder.take_begun());
            return Ok(None);
        }
        let mut bytes = input.available();
        let request = match decoder.next(&mut bytes)? {
            Some(ServerEvent::Request(request)) => Some(request),
            None => None,
            Some(_) => unreachable!("payloads are received with their requests"),
        };
        let left = bytes.len();
        input.consume_to(left);
        match request {
            Some(Request { command: Command::Disconnect, .. }) => {
                return Ok(Some(StreamEnd::Orderly));
            }
            Some(request) => start(env, connection, input, decoder, request).await?,
            None if refill(connection, input, decoder).await? => {}
            None if connection.handover.has_begun() => {}
            None if decoder.is_mid_message() => return Err(ServeError::Disconnected),
            None => return Ok(Some(StreamEnd::Cut)),
        }
    }
}

/// Receives more; `false`: there is no more. A part of a header may not stay alone for long.
async fn refill<S: Stream, V: Volume>(
    connection: &Connection<V>,
    input: &mut Input<S>,
    decoder: &ServerDecoder,
) -> Result<bool, ServeError> {
    if !decoder.is_mid_message() {
        return Ok(input.refill().await?);
    }
    connection.watch.set_receiving(true);
    let more = input.refill().await;
    connection.watch.set_receiving(false);
    Ok(more?)
}

/// Starts one request once there is room for it and its payload has come.
async fn start<E: Env, S: Stream, V: Volume>(
    env: &E,
    connection: &Rc<Connection<V>>,
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
    request: Request,
) -> Result<(), ServeError> {
    connection.stats.count_request(request.command, request.length);
    let checked = connection.check(&request);
    let content = match (&checked, request.command) {
        (Ok(range), Command::Read) => range.bytes(),
        // A write of parts of blocks is put together in other memory.
        (Ok(range), Command::Write) if range.bytes() != u64::from(request.length) => {
            u64::from(request.length) + range.bytes()
        }
        (Ok(_), Command::Write) => u64::from(request.length),
        // So are the first and the last block of zeroes.
        (Ok(range), Command::WriteZeroes) if range.bytes() != u64::from(request.length) => {
            range.bytes().min(2 * connection.block)
        }
        (Ok(_), Command::Cache) => u64::from(request.length).min(CACHE_BYTES),
        // The volume looks at as many parts for an answer of one extent.
        (Ok(_), Command::BlockStatus) => STATUS_BYTES,
        _ => 0,
    };
    if !connection.pace(env, content).await {
        put_back(input, decoder, &request, &[]);
        return Ok(());
    }
    let reservation = connection.limits.reserve(content).await;
    let range = match checked {
        Ok(range) => range,
        Err(failure) => {
            return refuse(connection, input, decoder, (request, failure, reservation)).await;
        }
    };
    connection.set_receiving(decoder.payload_left() > 0);
    let payload = receive_payload(env, &connection.handover, input, decoder).await?;
    connection.set_receiving(false);
    let payload = match payload {
        Payload::Whole(payload) => payload,
        Payload::NoMemory => {
            let failure = Failure::new(ErrorCode::NoMem, "no memory for the data of the write");
            return refuse(connection, input, decoder, (request, failure, reservation)).await;
        }
        Payload::Begun(begun) => {
            put_back(input, decoder, &request, &begun);
            return Ok(());
        }
    };
    let turn = Turn::of(&connection.service, content.min(SERVICE_BYTES_MAX)).await;
    let job = Job { request, range, payload, reservation, turn };
    let begin = connection.begin(content, input.receives());
    connection.workers.start(env, connection, job, begin);
    Ok(())
}

/// Puts a request back that was not started, with what has come of its payload.
fn put_back<S: Stream>(
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
    request: &Request,
    payload: &[u8],
) {
    let mut begun = decoder.take_begun();
    request.encode(&mut begun);
    begun.extend_from_slice(payload);
    input.put_back(&begun);
}

/// The payload of a write.
enum Payload {
    /// All of it.
    Whole(IoVec),
    /// There is no memory for the rest of it.
    NoMemory,
    /// Its beginning: another server goes on.
    Begun(Vec<u8>),
}

/// Receives the payload of a write to page-aligned memory of its own, which is taken as the payload
/// comes.
async fn receive_payload<E: Env, S: Stream>(
    env: &E,
    handover: &Handover,
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
) -> Result<Payload, ServeError> {
    let mut payload = IoVec::new();
    loop {
        let left = decoder.payload_left() as usize;
        if left == 0 {
            return Ok(Payload::Whole(payload));
        }
        let Some(piece) = env.buffers().for_bytes(left.min(PIECE_BYTES)) else {
            return Ok(Payload::NoMemory);
        };
        let (piece, filled) = receive_piece(input, decoder, piece).await?;
        if filled == piece.len() {
            payload.push(piece.freeze());
            continue;
        }
        if !handover.has_begun() {
            return Err(ServeError::Disconnected);
        }
        let parts = payload.parts().iter().map(Slice::as_slice);
        return Ok(Payload::Begun(
            parts.chain([&piece.as_slice()[..filled]]).flatten().copied().collect(),
        ));
    }
}

/// Fills one piece of a payload, as far as it comes.
async fn receive_piece<S: Stream>(
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
    mut piece: Buf,
) -> Result<(Buf, usize), ServeError> {
    let mut filled = 0;
    while filled < piece.len() {
        if input.available().is_empty() {
            if (decoder.payload_left() as usize) < DIRECT_BYTES {
                if !input.refill().await? {
                    break;
                }
                continue;
            }
            let (buf, received) = input.receive_to(piece, filled).await;
            piece = buf;
            let received = received?;
            if received == 0 {
                break;
            }
            filled += received;
            decoder.payload_bypassed(u32::try_from(received).expect("not more than the payload"));
            continue;
        }
        let available = input.available();
        let wanted = available.len().min(piece.len() - filled);
        let mut bytes = &available[..wanted];
        if let Some(ServerEvent::Payload(part)) = decoder.next(&mut bytes)? {
            piece.as_mut_slice()[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        let left = available.len() - wanted + bytes.len();
        input.consume_to(left);
    }
    Ok((piece, filled))
}

/// Answers a refused request when its payload has passed.
async fn refuse<S: Stream, V: Volume>(
    connection: &Connection<V>,
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
    (request, failure, reservation): (Request, Failure, Reservation),
) -> Result<(), ServeError> {
    connection.set_receiving(decoder.payload_left() > 0);
    while decoder.payload_left() > 0 {
        let mut bytes = input.available();
        decoder.next(&mut bytes)?;
        let left = bytes.len();
        input.consume_to(left);
        if decoder.payload_left() == 0 || input.refill().await? {
            continue;
        }
        if !connection.handover.has_begun() {
            return Err(ServeError::Disconnected);
        }
        let Failure { code, message } = failure;
        *connection.refused.borrow_mut() = Some(Refused {
            cookie: request.cookie,
            error: code.to_wire(),
            message: message.into_owned(),
            left: decoder.payload_left(),
        });
        connection.set_receiving(false);
        return Ok(());
    }
    connection.set_receiving(false);
    connection.outbox.push(Reply { request, body: Body::Failed(failure), reservation });
    Ok(())
}
