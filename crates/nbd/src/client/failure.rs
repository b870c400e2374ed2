//! Reasons why an export can't be a disk.

use ubcache_env::{Nanos, StreamError};

use crate::proto::ProtocolError;

/// Reason for which a [`RemoteDisk`](super::RemoteDisk) can't be opened, or not any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenFailure {
    /// The server can't be reached.
    #[error("can't connect: {0}")]
    Connect(StreamError),
    /// The connection ended during the negotiation.
    #[error("the server ended the connection during the negotiation{0}")]
    Ended(&'static str),
    /// The server has not answered.
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Nanos),
    /// The server does not speak the protocol.
    #[error("not an NBD server, or a broken one: {0}")]
    Protocol(#[from] ProtocolError),
    /// The server is too old.
    #[error(
        "the server has handshake flags {found:#x}; expected fixed newstyle (bit 0), which servers \
         have since 2011"
    )]
    OldServer {
        /// Its flags.
        found: u16,
    },
    /// The server wants TLS.
    #[error("the server demands TLS")]
    TlsRequired,
    /// The server has no TLS.
    #[error("the server has no TLS ({0}): use nbd:// if the network is trusted")]
    NoTls(String),
    /// The server refuses the export.
    #[error("the server refuses export {export:?}: {message} (error {kind:#x})")]
    Refused {
        /// The export's name.
        export: String,
        /// Number of the error.
        kind: u32,
        /// Its words.
        message: String,
    },
    /// The size is no multiple of the block.
    #[error("the export has {found} bytes; expected a multiple of {multiple}, and more than 0")]
    Size {
        /// Size in bytes.
        found: u64,
        /// The block.
        multiple: u32,
    },
    /// The block is not what a disk can have.
    #[error("the server's smallest request is {found} bytes; expected a power of 2 up to 65536")]
    Block {
        /// The block.
        found: u32,
    },
    /// The server can't make writes durable.
    #[error(
        "the server can't flush, so nothing that it has written is known to be durable: serve the \
         export with a cache mode that flushes, or allow it (assume_durable)"
    )]
    NoFlush,
    /// The export is another one than before.
    #[error("the export has {what} {found} now; expected {expected}, as when it was opened")]
    Changed {
        /// The property.
        what: &'static str,
        /// Its present value.
        found: String,
        /// Its former value.
        expected: String,
    },
}

impl OpenFailure {
    /// Returns true if another attempt may succeed without anybody's doing.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            OpenFailure::Connect(_) | OpenFailure::Ended(_) | OpenFailure::Silent(_) => true,
            // A server that starts may refuse for a while.
            OpenFailure::Protocol(_) | OpenFailure::Refused { .. } => true,
            _ => false,
        }
    }
}
