//! The numbers of the protocol, under the names that the protocol document gives them, less `NBD_`.

/// First magic of the server's greeting, `"NBDMAGIC"` (*Newstyle negotiation*).
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second magic of the greeting and magic of every option, `"IHAVEOPT"` (*Newstyle negotiation*).
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Magic of every reply to an option (*Fixed newstyle negotiation*).
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request (*Request message*).
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a simple reply (*Simple reply message*).
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply (*Structured reply chunk message*).
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol: export names, descriptions, context names (*Values*).
pub const MAX_STRING_BYTES: usize = 4096;
/// Longest data of an option that is kept; longer ones get [`rep::ERR_TOO_BIG`].
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Longest data of an option that is read at all; longer data counts as an attack.
pub const MAX_SKIPPED_OPTION_BYTES: u32 = 1 << 20;
/// Longest payload of a request or a chunk (*Block size constraints*).
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// Longest description of a block status chunk that is taken.
pub const MAX_STATUS_BYTES: u32 = 1 << 20;

/// Bytes of the greeting of the server.
pub const GREETING_BYTES: usize = 18;
/// Bytes before the data of an option.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes before the data of a reply to an option.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk without its payload.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Handshake flags, of the server (16 bits) and of the client (32 bits) alike (*Handshake flags*).
pub mod handshake {
    /// Fixed newstyle negotiation.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zeroes after the reply to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option types (*Option types*).
pub mod opt {
    /// Choose an export and end the negotiation; the server can't refuse.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on with TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and end the negotiation.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option reply types (*Option reply types*).
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in the types that report errors.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known or not supported.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Forbidden by the configuration of the server.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option was malformed or came at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Not supported on this platform.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// TLS first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is on its way down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for the block size.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The option or its answer is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Information types (*Option reply types*, `NBD_REP_INFO`).
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description for a human reader.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags (*Transmission flags*).
pub mod transmission {
    /// There are flags; always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is there.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// [`super::cmd_flag::FUA`] is there.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Seeks are slow.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `TRIM` is there.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is there.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// [`super::cmd_flag::DF`] is there; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes answered on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is there.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// [`super::cmd_flag::FAST_ZERO`] is there.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command flags (*Command flags*).
pub mod cmd_flag {
    /// On stable storage before the reply.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES` must not leave a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The answer to a `READ` must come in one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough for `BLOCK_STATUS`.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES` must be fast or fail at once.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types and flags (*Structured reply types*, *Structured reply flags*).
pub mod chunk {
    /// Flag: the last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No payload.
    pub const NONE: u16 = 0;
    /// Content at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in the types that report errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The request failed at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// The metadata context that distinguishes data from holes (*The base: metadata contexts*).
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Our own context: bit 0 is set where the cache has the newest data.
pub const CACHED: &str = "ubcache:cached";
/// Our own context: bit 0 is set where only the cache has it.
pub const DIRTY: &str = "ubcache:dirty";
/// Extent of one of our own contexts: yes.
pub const STATE_SET: u32 = 1 << 0;
/// Status flag of `base:allocation`: takes no space.
pub const STATE_HOLE: u32 = 1 << 0;
/// Status flag of `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;
