//! NBD from outside: a load generator that sends many requests in one call, and the smallest server
//! there is.
//!
//! | module | holds |
//! |---|---|
//! | [`client`] | connecting, and the few messages that a load needs |
//! | [`load`] | requests as fast as they are answered, and how long the answers took |
//! | [`memory_server`] | a server over an array of bytes: the cost of the protocol itself |

pub mod client;
pub mod load;
pub mod memory_server;

use std::path::PathBuf;
use std::str::FromStr;

/// Address of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Address, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", rest)) if rest.contains(':') => Ok(Address::Tcp(rest.to_owned())),
            _ => Err("expected unix:PATH or tcp:HOST:PORT".to_owned()),
        }
    }
}

/// The greeting of a server, before its flags.
const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_EXPORT_NAME: u32 = 1;
/// Both sides: newstyle, and no padding after the answer to `EXPORT_NAME`.
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const FLAG_FUA: u16 = 1;

/// Operation of a request, with its number in the protocol.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}
