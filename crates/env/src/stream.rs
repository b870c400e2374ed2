//! Connected byte streams: sockets in the real world, simulated ones in the other.

use crate::buf::{Buf, IoVec};

/// Why a stream can't go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer is gone, or this side closed the stream.
    #[error("connection closed")]
    Closed,
    /// The operating system reported an error (an errno value).
    #[error("connection error: {}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

/// A connected byte stream. One receive and one send may be under way at the same time.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Stream: 'static {
    /// Receives between 1 and `into.len()` bytes to the start of the buffer and says how many.
    /// `Ok(0)`: the peer has ended its side.
    async fn recv(&self, into: Buf) -> (Buf, Result<usize, StreamError>);

    /// Sends all of `from`.
    async fn send(&self, from: IoVec) -> Result<(), StreamError>;

    /// Ends both directions; pending and later calls return [`StreamError::Closed`] or `Ok(0)`.
    fn close(&self);
}

impl<S: Stream> Stream for std::rc::Rc<S> {
    async fn recv(&self, into: Buf) -> (Buf, Result<usize, StreamError>) {
        (**self).recv(into).await
    }
    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        (**self).send(from).await
    }
    fn close(&self) {
        (**self).close();
    }
}
