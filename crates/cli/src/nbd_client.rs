//! A small blocking NBD client, one request at a time: for the demo and for the tests.
//!
//! It shares no code with the server on purpose: an error of one side about the protocol is not
//! repeated by the other.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const HANDSHAKE_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u32 = 1;
const NO_ZEROES: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const REPLY_IS_ERROR: u32 = 1 << 31;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_TRIM: u16 = 4;
const COMMAND_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

/// A connection to one export.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    bytes: u64,
    flags: u16,
    cookie: u64,
}

impl Client {
    /// Connects to a unix socket and enters the export.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Client> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        if be64(&hello[0..]) != HANDSHAKE_MAGIC || be64(&hello[8..]) != OPTION_MAGIC {
            return Err(protocol("the server does not begin with the NBD magic numbers"));
        }
        stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_GO.to_be_bytes());
        option.extend((export.len() as u32 + 6).to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        option.extend(0_u16.to_be_bytes());
        stream.write_all(&option)?;
        let (mut bytes, mut flags) = (0, 0);
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let (kind, length) = (be32(&head[12..]), be32(&head[16..]));
            if be64(&head) != OPTION_REPLY_MAGIC || length > 1 << 20 {
                return Err(protocol("malformed option reply"));
            }
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload)?;
            match kind {
                REPLY_ACK => return Ok(Client { stream, bytes, flags, cookie: 0 }),
                REPLY_INFO if payload.len() >= 12 && be16(&payload) == INFO_EXPORT => {
                    bytes = be64(&payload[2..]);
                    flags = be16(&payload[10..]);
                }
                REPLY_INFO => {}
                kind if kind & REPLY_IS_ERROR != 0 => {
                    let why = String::from_utf8_lossy(&payload).into_owned();
                    return Err(protocol(&format!(
                        "the server refuses export \"{export}\": {why} ({kind:#x})"
                    )));
                }
                _ => return Err(protocol("unknown option reply")),
            }
        }
    }

    /// Size of the export in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Transmission flags of the export.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Reads `into.len()` bytes.
    pub fn read(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.send(COMMAND_READ, 0, at, into.len() as u32, &[])?;
        self.reply()?;
        self.stream.read_exact(into)
    }

    /// Writes; with `fua` it is durable on return.
    pub fn write(&mut self, at: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.send(COMMAND_WRITE, if fua { FLAG_FUA } else { 0 }, at, data.len() as u32, data)?;
        self.reply()
    }

    /// Makes all answered writes durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.send(COMMAND_FLUSH, 0, 0, 0, &[])?;
        self.reply()
    }

    /// The range is not needed any more.
    pub fn trim(&mut self, at: u64, bytes: u32) -> io::Result<()> {
        self.send(COMMAND_TRIM, 0, at, bytes, &[])?;
        self.reply()
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(&mut self, at: u64, bytes: u32) -> io::Result<()> {
        self.send(COMMAND_WRITE_ZEROES, 0, at, bytes, &[])?;
        self.reply()
    }

    /// The socket, for one who speaks the protocol in a way of his own.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Ends the connection with the protocol's request for it.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(COMMAND_DISCONNECT, 0, 0, 0, &[])
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        at: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut head = Vec::with_capacity(28 + data.len());
        head.extend(REQUEST_MAGIC.to_be_bytes());
        head.extend(flags.to_be_bytes());
        head.extend(command.to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(at.to_be_bytes());
        head.extend(length.to_be_bytes());
        head.extend(data);
        self.stream.write_all(&head)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if be32(&head) != SIMPLE_REPLY_MAGIC || be64(&head[8..]) != self.cookie {
            return Err(protocol("malformed reply"));
        }
        match be32(&head[4..]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }
}

fn protocol(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn be64(bytes: &[u8]) -> u64 {
    (u64::from(be32(bytes)) << 32) | u64::from(be32(&bytes[4..]))
}
