//! Decoder of the server's side: client flags, options, requests, payloads.

use super::ProtocolError;
use super::constants::{
    IHAVEOPT, MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, MAX_SKIPPED_OPTION_BYTES, MAX_STRING_BYTES,
    OPTION_HEADER_BYTES, REQUEST_BYTES, handshake, opt,
};
use super::option::{ClientOption, OptionFault};
use super::transmission::Request;
use super::wire::{Gather, Reader};

/// An option of the client: decoded, or the error in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionRequest {
    /// Its number, which comes back in the replies.
    pub code: u32,
    /// Its meaning.
    pub body: Result<ClientOption, OptionFault>,
}

/// A message, or part of one, that a server receives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerEvent<'a> {
    /// The handshake flags of the client.
    ClientFlags(u16),
    /// An option.
    Option(OptionRequest),
    /// A request; its payload, if it has one, comes next.
    Request(Request),
    /// The next bytes of the payload of the last request; never empty.
    Payload(&'a [u8]),
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData { code: u32, length: u32 },
    OptionSkip { code: u32, left: u32 },
    Request,
    Payload { left: u32 },
    Failed(ProtocolError),
}

/// Turns what a client sends into events. See the [module](super) about cuts and memory.
#[derive(Debug)]
pub struct ServerDecoder {
    state: State,
    gather: Gather,
}

impl Default for ServerDecoder {
    fn default() -> ServerDecoder {
        ServerDecoder { state: State::ClientFlags, gather: Gather::default() }
    }
}

impl ServerDecoder {
    /// A decoder that waits for the answer to the greeting.
    pub fn new() -> ServerDecoder {
        ServerDecoder::default()
    }

    /// A decoder of what comes after a negotiation that another one has seen.
    pub fn in_transmission() -> ServerDecoder {
        ServerDecoder { state: State::Request, gather: Gather::default() }
    }

    /// The payload of a request that another decoder has seen comes next: so many bytes of it.
    ///
    /// # Panics
    /// In the midst of a request, and during the negotiation.
    pub fn expect_payload(&mut self, left: u32) {
        assert!(self.state == State::Request && self.gather.is_empty(), "between two requests");
        if left > 0 {
            self.state = State::Payload { left };
        }
    }

    /// Takes the bytes of the request that has begun and is not complete, as if they had not come.
    /// The next event is a request; a payload that was expected is not any more.
    ///
    /// # Panics
    /// During the negotiation.
    pub fn take_begun(&mut self) -> Vec<u8> {
        assert!(
            matches!(self.state, State::Request | State::Payload { .. }),
            "only requests can be put back"
        );
        self.state = State::Request;
        let begun = self.gather.as_slice().to_vec();
        self.gather.clear();
        begun
    }

    /// Ends the negotiation: requests from now on. Call it between an option and the next
    /// [`ServerDecoder::next`].
    ///
    /// # Panics
    /// If the last event was not an option.
    pub fn start_transmission(&mut self) {
        assert_eq!(self.state, State::OptionHeader, "the negotiation ends with an option");
        self.state = State::Request;
    }

    /// Returns true if a message has begun that is not complete: a connection must not end here.
    pub fn is_mid_message(&self) -> bool {
        match self.state {
            State::ClientFlags | State::OptionHeader | State::Request => !self.gather.is_empty(),
            State::OptionData { .. } | State::OptionSkip { .. } | State::Payload { .. } => true,
            State::Failed(_) => false,
        }
    }

    /// Bytes of the payload that are still to come.
    pub fn payload_left(&self) -> u32 {
        if let State::Payload { left } = self.state { left } else { 0 }
    }

    /// Counts `bytes` bytes of the payload that were received directly into their buffer.
    ///
    /// # Panics
    /// If there are not that many to come.
    pub fn payload_bypassed(&mut self, bytes: u32) {
        let left = self.payload_left().checked_sub(bytes).expect("not more than was to come");
        self.state = if left == 0 { State::Request } else { State::Payload { left } };
    }

    /// Bytes that are held because their message is not complete: at most
    /// [`MAX_OPTION_BYTES`].
    pub fn held_bytes(&self) -> usize {
        self.gather.as_slice().len()
    }

    /// Takes bytes off the input up to the end of the next event. `None`: more input is needed,
    /// and all of it was taken.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        let event = self.step(input);
        if let Err(error) = event {
            self.state = State::Failed(error);
        }
        event
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        loop {
            match self.state {
                State::ClientFlags => {
                    if !self.gather.fill(input, 4) {
                        return Ok(None);
                    }
                    let flags = Reader::new(self.gather.as_slice()).u32().expect("gathered");
                    self.gather.clear();
                    self.state = State::OptionHeader;
                    return client_flags(flags).map(Some);
                }
                State::OptionHeader => {
                    if !self.gather.fill(input, OPTION_HEADER_BYTES) {
                        return Ok(None);
                    }
                    self.state = option_header(self.gather.as_slice())?;
                    self.gather.clear();
                }
                State::OptionData { code, length } => {
                    if !self.gather.fill(input, length as usize) {
                        return Ok(None);
                    }
                    let body = ClientOption::decode(code, self.gather.as_slice());
                    self.gather.clear();
                    self.state = State::OptionHeader;
                    return option(code, body).map(Some);
                }
                State::OptionSkip { code, left } => {
                    let skipped = input.len().min(left as usize);
                    *input = &input[skipped..];
                    let left = left - skipped as u32;
                    if left > 0 {
                        self.state = State::OptionSkip { code, left };
                        return Ok(None);
                    }
                    self.state = State::OptionHeader;
                    return option(code, Err(OptionFault::TooBig("the option is too long")))
                        .map(Some);
                }
                State::Request => return self.request(input),
                State::Payload { left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(input.len().min(left as usize));
                    *input = rest;
                    self.payload_bypassed(bytes.len() as u32);
                    return Ok(Some(ServerEvent::Payload(bytes)));
                }
                State::Failed(error) => return Err(error),
            }
        }
    }

    fn request<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<ServerEvent<'a>>, ProtocolError> {
        let request = match input.split_first_chunk::<REQUEST_BYTES>() {
            Some((bytes, rest)) if self.gather.is_empty() => {
                let request = Request::decode(bytes)?;
                *input = rest;
                request
            }
            _ => {
                if !self.gather.fill(input, REQUEST_BYTES) {
                    return Ok(None);
                }
                let bytes = self.gather.as_slice().first_chunk().expect("gathered");
                let request = Request::decode(bytes)?;
                self.gather.clear();
                request
            }
        };
        let payload = request.payload_bytes();
        if payload > MAX_PAYLOAD_BYTES {
            return Err(ProtocolError::PayloadTooLong(payload));
        }
        if payload > 0 {
            self.state = State::Payload { left: payload };
        }
        Ok(Some(ServerEvent::Request(request)))
    }
}

fn client_flags(flags: u32) -> Result<ServerEvent<'static>, ProtocolError> {
    match u16::try_from(flags) {
        Ok(known) if known & !(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) == 0 => {
            Ok(ServerEvent::ClientFlags(known))
        }
        _ => Err(ProtocolError::UnknownClientFlags(flags)),
    }
}

fn option_header(bytes: &[u8]) -> Result<State, ProtocolError> {
    const LENGTH: &str = "gathered";
    let mut reader = Reader::new(bytes);
    let magic = reader.u64().expect(LENGTH);
    if magic != IHAVEOPT {
        return Err(ProtocolError::BadMagic { what: "an option", found: magic });
    }
    let (code, length) = (reader.u32().expect(LENGTH), reader.u32().expect(LENGTH));
    if length > MAX_SKIPPED_OPTION_BYTES
        || code == opt::EXPORT_NAME && length as usize > MAX_STRING_BYTES
    {
        return Err(ProtocolError::OptionTooLong { option: code, length });
    }
    Ok(if length > MAX_OPTION_BYTES {
        State::OptionSkip { code, left: length }
    } else {
        State::OptionData { code, length }
    })
}

fn option(
    code: u32,
    body: Result<ClientOption, OptionFault>,
) -> Result<ServerEvent<'static>, ProtocolError> {
    match body {
        Err(fault) if code == opt::EXPORT_NAME => Err(ProtocolError::BadExportName(fault)),
        body => Ok(ServerEvent::Option(OptionRequest { code, body })),
    }
}
