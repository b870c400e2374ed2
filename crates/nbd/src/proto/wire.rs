//! Big-endian numbers and counted strings; messages gathered from pieces.

use super::constants::MAX_STRING_BYTES;
use super::option::OptionFault;

/// Parser of a message. `None`: it is too short.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A string with its length in 32 bits before it.
    pub(super) fn counted_string(&mut self) -> Result<String, OptionFault> {
        let len = self.u32().ok_or(OptionFault::Invalid("too short for a string length"))?;
        let bytes = self
            .bytes(usize::try_from(len).unwrap_or(usize::MAX))
            .ok_or(OptionFault::Invalid("a string is longer than the option"))?;
        string(bytes)
    }
}

/// A string of the protocol: UTF-8 and not longer than [`MAX_STRING_BYTES`].
pub(super) fn string(bytes: &[u8]) -> Result<String, OptionFault> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(OptionFault::TooBig("a string is longer than 4096 bytes"));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|_| OptionFault::Invalid("a string is not UTF-8"))?;
    Ok(text.to_owned())
}

/// Appends numbers and strings to a message.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }
    fn put_counted(&mut self, text: &str) {
        self.put_u32(length(text.len()));
        self.put(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A length as the protocol has it.
pub(super) fn length(len: usize) -> u32 {
    u32::try_from(len).expect("messages that are made here are shorter than 4 GiB")
}

/// Gathers the bytes of one message that comes in pieces. Grows with what has come, not with what
/// was announced.
#[derive(Debug, Default)]
pub(super) struct Gather {
    bytes: Vec<u8>,
}

impl Gather {
    /// Moves bytes from the input until there are `need`. Returns true if there are.
    pub(super) fn fill(&mut self, input: &mut &[u8], need: usize) -> bool {
        let missing = need - self.bytes.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.bytes.extend_from_slice(taken);
        *input = rest;
        self.bytes.len() == need
    }

    /// The bytes of the message.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns true if no byte of the message has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends the message. Memory of a long one is given back.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(MAX_STRING_BYTES);
    }
}
