//! A connection to a server.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{
    Address, Command, FIXED_NEWSTYLE_NO_ZEROES, FLAG_FUA, GREETING, OPTION_EXPORT_NAME,
    OPTION_MAGIC, REQUEST_BYTES, REQUEST_MAGIC,
};

/// A connection to an export.
#[derive(Debug)]
pub struct Connected {
    /// The socket.
    pub socket: OwnedFd,
    /// Size of the export in bytes.
    pub export_bytes: u64,
}

/// Connects and chooses an export.
pub fn connect(address: &Address, export: &str) -> io::Result<Connected> {
    match address {
        Address::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            let export_bytes = negotiate(&mut stream, export)?;
            Ok(Connected { socket: stream.into(), export_bytes })
        }
        Address::Tcp(address) => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let export_bytes = negotiate(&mut stream, export)?;
            Ok(Connected { socket: stream.into(), export_bytes })
        }
    }
}

fn negotiate(stream: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if !greeting.starts_with(GREETING) {
        return Err(io::Error::other("this is no NBD server"));
    }
    let mut message = Vec::new();
    message.extend(u32::from(FIXED_NEWSTYLE_NO_ZEROES).to_be_bytes());
    message.extend(OPTION_MAGIC);
    message.extend(OPTION_EXPORT_NAME.to_be_bytes());
    message.extend((export.len() as u32).to_be_bytes());
    message.extend(export.as_bytes());
    stream.write_all(&message)?;
    let mut answer = [0; 10];
    // A server that has no such export closes the connection.
    stream.read_exact(&mut answer)?;
    let (size, _flags) = answer.split_at(8);
    Ok(u64::from_be_bytes(size.try_into().expect("eight bytes")))
}

/// Appends a request to what is to be sent; a write's content comes after it.
pub(super) fn push_request(
    out: &mut Vec<u8>,
    command: Command,
    fua: bool,
    cookie: u64,
    offset: u64,
    length: u32,
) {
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    request[4..6].copy_from_slice(&if fua { FLAG_FUA } else { 0 }.to_be_bytes());
    request[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    request[8..16].copy_from_slice(&cookie.to_be_bytes());
    request[16..24].copy_from_slice(&offset.to_be_bytes());
    request[24..].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&request);
}
