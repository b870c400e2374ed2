//! The world of a daemon: the host's.

use std::path::Path;

use ubcache_env::{Env, Joined, Nanos};
use ubcache_host::{
    HostDisk, HostEnv, HostFile, HostListener, OpenError, OpenOptions, PageCache, SocketAccess,
    SocketError,
};

use crate::config::NbdAddress;
use crate::failure::Failure;
use crate::open::target::host_open_failure;

/// Time limit for waiting for a device or socket that is still in use by a process that has just
/// been killed.
pub(crate) const DEVICE_BUSY_TIMEOUT: Nanos = Nanos::from_secs(2);

/// An environment for the engine over the files of a host.
pub trait World: Env {
    /// The host.
    fn host(&self) -> &HostEnv;
    /// The cache device over its open file.
    fn cache(&self, file: HostFile) -> Self::Device;
    /// A backing device over its open disk, and its header if it has one.
    fn backing(&self, disk: Joined<HostDisk>) -> Self::Device;
}

/// The world of production: files as they are.
impl World for HostEnv {
    fn host(&self) -> &HostEnv {
        self
    }
    fn cache(&self, file: HostFile) -> Joined<HostDisk> {
        file.into()
    }
    fn backing(&self, disk: Joined<HostDisk>) -> Joined<HostDisk> {
        disk
    }
}

/// Opens a device exclusively.
///
/// The kernel gives back what a killed process had open only when its I/O in flight is done: a
/// device in use gets a moment to become free.
pub(crate) async fn open(
    host: &HostEnv,
    path: &Path,
    page_cache: PageCache,
) -> Result<HostFile, Failure> {
    let options = OpenOptions { page_cache, write: true, exclusive: true };
    let end = host.now().after(DEVICE_BUSY_TIMEOUT);
    let mut opened = HostFile::open_aside(host, path, options).await;
    while matches!(opened, Err(OpenError::InUse { .. })) && host.now() < end {
        host.sleep(Nanos::from_millis(20)).await;
        opened = HostFile::open_aside(host, path, options).await;
    }
    opened.map_err(|error| host_open_failure(path, error))
}

/// D2: a device that may read differently at every read where it discarded gets no discards.
/// True: it would.
pub(crate) fn refuse_vague_discards(file: &HostFile) -> bool {
    let vague = file.discards_are_vague();
    if vague {
        file.never_discard();
    }
    vague
}

/// Listens on a unix socket, or on a TCP port. A socket of a process that was killed gets a moment
/// to go away.
pub(crate) async fn listen(
    host: &HostEnv,
    address: &NbdAddress,
    access: SocketAccess,
) -> Result<HostListener, SocketError> {
    let end = host.now().after(DEVICE_BUSY_TIMEOUT);
    loop {
        let bound = match address {
            NbdAddress::Unix(path) => HostListener::bind_unix_for(host, path, access),
            NbdAddress::Tcp(address) | NbdAddress::Tls(address) => {
                HostListener::bind_tcp(host, *address)
            }
        };
        match bound {
            Err(SocketError::InUse { .. }) if host.now() < end => {
                host.sleep(Nanos::from_millis(20)).await
            }
            bound => return bound,
        }
    }
}
