//! A remote device for commands and for the checks before a start: blocking calls, over a reactor
//! of its own.

use std::path::Path;

use ubcache_env::erased::AnyDevice;
use ubcache_env::{Buf, Device, DeviceLimits, Durability, IoResult, Sector};
use ubcache_format::SECTOR_BYTES;
use ubcache_host::Host;

use super::{Purpose, Remote, is_uri};
use crate::failure::Failure;
use crate::open::io::start_io;

/// A remote device that is open. Dropping it ends its use.
#[derive(Debug)]
pub(crate) struct BlockingRemote {
    remote: Remote,
    host: Host,
}

impl BlockingRemote {
    /// Opens a device that is behind a network; `None`: the name is a path of this machine.
    pub(crate) fn open(name: &Path, purpose: Purpose) -> Result<Option<BlockingRemote>, Failure> {
        if !is_uri(name) {
            return Ok(None);
        }
        let host = start_io()?;
        let env = host.env();
        let remote = host.block_on(Box::pin(Remote::open(&env, name, purpose)))?;
        Ok(remote.map(|remote| BlockingRemote { remote, host }))
    }

    pub(crate) fn limits(&self) -> DeviceLimits {
        self.remote.device().limits()
    }

    /// Runs I/O of the device to its end.
    pub(crate) fn block_on<T>(&self, io: impl Future<Output = T>) -> T {
        self.host.block_on(io)
    }

    pub(crate) fn device(&self) -> AnyDevice {
        self.remote.device()
    }

    /// Reads from any byte on; fewer bytes than asked for only at the end.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> IoResult<usize> {
        let limits = self.limits();
        let end = at.saturating_add(into.len() as u64).min(limits.sectors * SECTOR_BYTES);
        if at >= end {
            return Ok(0);
        }
        let block = u64::from(limits.logical_block_bytes);
        let (start, stop) = (at / block * block, end.next_multiple_of(block));
        let around = Buf::zeroed((stop - start) as usize);
        let device = self.remote.device();
        let (around, read) = self.block_on(device.read(Sector(start / SECTOR_BYTES), around));
        read?;
        let (skip, count) = ((at - start) as usize, (end - at) as usize);
        into[..count].copy_from_slice(&around.as_slice()[skip..skip + count]);
        Ok(count)
    }

    /// Writes whole blocks.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> IoResult {
        let (device, from) = (self.remote.device(), Buf::from_bytes(bytes).into());
        self.block_on(device.write(Sector(at / SECTOR_BYTES), from, Durability::Volatile))
    }

    pub(crate) fn flush(&self) -> IoResult {
        self.block_on(self.remote.device().flush())
    }
}

impl Drop for BlockingRemote {
    fn drop(&mut self) {
        self.host.block_on(self.remote.close());
    }
}
