//! The world the engine runs in: the host's, with files that can be slowed down.
//!
//! The delay is for `ubcache demo`, whose "disk" is a file on the same fast device as its "cache".

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use ubcache_env::{
    Buf, BufPool, Device, DeviceLimits, Durability, Env, IoResult, IoVec, Nanos, Priority, Sector,
    SectorRange, Task,
};
use ubcache_host::{
    HostEnv, HostFile, HostListener, OpenError, OpenOptions, PageCache, SocketError,
};

use crate::config::NbdAddress;
use crate::failure::Failure;
use crate::open::target::host_open_failure;

/// Time limit for waiting for a device or socket that is still in use by a process that has just
/// been killed.
const DEVICE_BUSY_TIMEOUT: Nanos = Nanos::from_secs(2);

/// The host's environment with [`ServedFile`] as its devices.
#[derive(Clone, Debug)]
pub struct World {
    host: HostEnv,
}

impl World {
    /// The world of a host.
    pub fn new(host: HostEnv) -> World {
        World { host }
    }

    /// Opens a device exclusively. Every read takes at least `delay`.
    ///
    /// The kernel gives back what a killed process had open only when its I/O in flight is done: a
    /// device in use gets a moment to become free.
    pub async fn open(
        &self,
        path: &Path,
        page_cache: PageCache,
        delay: Nanos,
    ) -> Result<ServedFile, Failure> {
        let options = OpenOptions { page_cache, write: true, exclusive: true };
        let end = self.now().after(DEVICE_BUSY_TIMEOUT);
        let mut opened = HostFile::open(&self.host, path, options);
        while matches!(opened, Err(OpenError::InUse { .. })) && self.now() < end {
            self.sleep(Nanos::from_millis(20)).await;
            opened = HostFile::open(&self.host, path, options);
        }
        let file = opened.map_err(|error| host_open_failure(path, error))?;
        Ok(ServedFile { file, host: self.host.clone(), delay })
    }
}

impl World {
    /// Listens on a unix socket, or on a TCP port. A socket of a process that was killed gets a
    /// moment to go away.
    pub async fn listen(&self, address: &NbdAddress) -> Result<HostListener, SocketError> {
        let end = self.now().after(DEVICE_BUSY_TIMEOUT);
        loop {
            let bound = match address {
                NbdAddress::Unix(path) => HostListener::bind_unix(&self.host, path),
                NbdAddress::Tcp(address) => HostListener::bind_tcp(&self.host, *address),
            };
            match bound {
                Err(SocketError::InUse { .. }) if self.now() < end => {
                    self.sleep(Nanos::from_millis(20)).await
                }
                bound => return bound,
            }
        }
    }
}

impl Env for World {
    type Device = ServedFile;

    fn now(&self) -> Nanos {
        self.host.now()
    }
    fn unix_seconds(&self) -> u64 {
        self.host.unix_seconds()
    }
    async fn sleep_until(&self, at: Nanos) {
        self.host.sleep_until(at).await;
    }
    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        self.host.spawn(priority, task)
    }
    fn buffers(&self) -> &BufPool {
        self.host.buffers()
    }
    fn random(&self) -> u64 {
        self.host.random()
    }
    async fn yield_now(&self) {
        self.host.yield_now().await;
    }
}

/// A file or block device whose reads can be delayed.
#[derive(Debug)]
pub struct ServedFile {
    file: HostFile,
    host: HostEnv,
    delay: Nanos,
}

impl ServedFile {
    /// See [`HostFile::lost`].
    pub fn lost(&self) -> Rc<Cell<bool>> {
        self.file.lost()
    }

    /// D2: a device that may read differently at every read where it discarded gets no discards.
    /// True: it would.
    pub fn refuse_vague_discards(&self) -> bool {
        let vague = self.file.discards_are_vague();
        if vague {
            self.file.never_discard();
        }
        vague
    }
}

impl Device for ServedFile {
    fn limits(&self) -> DeviceLimits {
        self.file.limits()
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        if self.delay == Nanos(0) {
            return self.file.read(at, into).await;
        }
        let started = self.host.now();
        let done = self.file.read(at, into).await;
        self.host.sleep_until(started.after(self.delay)).await;
        done
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.file.write(at, from, durability).await
    }
    async fn flush(&self) -> IoResult {
        self.file.flush().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        self.file.discard(range).await
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.file.write_zeroes(range).await
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        self.file.allocate(range).await
    }
}
