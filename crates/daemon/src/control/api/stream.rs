//! A connection: hyper reads and writes it, and an upgrade takes a descriptor of it for the program
//! that answers.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// A connection, as its requests see it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Requests of it that have come whole, and are being answered.
    answering: AtomicUsize,
    /// Another program answers it.
    given_away: AtomicBool,
    /// The same of all connections.
    busy: watch::Sender<usize>,
}

/// A request of the connection is being answered as long as this lives.
pub(super) struct Answering<'a>(&'a Connection);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
        // One that was given away does not count already.
        if !self.0.is_given_away() {
            self.0.busy.send_modify(|busy| *busy -= 1);
        }
    }
}

impl Connection {
    pub(super) fn new(stream: UnixStream, busy: watch::Sender<usize>) -> Arc<Connection> {
        let (answering, given_away) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Connection { stream, answering, given_away, busy })
    }

    /// A request has come whole.
    pub(super) fn begin(&self) -> Answering<'_> {
        self.answering.fetch_add(1, Ordering::Relaxed);
        self.busy.send_modify(|busy| *busy += 1);
        Answering(self)
    }

    /// Returns true if a request of it is being answered, here or by another program.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0 || self.is_given_away()
    }

    /// Gives its descriptor to whoever answers in place of this program. Its request, which is
    /// being answered, does not count as busy any more.
    pub(super) fn give_away(&self) -> io::Result<OwnedFd> {
        let fd = self.stream.as_fd().try_clone_to_owned()?;
        if !self.given_away.swap(true, Ordering::Relaxed) {
            self.busy.send_modify(|busy| *busy -= 1);
        }
        Ok(fd)
    }

    /// This program answers after all.
    pub(super) fn take_back(&self) {
        if self.given_away.swap(false, Ordering::Relaxed) {
            self.busy.send_modify(|busy| *busy += 1);
        }
    }

    /// Returns true if another program may answer.
    pub(super) fn is_given_away(&self) -> bool {
        self.given_away.load(Ordering::Relaxed)
    }
}

/// The connection for hyper.
#[derive(Debug)]
pub(super) struct Stream(pub(super) Arc<Connection>);

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; 4096];
        let room = piece.len().min(buf.remaining());
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read(&mut piece[..room]) {
                Ok(count) => {
                    buf.put_slice(&piece[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match self.0.stream.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// It ends when its last descriptor is closed: another program may have one.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
