//! A stream that is encrypted when the client asks for it, for either side.
//!
//! Records are made and opened in the task of the connection, a few at a time; nothing blocks, and
//! what is to be sent waits only for the stream below. A receive and a send may be under way at
//! once: whichever has records to send does so under a lock, so that they go out in order.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use ubcache_env::local::Lock;
use ubcache_env::{Buf, BufPool, IoVec, Protection, Stream, StreamError};

use crate::progress::Progress;
use crate::reasons::{Peer, reason};

/// Bytes received at once.
const RECEIVE_BYTES: usize = 32 << 10;
/// Bytes of content that are encrypted at once, in a poll.
const SEND_BYTES: usize = 32 << 10;
/// Memory for as many bytes in records, with their headers and tags.
const RECORDS_BYTES: usize = SEND_BYTES + (4 << 10);
/// Memory of a connection: what has come, a record that is put together, the content of two, and
/// records to be sent, by the library and here. A handshake takes less.
const MEMORY_BYTES: usize = RECEIVE_BYTES + 3 * (18 << 10) + 2 * RECORDS_BYTES;
/// Bytes that are thrown away after a failed handshake, so that the client can read the reason.
const LAST_BYTES: usize = 256 << 10;

/// The side of this program.
#[derive(Debug)]
enum Side {
    Server(Arc<ServerConfig>),
    Client(Arc<ClientConfig>, ServerName<'static>),
}

/// A stream on which a client has to ask for TLS.
pub struct TlsStream<S> {
    stream: Rc<S>,
    side: Side,
    /// Present once the client has asked.
    connection: RefCell<Option<Box<Connection>>>,
    incoming: RefCell<Incoming>,
    sending: Lock,
    buffers: BufPool,
    progress: Rc<Progress>,
    /// Content has come.
    has_content: Cell<bool>,
}

/// Bytes of records that have come, and were not opened.
#[derive(Default)]
struct Incoming {
    buf: Buf,
    start: usize,
    end: usize,
}

impl<S: Stream> TlsStream<S> {
    /// A stream over another one, which is in the clear until the client asks for TLS.
    pub fn new(stream: Rc<S>, config: Arc<ServerConfig>) -> TlsStream<S> {
        TlsStream::of_side(stream, Side::Server(config))
    }

    /// The client's side of such a stream; the certificate of the server has to be for that name.
    pub fn client(
        stream: Rc<S>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> TlsStream<S> {
        TlsStream::of_side(stream, Side::Client(config, name))
    }

    fn of_side(stream: Rc<S>, side: Side) -> TlsStream<S> {
        TlsStream {
            stream,
            side,
            connection: RefCell::default(),
            incoming: RefCell::default(),
            sending: Lock::default(),
            buffers: BufPool::default(),
            progress: Rc::default(),
            has_content: Cell::new(false),
        }
    }

    /// Signs of life.
    pub fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
    }

    fn is_encrypted(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// Runs `act` on the connection, which is there.
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(self.connection.borrow_mut().as_mut().expect("the client has asked for TLS"))
    }

    async fn shake_hands(&self) -> Result<(), StreamError> {
        while self.with(|connection| connection.is_handshaking()) {
            if self.has_all_opened() && !self.receive().await? {
                return Err(self.left_in_handshake());
            }
            let opened = self.open();
            // Also the reason of a failure.
            let sent = self.flush().await;
            opened?;
            sent.map_err(|error| match error {
                StreamError::Closed => self.left_in_handshake(),
                error => error,
            })?;
        }
        Ok(())
    }

    /// After a failure: a connection that is closed before all was received is reset, and the
    /// client does not see the reason that was sent.
    async fn hear_out(&self) {
        let mut heard = 0;
        while heard < LAST_BYTES && matches!(self.receive().await, Ok(true)) {
            heard += self.incoming.take().end;
        }
    }

    fn has_all_opened(&self) -> bool {
        let incoming = self.incoming.borrow();
        incoming.start == incoming.end
    }

    /// Receives more records; `false`: there are no more.
    async fn receive(&self) -> Result<bool, StreamError> {
        let mut buf = std::mem::take(&mut self.incoming.borrow_mut().buf);
        if buf.is_empty() {
            buf = Buf::zeroed(RECEIVE_BYTES);
        }
        let (buf, received) = self.stream.recv(buf).await;
        let end = received.as_ref().map_or(0, |bytes| *bytes);
        self.progress.count(&buf.as_slice()[..end]);
        *self.incoming.borrow_mut() = Incoming { buf, start: 0, end };
        match received {
            Err(StreamError::Closed) => Ok(false),
            received => Ok(received? > 0),
        }
    }

    /// Opens some of the records that have come.
    fn open(&self) -> Result<(), StreamError> {
        let mut incoming = self.incoming.borrow_mut();
        let Incoming { buf, start, end } = &mut *incoming;
        self.with(|connection| {
            let taken = connection.read_tls(&mut &buf.as_slice()[*start..*end]);
            *start += taken.map_err(|error| StreamError::Tls(error.to_string()))?;
            let opened = connection.process_new_packets();
            opened.map(drop).map_err(|error| StreamError::Tls(reason(&error, self.peer())))
        })
    }

    /// Sends the records that are ready. If they are being sent already, the sender does so.
    async fn flush(&self) -> Result<(), StreamError> {
        let Some(_one) = self.sending.try_lock() else { return Ok(()) };
        self.send_records().await
    }

    /// Sends records until none is ready. Only under the lock.
    async fn send_records(&self) -> Result<(), StreamError> {
        loop {
            let records = self.take_records();
            if records.is_empty() {
                return Ok(());
            }
            self.stream.send(records).await?;
        }
    }

    fn take_records(&self) -> IoVec {
        self.with(|connection| {
            if !connection.wants_write() {
                return IoVec::new();
            }
            let memory = self.buffers.for_bytes(RECORDS_BYTES);
            let mut into =
                Filled { buf: memory.unwrap_or_else(|| Buf::zeroed(RECORDS_BYTES)), len: 0 };
            while connection.wants_write() && into.len < RECORDS_BYTES {
                connection.write_tls(&mut into).expect("memory takes what it has room for");
            }
            into.buf.truncate(into.len);
            into.buf.into()
        })
    }

    /// Reads content to the start of `into`. `None`: more records are needed.
    fn read(&self, into: &mut [u8]) -> Option<usize> {
        self.with(|connection| match connection.reader().read(into) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(0),
        })
    }

    async fn receive_content(&self, into: &mut [u8]) -> Result<usize, StreamError> {
        let mut filled = 0;
        loop {
            match self.read(&mut into[filled..]) {
                Some(0) => return Ok(filled),
                Some(bytes) => {
                    self.has_content.set(true);
                    filled += bytes;
                }
                None if self.has_all_opened() && filled > 0 => return Ok(filled),
                None => {
                    if self.has_all_opened() && !self.receive().await? {
                        return self.ended();
                    }
                    let opened = self.open();
                    // An answer, or the reason of a failure.
                    let sent = self.flush().await;
                    opened?;
                    sent?;
                }
            }
            if filled == into.len() {
                return Ok(filled);
            }
        }
    }

    fn peer(&self) -> Peer {
        match self.side {
            Side::Server(_) => Peer::Client,
            Side::Client(..) => Peer::Server,
        }
    }

    fn left_in_handshake(&self) -> StreamError {
        let peer = self.peer();
        let words =
            format!("the {peer} ended the connection in the handshake: {}", peer.may_refuse());
        StreamError::Tls(words)
    }

    /// The stream has ended, though the peer had not said that it would.
    fn ended(&self) -> Result<usize, StreamError> {
        if self.progress.is_closed() {
            return Ok(0);
        }
        let words = match self.has_content.get() {
            true => format!(
                "the connection was cut: the {} had not announced its end (close_notify)",
                self.peer()
            ),
            // Some look at the certificate only now.
            false => format!(
                "the {} ended the connection after the handshake: {}",
                self.peer(),
                self.peer().may_refuse()
            ),
        };
        Err(StreamError::Tls(words))
    }

    async fn send_content(&self, from: IoVec) -> Result<(), StreamError> {
        let _one = self.sending.lock().await;
        let mut at = 0;
        while at < from.len() {
            if at > 0 {
                yield_now().await;
            }
            let piece = from.cut(at, from.len().min(at + SEND_BYTES));
            let slices: Vec<IoSlice<'_>> =
                piece.parts().iter().map(|part| IoSlice::new(part.as_slice())).collect();
            let written = self.with(|connection| connection.writer().write_vectored(&slices));
            at += written.map_err(|error| StreamError::Tls(error.to_string()))?;
            self.send_records().await?;
        }
        Ok(())
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    async fn recv_at(&self, mut into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        if !self.is_encrypted() {
            return self.stream.recv_at(into, at).await;
        }
        if into.len() <= at {
            return (into, Ok(0));
        }
        let received = Box::pin(self.receive_content(&mut into.as_mut_slice()[at..])).await;
        (into, received)
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        match self.is_encrypted() {
            true => Box::pin(self.send_content(from)).await,
            false => self.stream.send(from).await,
        }
    }

    fn close(&self) {
        self.progress.set_closed();
        self.stream.close();
    }

    fn memory_bytes(&self) -> u64 {
        MEMORY_BYTES as u64
    }

    fn protection(&self) -> Protection {
        if self.is_encrypted() { Protection::Encrypted } else { Protection::Required }
    }

    async fn encrypt(&self) -> Result<(), StreamError> {
        let connection = match &self.side {
            Side::Server(config) => ServerConnection::new(config.clone()).map(Connection::from),
            Side::Client(config, name) => {
                ClientConnection::new(config.clone(), name.clone()).map(Connection::from)
            }
        };
        let connection = connection.map_err(|error| StreamError::Tls(error.to_string()))?;
        *self.connection.borrow_mut() = Some(Box::new(connection));
        // A client speaks first.
        let begun = self.flush().await;
        let shaken = match begun {
            Ok(()) => Box::pin(self.shake_hands()).await,
            Err(error) => Err(error),
        };
        if shaken.is_err() {
            Box::pin(self.hear_out()).await;
        }
        shaken
    }

    async fn say_goodbye(&self) {
        if !self.is_encrypted() {
            return;
        }
        self.with(|connection| connection.send_close_notify());
        // The peer may be gone.
        drop(Box::pin(self.flush()).await);
    }
}

/// Memory that is filled from its start.
struct Filled {
    buf: Buf,
    len: usize,
}

impl Write for Filled {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = &mut self.buf.as_mut_slice()[self.len..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lets other tasks have their turn.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
