//! Backing devices that are not files of this machine.
//!
//! A device of a network can't be opened for one user alone: neither O_EXCL nor a lock of the file
//! reaches it. The lock of the cache device keeps two daemons of one machine apart; nothing keeps
//! those of two machines apart (docs/guide/network-disks.md).
//!
//! | module | holds |
//! |---|---|
//! | here | [`Remote`]: a device of any such kind, and its connection |
//! | `blocking` | the same for commands, with blocking calls |
//! | [`address`] | names of backing devices: paths and URIs |
//! | [`nbd`] | exports of NBD servers |

pub mod address;
pub(crate) mod blocking;
pub mod nbd;

use std::path::Path;

use ubcache_env::Nanos;
use ubcache_env::erased::AnyDevice;
use ubcache_host::{HostDisk, HostEnv};

pub use self::address::{BackingName, absolute, is_same_uri, is_uri};
use self::nbd::NbdDisk;
use crate::failure::Failure;

/// Time after which no server carries out a request of a connection that was cut.
pub(crate) const LATE_WRITES_END: Nanos = Nanos::from_secs(30);

/// Use of a remote device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Reading some of it, by a command or before the start of a daemon.
    Look,
    /// Writing by a command.
    Change,
    /// Serving: connections that are lost are made again.
    Serve,
}

/// A remote device that is open.
pub enum Remote {
    /// An export of an NBD server.
    Nbd(NbdDisk),
    // Other kinds stand here.
}

/// The connection to a remote device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Connection {
    /// Its state.
    pub state: ConnectionState,
    /// Connections that carry requests now.
    pub connections: u64,
    /// Times that the server was reached again.
    pub reconnects: u64,
    /// Requests that were sent again.
    pub resent_requests: u64,
}

/// State of a connection, with the reason if it is not there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ConnectionState {
    /// The server is there.
    #[default]
    Connected,
    /// It is not there: requests wait.
    Lost(String),
    /// It has not been there for too long: requests fail, and attempts to reach it go on.
    Failing(String),
    /// It has something else now: requests fail for good.
    GivenUp(String),
}

impl ConnectionState {
    /// The state in a word or two, and the reason.
    pub fn words(&self) -> (&'static str, Option<&str>) {
        match self {
            ConnectionState::Connected => ("connected", None),
            ConnectionState::Lost(why) => ("lost", Some(why)),
            ConnectionState::Failing(why) => ("failing", Some(why)),
            ConnectionState::GivenUp(why) => ("given up", Some(why)),
        }
    }
}

impl Remote {
    /// Opens a device that is behind a network; `None`: the name is a path of this machine.
    ///
    /// # Errors
    /// The name is a URI that can't be read, or what it names can't be a disk.
    pub async fn open(
        env: &HostEnv,
        name: &Path,
        purpose: Purpose,
    ) -> Result<Option<Remote>, Failure> {
        match BackingName::parse(name)? {
            BackingName::Path(_) => Ok(None),
            BackingName::Nbd(export) => {
                let opened = NbdDisk::open(env, name, &export, purpose).await?;
                Ok(Some(Remote::Nbd(opened)))
            }
        }
    }

    /// The device.
    pub fn device(&self) -> AnyDevice {
        match self {
            Remote::Nbd(disk) => AnyDevice::new(disk.device()),
        }
    }

    /// The device as one of the host's.
    pub fn disk(&self) -> HostDisk {
        self.device().into()
    }

    /// The connection to it.
    pub fn connection(&self) -> Connection {
        match self {
            Remote::Nbd(disk) => disk.connection(),
        }
    }

    /// Ends its use. Nothing may be under way.
    pub async fn close(&self) {
        match self {
            Remote::Nbd(disk) => disk.close().await,
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("connection", &self.connection()).finish_non_exhaustive()
    }
}
