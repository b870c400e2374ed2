//! Receives bytes: many small requests at a time, long payloads straight to where they belong.

use std::rc::Rc;

use ubcache_env::{Buf, Stream, StreamError};

use super::ServerOptions;
use super::watch::Watch;
use crate::stats::ConnectionStats;

/// Smallest receive buffer that makes sense, and that of a client who has yet to negotiate.
const MIN_BUFFER_BYTES: usize = 4096;

/// The receiving side of a connection: one buffer, used again and again.
#[derive(Debug)]
pub(super) struct Input<S> {
    stream: Rc<S>,
    buf: Buf,
    /// Length of the buffer, which is longer only for what was put back.
    size: usize,
    start: usize,
    end: usize,
    /// Times that bytes have come.
    receives: u64,
    stats: Rc<ConnectionStats>,
    watch: Rc<Watch>,
}

impl<S: Stream> Input<S> {
    pub(super) fn new(stream: Rc<S>, options: &ServerOptions) -> Input<S> {
        let buf = Buf::zeroed(MIN_BUFFER_BYTES);
        let (stats, watch) = (options.stats.clone(), options.watch.clone());
        Input { stream, buf, size: MIN_BUFFER_BYTES, start: 0, end: 0, receives: 0, stats, watch }
    }

    /// Makes room for many requests at a time.
    pub(super) fn grow(&mut self, options: &ServerOptions) {
        self.size = options.receive_buffer_bytes.max(MIN_BUFFER_BYTES);
        self.put_back(&[]);
    }

    /// Puts bytes back before those that are available.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        let available = self.available();
        let (at, end) = (bytes.len(), bytes.len() + available.len());
        let mut buf = Buf::zeroed(end.max(self.size));
        buf.as_mut_slice()[..at].copy_from_slice(bytes);
        buf.as_mut_slice()[at..end].copy_from_slice(available);
        (self.buf, self.start, self.end) = (buf, 0, end);
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Times that bytes have come so far.
    pub(super) fn receives(&self) -> u64 {
        self.receives
    }

    /// Bytes that have come and were not consumed.
    pub(super) fn available(&self) -> &[u8] {
        &self.buf.as_slice()[self.start..self.end]
    }

    /// Consumes all but `left` bytes.
    pub(super) fn consume_to(&mut self, left: usize) {
        self.start = self.end - left;
    }

    /// Receives more; `false`: there is no more. Only when nothing is available.
    pub(super) async fn refill(&mut self) -> Result<bool, StreamError> {
        debug_assert!(self.available().is_empty(), "what has come is not overwritten");
        (self.start, self.end) = (0, 0);
        if self.buf.len() > self.size {
            self.buf = Buf::zeroed(self.size);
        }
        let (buf, result) = self.stream.recv(std::mem::take(&mut self.buf)).await;
        self.buf = buf;
        self.end = self.count(result)?;
        Ok(self.end > 0)
    }

    /// Receives to another buffer, from byte `at`. Only when nothing is available here.
    pub(super) async fn receive_to(
        &mut self,
        into: Buf,
        at: usize,
    ) -> (Buf, Result<usize, StreamError>) {
        debug_assert!(self.available().is_empty(), "what has come is not overtaken");
        let (buf, result) = self.stream.recv_at(into, at).await;
        (buf, self.count(result))
    }

    /// A closed stream is an ended one.
    fn count(&mut self, result: Result<usize, StreamError>) -> Result<usize, StreamError> {
        let bytes = match result {
            Err(StreamError::Closed) => 0,
            result => result?,
        };
        self.watch.has_received();
        self.receives += 1;
        self.stats.update(|counts| {
            counts.received_bytes += bytes as u64;
            counts.receives += 1;
        });
        Ok(bytes)
    }
}
