//! A device that is behind a network, of any kind.

use std::path::Path;

use ubcache_env::erased::AnyDevice;
use ubcache_host::{HostDisk, HostEnv};

use super::address::BackingName;
use super::connection::{Connection, Purpose};
use super::nbd::NbdDisk;
use crate::failure::Failure;

/// A remote device that is open.
pub enum Remote {
    /// An export of an NBD server.
    Nbd(NbdDisk),
    // Other kinds stand here.
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
