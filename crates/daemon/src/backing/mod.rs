//! Backing devices that are not files of this machine.
//!
//! A device of a network can't be opened for one user alone: neither O_EXCL nor a lock of the file
//! reaches it. The lock of the cache device keeps two daemons of one machine apart; nothing keeps
//! those of two machines apart (docs/guide/network-disks.md).
//!
//! | module | holds |
//! |---|---|
//! | here | [`Remote`]: a device of any such kind, and its connection |
//! | [`connection`] | the purpose of a connection, and its state |
//! | `blocking` | the same for commands, with blocking calls |
//! | [`address`] | names of backing devices: paths and URIs |
//! | `uri` | parts of URIs, and messages about bad ones |
//! | [`nbd`], `nbd_stream` | exports of NBD servers, and connections to them |
//! | [`s3`], [`s3_address`] | volumes on object stores, and their URIs |

pub mod address;
pub(crate) mod blocking;
pub mod connection;
pub mod nbd;
mod nbd_stream;
pub mod s3;
pub mod s3_address;
mod uri;

use std::path::Path;

use ubcache_env::erased::AnyDevice;
use ubcache_host::{HostDisk, HostEnv};
use ubcache_objects::GrowFailure;

pub use self::address::{BackingName, absolute, is_same_uri, is_uri};
pub(crate) use self::connection::LATE_WRITES_END;
pub use self::connection::{Connection, ConnectionState, Purpose};
use self::nbd::NbdDisk;
use self::s3::S3Disk;
use crate::failure::Failure;

/// A remote device that is open.
pub enum Remote {
    /// An export of an NBD server.
    Nbd(NbdDisk),
    /// A volume on an object store.
    S3(S3Disk),
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
                let opened = Box::pin(NbdDisk::open(env, name, &export, purpose)).await?;
                Ok(Some(Remote::Nbd(opened)))
            }
            BackingName::S3(volume) => {
                let opened = Box::pin(S3Disk::open(env, name, &volume, purpose)).await?;
                Ok(Some(Remote::S3(opened)))
            }
        }
    }

    /// The device.
    pub fn device(&self) -> AnyDevice {
        match self {
            Remote::Nbd(disk) => AnyDevice::new(disk.device()),
            Remote::S3(disk) => AnyDevice::new(disk.device()),
        }
    }

    /// Returns true if a write of a run that was cut off may land over newer data. A late PUT does
    /// not: nothing names it.
    pub fn may_write_late(&self) -> bool {
        matches!(self, Remote::Nbd(_))
    }

    /// Returns true if discarded sectors may read differently every time.
    pub fn has_vague_discards(&self) -> bool {
        matches!(self, Remote::Nbd(_))
    }

    /// The device as one of the host's.
    pub fn disk(&self) -> HostDisk {
        self.device().into()
    }

    /// The connection to it.
    pub fn connection(&self) -> Connection {
        match self {
            Remote::Nbd(disk) => disk.connection(),
            Remote::S3(disk) => disk.connection(),
        }
    }

    /// Makes a volume longer that has no size but that; `None`: the device has one of its own.
    pub async fn grow(&self, bytes: u64) -> Option<Result<(), GrowFailure>> {
        match self {
            Remote::Nbd(_) => None,
            Remote::S3(disk) => Some(disk.grow(bytes).await),
        }
    }

    /// Waits until no write of a connection that was lost can land any more.
    pub async fn landed(&self) {
        match self {
            Remote::Nbd(disk) => disk.landed().await,
            Remote::S3(_) => {}
        }
    }

    /// Ends its use. Nothing may be under way. Returns when nothing can land any more.
    pub async fn close(&self) {
        match self {
            Remote::Nbd(disk) => disk.close().await,
            Remote::S3(disk) => disk.close().await,
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("connection", &self.connection()).finish_non_exhaustive()
    }
}
