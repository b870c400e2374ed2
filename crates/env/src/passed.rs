//! Messages with open files in them, and the events that such files carry: the parts of a world
//! that a protocol over shared memory needs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::stream::StreamError;

/// Bytes that came together, and the files that came with them.
#[derive(Debug, Default)]
pub struct Received {
    /// The bytes; none at the end of the stream.
    pub bytes: Vec<u8>,
    /// The files, in the order in which the peer gave them.
    pub files: Vec<OwnedFd>,
}

/// A connected socket that carries bytes and open files. One receive and one send may be under way
/// at the same time.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Channel: 'static {
    /// Receives at least one byte and at most so many. Files that the peer sent with the first of
    /// them are received with it.
    async fn recv(&self, bytes_max: usize) -> Result<Received, StreamError>;

    /// Sends all of the bytes; the files go with the first.
    async fn send(&self, bytes: Vec<u8>, files: Vec<OwnedFd>) -> Result<(), StreamError>;

    /// Ends both directions: pending and later calls return an error or nothing.
    fn close(&self);
}

/// An event that is counted between two processes, an eventfd: one rings it, the other waits.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Bell: 'static {
    /// Waits until it was rung since the last call. A dropped future loses no ring.
    async fn rung(&self) -> Result<(), StreamError>;

    /// Rings it. Never waits: if the peer has not looked for 2^64 rings, one more says nothing.
    fn ring(&self);
}

/// A world in which files come from a peer.
pub trait PassedFiles: 'static {
    /// Event over a file that a peer has passed.
    type Bell: Bell;
    /// Socket that a peer has passed.
    type Channel: Channel;

    /// The event of a file; an error if the file is no eventfd.
    fn bell(&self, file: OwnedFd) -> io::Result<Self::Bell>;

    /// The channel of a socket.
    fn channel(&self, socket: OwnedFd) -> io::Result<Self::Channel>;

    /// A file in memory, of so many zeroes, that a peer can map and can't make shorter.
    fn memory_file(&self, bytes: u64) -> io::Result<File>;
}
