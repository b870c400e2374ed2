//! Backing devices that are not disks of the machine, and what is behind them.

use std::rc::Rc;

use crate::disk::SimDisk;
use crate::executor::SimEnv;
use crate::remote::RemoteServer;
use crate::stored::VolumeStore;

/// A thing on the network that has a backing device.
pub enum Far {
    /// An NBD server.
    Server(Rc<RemoteServer>),
    /// An object store.
    Store(Rc<VolumeStore>),
}

impl Far {
    /// A client of it.
    ///
    /// # Errors
    /// It can't be reached, or has something else.
    pub async fn open(&self, env: &SimEnv) -> Result<SimDisk, String> {
        match self {
            Far::Server(server) => server.open(env).await,
            Far::Store(store) => store.open(env).await,
        }
    }

    /// Its client is gone from one moment to the next; so is the server.
    pub fn end(&self) {
        match self {
            Far::Server(server) => server.end(),
            Far::Store(store) => store.end(),
        }
    }

    /// Lets trouble begin from now on, or not.
    pub fn set_calm(&self, calm: bool) {
        match self {
            Far::Server(server) => server.set_calm(calm),
            Far::Store(store) => store.set_calm(calm),
        }
    }

    /// The server has lost answered writes of which the client has copies.
    pub fn is_behind(&self) -> bool {
        matches!(self, Far::Server(server) if server.is_behind())
    }

    /// Writes that were not flushed are in the memory of the client, which ends with its process.
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Far::Store(store) if store.is_used())
    }
}
