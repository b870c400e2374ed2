//! Decoder of the client's side: greeting, option replies, replies, chunks, payloads.

use super::ProtocolError;
use super::constants::{
    CHUNK_HEADER_BYTES, CHUNK_MAGIC, GREETING_BYTES, IHAVEOPT, MAGIC, MAX_OPTION_BYTES,
    MAX_PAYLOAD_BYTES, MAX_STATUS_BYTES, MAX_STRING_BYTES, OPTION_REPLY_HEADER_BYTES,
    OPTION_REPLY_MAGIC, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, chunk,
};
use super::option::OptionReply;
use super::transmission::{Chunk, ChunkHeader, ErrorCode, SimpleReply};
use super::wire::{Gather, Reader};

/// Zeroes after the answer to `EXPORT_NAME` unless both sides agreed to leave them out.
pub(super) const EXPORT_PADDING_BYTES: usize = 124;

/// A message, or part of one, that a client receives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientEvent<'a> {
    /// The greeting, with the handshake flags of the server.
    Greeting(u16),
    /// A reply to an option; one option can get several.
    Option {
        /// The option.
        option: u32,
        /// The reply.
        reply: OptionReply,
    },
    /// The answer to `EXPORT_NAME`; transmission has begun.
    Export {
        /// Size in bytes.
        size: u64,
        /// See [`super::constants::transmission`].
        flags: u16,
    },
    /// A simple reply; the content comes next if it answers a read.
    Reply(SimpleReply),
    /// A chunk of a structured reply; the content comes next if it is [`Chunk::Data`].
    Chunk {
        /// Cookie of the request.
        cookie: u64,
        /// True if this is the last chunk of the reply.
        done: bool,
        /// Payload of the chunk.
        chunk: Chunk,
    },
    /// The next bytes of the content that was announced; never empty.
    Payload(&'a [u8]),
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    OptionHeader,
    OptionData { option: u32, kind: u32, length: u32 },
    Export { no_zeroes: bool },
    Magic,
    Simple,
    ChunkHeader,
    ChunkBody(ChunkHeader),
    Payload { left: u32 },
    Skip { left: u32 },
    Failed(ProtocolError),
}

/// Turns what a server sends into events. See the [module](super) about cuts and memory.
#[derive(Debug)]
pub struct ClientDecoder {
    state: State,
    gather: Gather,
}

impl Default for ClientDecoder {
    fn default() -> ClientDecoder {
        ClientDecoder { state: State::Greeting, gather: Gather::default() }
    }
}

impl ClientDecoder {
    /// A decoder that waits for the greeting.
    pub fn new() -> ClientDecoder {
        ClientDecoder::default()
    }

    /// The client has sent `EXPORT_NAME`: its answer has no header.
    ///
    /// # Panics
    /// If a message has begun, or outside the negotiation.
    pub fn expect_export(&mut self, no_zeroes: bool) {
        assert!(
            self.state == State::OptionHeader && self.gather.is_empty(),
            "between option replies"
        );
        self.state = State::Export { no_zeroes };
    }

    /// `GO` was acknowledged: replies to requests from now on.
    ///
    /// # Panics
    /// If a message has begun, or outside the negotiation.
    pub fn start_transmission(&mut self) {
        assert!(
            self.state == State::OptionHeader && self.gather.is_empty(),
            "between option replies"
        );
        self.state = State::Magic;
    }

    /// Bytes that are held because their message is not complete: at most
    /// [`MAX_STATUS_BYTES`].
    pub fn held_bytes(&self) -> usize {
        self.gather.as_slice().len()
    }

    /// Bytes of the content that are still to come.
    pub fn payload_left(&self) -> u32 {
        if let State::Payload { left } = self.state { left } else { 0 }
    }

    /// Counts `bytes` bytes of the content that were received directly into their buffer.
    ///
    /// # Panics
    /// If there are not that many to come.
    pub fn payload_bypassed(&mut self, bytes: u32) {
        let left = self.payload_left().checked_sub(bytes).expect("not more than was to come");
        self.state = if left == 0 { State::Magic } else { State::Payload { left } };
    }

    /// Takes bytes off the input up to the end of the next event. `None`: more input is needed,
    /// and all of it was taken.
    ///
    /// `read_length` returns the number of content bytes after the successful simple reply to a
    /// request: the length of a read, zero for the others, `None` if there is no such request.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        read_length: impl Fn(u64) -> Option<u32>,
    ) -> Result<Option<ClientEvent<'a>>, ProtocolError> {
        let event = self.step(input, read_length);
        if let Err(error) = event {
            self.state = State::Failed(error);
        }
        event
    }

    fn step<'a>(
        &mut self,
        input: &mut &'a [u8],
        read_length: impl Fn(u64) -> Option<u32>,
    ) -> Result<Option<ClientEvent<'a>>, ProtocolError> {
        loop {
            let need = match self.state {
                State::Greeting => GREETING_BYTES,
                State::OptionHeader => OPTION_REPLY_HEADER_BYTES,
                State::OptionData { length, .. } => length as usize,
                State::Export { no_zeroes: true } => 10,
                State::Export { no_zeroes: false } => 10 + EXPORT_PADDING_BYTES,
                State::Magic => 4,
                State::Simple => SIMPLE_REPLY_BYTES,
                State::ChunkHeader => CHUNK_HEADER_BYTES,
                State::ChunkBody(header) if header.kind == chunk::OFFSET_DATA => 8,
                State::ChunkBody(header) => header.length as usize,
                State::Payload { left } => return Ok(self.payload(input, left)),
                State::Skip { left } => {
                    let skipped = input.len().min(left as usize);
                    *input = &input[skipped..];
                    let left = left - skipped as u32;
                    if left > 0 {
                        self.state = State::Skip { left };
                        return Ok(None);
                    }
                    self.state = State::Magic;
                    continue;
                }
                State::Failed(error) => return Err(error),
            };
            if !self.gather.fill(input, need) {
                return Ok(None);
            }
            // The magic number determines the length of the rest; it stays in the gathered bytes.
            let keep = self.state == State::Magic;
            let event = self.gathered(&read_length)?;
            if !keep {
                self.gather.clear();
            }
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// A message, or the part that decides how it goes on, is complete.
    fn gathered(
        &mut self,
        read_length: &impl Fn(u64) -> Option<u32>,
    ) -> Result<Option<ClientEvent<'static>>, ProtocolError> {
        const LENGTH: &str = "gathered";
        let mut reader = Reader::new(self.gather.as_slice());
        match self.state {
            State::Greeting => {
                for expected in [MAGIC, IHAVEOPT] {
                    let found = reader.u64().expect(LENGTH);
                    if found != expected {
                        return Err(ProtocolError::BadMagic { what: "the greeting", found });
                    }
                }
                self.state = State::OptionHeader;
                Ok(Some(ClientEvent::Greeting(reader.u16().expect(LENGTH))))
            }
            State::OptionHeader => {
                self.state = option_reply_header(&mut reader)?;
                Ok(None)
            }
            State::OptionData { option, kind, .. } => {
                let reply = OptionReply::decode(kind, reader.rest())
                    .ok_or(ProtocolError::Malformed("reply to an option"))?;
                self.state = State::OptionHeader;
                Ok(Some(ClientEvent::Option { option, reply }))
            }
            State::Export { .. } => {
                let (size, flags) = (reader.u64().expect(LENGTH), reader.u16().expect(LENGTH));
                self.state = State::Magic;
                Ok(Some(ClientEvent::Export { size, flags }))
            }
            State::Magic => {
                self.state = match reader.u32().expect(LENGTH) {
                    SIMPLE_REPLY_MAGIC => State::Simple,
                    CHUNK_MAGIC => State::ChunkHeader,
                    found => {
                        return Err(ProtocolError::BadMagic {
                            what: "a reply",
                            found: found.into(),
                        });
                    }
                };
                Ok(None)
            }
            State::Simple => {
                reader.u32().expect(LENGTH);
                let error = ErrorCode::from_wire(reader.u32().expect(LENGTH));
                let cookie = reader.u64().expect(LENGTH);
                let expected = read_length(cookie).ok_or(ProtocolError::UnknownCookie(cookie))?;
                self.state = match expected {
                    0 => State::Magic,
                    _ if error.is_some() => State::Magic,
                    left => State::Payload { left },
                };
                Ok(Some(ClientEvent::Reply(SimpleReply { error, cookie })))
            }
            State::ChunkHeader => {
                reader.u32().expect(LENGTH);
                let header = ChunkHeader::decode(&mut reader).expect(LENGTH);
                self.chunk_header(header)
            }
            State::ChunkBody(header) => {
                let chunk = if header.kind == chunk::OFFSET_DATA {
                    let length = header.length - 8;
                    self.state = State::Payload { left: length };
                    Chunk::Data { offset: reader.u64().expect(LENGTH), length }
                } else {
                    self.state = State::Magic;
                    Chunk::decode(header.kind, reader.rest())
                        .ok_or(ProtocolError::Malformed("chunk"))?
                };
                Ok(Some(chunk_event(&header, chunk)))
            }
            State::Payload { .. } | State::Skip { .. } | State::Failed(_) => {
                unreachable!("these states gather nothing")
            }
        }
    }

    fn chunk_header(
        &mut self,
        header: ChunkHeader,
    ) -> Result<Option<ClientEvent<'static>>, ProtocolError> {
        const ERROR_BYTES: u32 = MAX_STRING_BYTES as u32 + 14;
        let (low, high) = match header.kind {
            chunk::NONE => (0, 0),
            chunk::OFFSET_DATA => (9, MAX_PAYLOAD_BYTES + 8),
            chunk::OFFSET_HOLE => (12, 12),
            chunk::BLOCK_STATUS => (12, MAX_STATUS_BYTES),
            chunk::ERROR => (6, ERROR_BYTES),
            chunk::ERROR_OFFSET => (14, ERROR_BYTES),
            _ => (0, MAX_PAYLOAD_BYTES),
        };
        if header.length > high {
            return Err(ProtocolError::PayloadTooLong(header.length));
        }
        if header.length < low {
            return Err(ProtocolError::Malformed("chunk"));
        }
        match header.kind {
            chunk::NONE
            | chunk::OFFSET_DATA
            | chunk::OFFSET_HOLE
            | chunk::BLOCK_STATUS
            | chunk::ERROR
            | chunk::ERROR_OFFSET => {
                self.state = State::ChunkBody(header);
                Ok(None)
            }
            kind => {
                self.state = State::Skip { left: header.length };
                Ok(Some(chunk_event(&header, Chunk::Unknown { kind, length: header.length })))
            }
        }
    }

    fn payload<'a>(&mut self, input: &mut &'a [u8], left: u32) -> Option<ClientEvent<'a>> {
        if input.is_empty() {
            return None;
        }
        let (bytes, rest) = input.split_at(input.len().min(left as usize));
        *input = rest;
        self.payload_bypassed(bytes.len() as u32);
        Some(ClientEvent::Payload(bytes))
    }
}

fn chunk_event(header: &ChunkHeader, chunk: Chunk) -> ClientEvent<'static> {
    ClientEvent::Chunk { cookie: header.cookie, done: header.flags & chunk::FLAG_DONE != 0, chunk }
}

fn option_reply_header(reader: &mut Reader<'_>) -> Result<State, ProtocolError> {
    const LENGTH: &str = "gathered";
    let magic = reader.u64().expect(LENGTH);
    if magic != OPTION_REPLY_MAGIC {
        return Err(ProtocolError::BadMagic { what: "the reply to an option", found: magic });
    }
    let (option, kind) = (reader.u32().expect(LENGTH), reader.u32().expect(LENGTH));
    let length = reader.u32().expect(LENGTH);
    if length > MAX_OPTION_BYTES {
        return Err(ProtocolError::OptionTooLong { option, length });
    }
    Ok(State::OptionData { option, kind, length })
}
