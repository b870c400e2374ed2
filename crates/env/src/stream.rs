//! Connected byte streams: sockets in the real world, simulated ones in the other.

use crate::buf::{Buf, IoVec};

/// Reasons for the failure of a stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer is gone, or this side closed the stream.
    #[error("connection closed")]
    Closed,
    /// The operating system reported an error (an errno value).
    #[error("connection error: {}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// Encryption failed, or what is encrypted is not whole: the reason, in words.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Protection of what a stream carries.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Protection {
    /// None is to be had.
    None,
    /// It is in the clear, and nothing of value may be said before [`Stream::encrypt`].
    Required,
    /// It is encrypted.
    Encrypted,
}

/// A connected byte stream. One receive and one send may be under way at the same time.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Stream: 'static {
    /// Receives at least one byte, and as many as there is room for, to byte `at` of the buffer and
    /// those behind it, and says how many. `Ok(0)`: the peer has ended its side.
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>);

    /// Receives to the start of the buffer.
    async fn recv(&self, into: Buf) -> (Buf, Result<usize, StreamError>) {
        self.recv_at(into, 0).await
    }

    /// Sends all of `from`.
    async fn send(&self, from: IoVec) -> Result<(), StreamError>;

    /// Ends both directions; pending and later calls return [`StreamError::Closed`] or `Ok(0)`.
    fn close(&self);

    /// Memory that the stream takes for itself, at most.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// Protection of the bytes at this moment.
    fn protection(&self) -> Protection {
        Protection::None
    }

    /// Encrypts from now on, as soon as the peer has shaken hands. Only where it is required, and
    /// when nothing has come that was not received.
    async fn encrypt(&self) -> Result<(), StreamError> {
        Err(StreamError::Closed)
    }

    /// Tells the peer that nothing more will be sent, where that is more than to close.
    async fn say_goodbye(&self) {}
}

impl<S: Stream> Stream for std::rc::Rc<S> {
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        (**self).recv_at(into, at).await
    }
    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        (**self).send(from).await
    }
    fn close(&self) {
        (**self).close();
    }
    fn memory_bytes(&self) -> u64 {
        (**self).memory_bytes()
    }
    fn protection(&self) -> Protection {
        (**self).protection()
    }
    async fn encrypt(&self) -> Result<(), StreamError> {
        (**self).encrypt().await
    }
    async fn say_goodbye(&self) {
        (**self).say_goodbye().await;
    }
}
