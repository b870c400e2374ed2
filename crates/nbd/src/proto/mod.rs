//! The codec: bytes to messages and back, without I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`constants`] | the numbers of the protocol |
//! | `wire` | numbers and strings as they are sent |
//! | [`option`] | messages of the negotiation: [`ClientOption`], [`OptionReply`] |
//! | [`transmission`] | messages after it: [`Request`], [`SimpleReply`], [`Chunk`] |
//! | [`server`] | [`ServerDecoder`]: decodes messages to a server |
//! | [`client`] | [`ClientDecoder`]: decodes messages to a client |
//!
//! Both decoders take bytes as they come, cut anywhere, and give the same events however they are
//! cut, up to the borders of [`ServerEvent::Payload`] and [`ClientEvent::Payload`] pieces. They
//! hold at most one message without its payload: payloads pass through and are never stored. After
//! an error a decoder only repeats that error.
//!
//! ```text
//! server → client   greeting ── option replies ──┐      ┌── replies, chunks, payloads
//! client → server     client flags ── options ───┴ GO ──┴── requests, payloads
//! ```

pub mod client;
pub mod constants;
pub mod option;
pub mod server;
pub mod transmission;
mod wire;

pub use client::{ClientDecoder, ClientEvent};
pub use option::{ClientOption, Info, InfoQuery, MetaQuery, OptionFault, OptionReply};
pub use server::{OptionRequest, ServerDecoder, ServerEvent};
pub use transmission::{
    Chunk, ChunkHeader, Command, ErrorCode, Request, SimpleReply, StatusExtent,
};

use wire::Put as _;

/// Violation of the protocol, or of a limit, by the peer. The connection has to be closed.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A message began with the wrong number.
    #[error("{what} begins with {found:#x}, which is not its magic number")]
    BadMagic {
        /// Kind of message.
        what: &'static str,
        /// Number in place of the magic number.
        found: u64,
    },
    /// The client set handshake flags that do not exist.
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// The data of an option or of an option reply is too long.
    #[error("option {option} has {length} bytes of data, which is too long")]
    OptionTooLong {
        /// The option.
        option: u32,
        /// The announced length.
        length: u32,
    },
    /// The client asked for an export by a name that can't be one, with an option that can't be
    /// refused.
    #[error("the export name is not valid: {0}")]
    BadExportName(OptionFault),
    /// The client sent more behind `NBD_OPT_STARTTLS` before it had the answer.
    #[error("bytes in the clear came behind the request for TLS, before its answer")]
    BytesBeforeTls,
    /// The client negotiates without end.
    #[error("more than {0} options in one negotiation")]
    TooManyOptions(u32),
    /// A payload is longer than is allowed.
    #[error("payload of {0} bytes is longer than is allowed")]
    PayloadTooLong(u32),
    /// A reply whose content does not match its type.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A reply to a request that was not made.
    #[error("reply to unknown request {0:#x}")]
    UnknownCookie(u64),
}

/// The greeting of the server (*Newstyle negotiation*).
pub fn encode_greeting(flags: u16, out: &mut Vec<u8>) {
    out.put_u64(constants::MAGIC);
    out.put_u64(constants::IHAVEOPT);
    out.put_u16(flags);
}

/// The answer of the client to the greeting (*Newstyle negotiation*).
pub fn encode_client_flags(flags: u32, out: &mut Vec<u8>) {
    out.put_u32(flags);
}

/// The answer of the server to [`ClientOption::ExportName`] (*Newstyle negotiation*).
pub fn encode_export_reply(size: u64, flags: u16, no_zeroes: bool, out: &mut Vec<u8>) {
    out.put_u64(size);
    out.put_u16(flags);
    if !no_zeroes {
        out.put(&[0; client::EXPORT_PADDING_BYTES]);
    }
}
