//! Requests and replies (*Transmission*).

use super::constants::{CHUNK_MAGIC, REQUEST_BYTES, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, chunk};
use super::wire::{Put as _, Reader, length};
use super::{ProtocolError, constants};

/// Operation of a request (*Request types*).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`, the only one with a payload.
    Write,
    /// `NBD_CMD_DISC`: the client leaves; no reply.
    Disconnect,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_CACHE`
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus,
    /// An unknown command.
    Unknown(u16),
}

impl Command {
    /// From the number on the wire.
    pub fn from_wire(code: u16) -> Command {
        match code {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            code => Command::Unknown(code),
        }
    }

    /// The number on the wire.
    pub fn to_wire(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(code) => code,
        }
    }
}

/// A request without its payload (*Request message*).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// See [`constants::cmd_flag`].
    pub flags: u16,
    /// The operation.
    pub command: Command,
    /// Comes back in the reply.
    pub cookie: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Request {
    /// Appends the request; the payload of a write comes next.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command.to_wire());
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
    }

    /// Parses a request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, ProtocolError> {
        const LENGTH: &str = "a request is long enough for its fields";
        let mut reader = Reader::new(bytes);
        let magic = reader.u32().expect(LENGTH);
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError::BadMagic { what: "a request", found: magic.into() });
        }
        Ok(Request {
            flags: reader.u16().expect(LENGTH),
            command: Command::from_wire(reader.u16().expect(LENGTH)),
            cookie: reader.u64().expect(LENGTH),
            offset: reader.u64().expect(LENGTH),
            length: reader.u32().expect(LENGTH),
        })
    }

    /// Returns true if this flag is set, see [`constants::cmd_flag`].
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of payload that follow the request.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }
}

/// Error of a request (*Error values*).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ErrorCode {
    /// `NBD_EPERM`: the export is read-only.
    Perm,
    /// `NBD_EIO`
    Io,
    /// `NBD_ENOMEM`
    NoMem,
    /// `NBD_EINVAL`
    Inval,
    /// `NBD_ENOSPC`
    NoSpc,
    /// `NBD_EOVERFLOW`: does not fit in one piece.
    Overflow,
    /// `NBD_ENOTSUP`
    NotSup,
    /// `NBD_ESHUTDOWN`: the server is on its way down.
    Shutdown,
}

impl ErrorCode {
    /// The number on the wire, which is that of Linux.
    pub fn to_wire(self) -> u32 {
        match self {
            ErrorCode::Perm => 1,
            ErrorCode::Io => 5,
            ErrorCode::NoMem => 12,
            ErrorCode::Inval => 22,
            ErrorCode::NoSpc => 28,
            ErrorCode::Overflow => 75,
            ErrorCode::NotSup => 95,
            ErrorCode::Shutdown => 108,
        }
    }

    fn known(value: u32) -> Option<ErrorCode> {
        Some(match value {
            1 => ErrorCode::Perm,
            5 => ErrorCode::Io,
            12 => ErrorCode::NoMem,
            22 => ErrorCode::Inval,
            28 => ErrorCode::NoSpc,
            75 => ErrorCode::Overflow,
            95 => ErrorCode::NotSup,
            108 => ErrorCode::Shutdown,
            _ => return None,
        })
    }

    /// From the number on the wire; `None` for zero, which is success. Unknown ones count as
    /// `NBD_EINVAL`.
    pub fn from_wire(value: u32) -> Option<ErrorCode> {
        if value == 0 { None } else { Some(ErrorCode::known(value).unwrap_or(ErrorCode::Inval)) }
    }

    /// The closest error to an errno of the system; `NBD_EIO` for those the protocol has not.
    pub fn from_errno(errno: i32) -> ErrorCode {
        u32::try_from(errno).ok().and_then(ErrorCode::known).unwrap_or(ErrorCode::Io)
    }
}

/// A simple reply without its payload (*Simple reply message*).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// `None`: success.
    pub error: Option<ErrorCode>,
    /// Cookie of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Appends the reply; the content follows a successful read.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(SIMPLE_REPLY_MAGIC);
        out.put_u32(self.error.map_or(0, ErrorCode::to_wire));
        out.put_u64(self.cookie);
    }
}

/// A part of the answer to `BLOCK_STATUS`.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// Length in bytes.
    pub length: u32,
    /// Flags of the part, see [`constants::STATE_HOLE`].
    pub flags: u32,
}

/// Payload of the chunk of a structured reply (*Structured reply types*).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// `NBD_REPLY_TYPE_NONE`
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: the content follows.
    Data {
        /// Offset in bytes.
        offset: u64,
        /// Number of bytes that follow.
        length: u32,
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`
    Hole {
        /// Offset in bytes.
        offset: u64,
        /// Number of zero bytes.
        length: u32,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`
    BlockStatus {
        /// Number of the metadata context.
        context: u32,
        /// Consecutive parts from the offset of the request.
        extents: Vec<StatusExtent>,
    },
    /// `NBD_REPLY_TYPE_ERROR` and `NBD_REPLY_TYPE_ERROR_OFFSET`
    Error {
        /// The error.
        error: ErrorCode,
        /// Reason, for a human reader.
        message: String,
        /// Offset in bytes, if known.
        offset: Option<u64>,
    },
    /// An unknown chunk; its payload is skipped.
    Unknown {
        /// Its type.
        kind: u16,
        /// Bytes that follow.
        length: u32,
    },
}

/// The start of a chunk (*Structured reply chunk message*).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// See [`chunk::FLAG_DONE`].
    pub flags: u16,
    /// See [`chunk`].
    pub kind: u16,
    /// Cookie of the request.
    pub cookie: u64,
    /// Bytes that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Parses the header after its magic number.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<ChunkHeader> {
        Some(ChunkHeader {
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            length: reader.u32()?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(CHUNK_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.kind);
        out.put_u64(self.cookie);
        out.put_u32(self.length);
    }
}

impl Chunk {
    /// Appends the chunk; the content follows [`Chunk::Data`], any bytes [`Chunk::Unknown`].
    pub fn encode(&self, cookie: u64, done: bool, out: &mut Vec<u8>) {
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        let start = |kind, length, out: &mut Vec<u8>| {
            ChunkHeader { flags, kind, cookie, length }.encode(out)
        };
        match self {
            Chunk::None => start(chunk::NONE, 0, out),
            Chunk::Data { offset, length } => {
                start(chunk::OFFSET_DATA, 8 + length, out);
                out.put_u64(*offset);
            }
            Chunk::Hole { offset, length } => {
                start(chunk::OFFSET_HOLE, 12, out);
                out.put_u64(*offset);
                out.put_u32(*length);
            }
            Chunk::BlockStatus { context, extents } => {
                start(chunk::BLOCK_STATUS, 4 + 8 * length(extents.len()), out);
                out.put_u32(*context);
                for extent in extents {
                    out.put_u32(extent.length);
                    out.put_u32(extent.flags);
                }
            }
            Chunk::Error { error, message, offset } => {
                let message = clip(message, constants::MAX_STRING_BYTES);
                let fixed = 6 + length(message.len());
                match offset {
                    None => start(chunk::ERROR, fixed, out),
                    Some(_) => start(chunk::ERROR_OFFSET, fixed + 8, out),
                }
                out.put_u32(error.to_wire());
                out.put_u16(
                    u16::try_from(message.len()).expect("clipped to fewer than 64 Ki bytes"),
                );
                out.put(message.as_bytes());
                if let Some(offset) = offset {
                    out.put_u64(*offset);
                }
            }
            Chunk::Unknown { kind, length } => start(*kind, *length, out),
        }
    }

    /// Parses the payload of a chunk that is neither [`Chunk::Data`] nor [`Chunk::Unknown`].
    /// `None`: it is malformed.
    pub(super) fn decode(kind: u16, payload: &[u8]) -> Option<Chunk> {
        let mut reader = Reader::new(payload);
        let chunk = match kind {
            chunk::NONE => Chunk::None,
            chunk::OFFSET_HOLE => Chunk::Hole { offset: reader.u64()?, length: reader.u32()? },
            chunk::BLOCK_STATUS => {
                let context = reader.u32()?;
                let mut extents = Vec::with_capacity(payload.len() / 8);
                while !reader.is_empty() {
                    extents.push(StatusExtent { length: reader.u32()?, flags: reader.u32()? });
                }
                if extents.is_empty() {
                    return None;
                }
                Chunk::BlockStatus { context, extents }
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                let error = ErrorCode::from_wire(reader.u32()?)?;
                let len = usize::from(reader.u16()?);
                let message = super::wire::string(reader.bytes(len)?).ok()?;
                let offset = if kind == chunk::ERROR_OFFSET { Some(reader.u64()?) } else { None };
                Chunk::Error { error, message, offset }
            }
            _ => return None,
        };
        reader.is_empty().then_some(chunk)
    }
}

/// The longest beginning of `text` within `limit` bytes.
fn clip(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
