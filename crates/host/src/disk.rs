//! The devices of this world: local files, and others that are reached over a network.

use ubcache_env::erased::AnyDevice;
use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Durability, IoResult, IoVec, Joined, Place, Sector,
    SectorRange, Witness,
};

use crate::file::HostFile;

/// A device. For a file, the kind costs a comparison: hits on the cache device go this way.
#[derive(Debug)]
pub enum HostDisk {
    /// A file or block device of this machine.
    File(HostFile),
    /// Any other.
    Other(AnyDevice),
}

impl HostDisk {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&HostFile> {
        match self {
            HostDisk::File(file) => Some(file),
            HostDisk::Other(_) => None,
        }
    }

    /// Another handle to the open device.
    pub fn share(&self) -> HostDisk {
        match self {
            HostDisk::File(file) => HostDisk::File(file.share()),
            HostDisk::Other(other) => HostDisk::Other(other.clone()),
        }
    }
}

impl From<HostFile> for HostDisk {
    fn from(file: HostFile) -> HostDisk {
        HostDisk::File(file)
    }
}

impl From<HostFile> for Joined<HostDisk> {
    fn from(file: HostFile) -> Joined<HostDisk> {
        HostDisk::from(file).into()
    }
}

impl From<AnyDevice> for HostDisk {
    fn from(other: AnyDevice) -> HostDisk {
        HostDisk::Other(other)
    }
}

impl Device for HostDisk {
    fn limits(&self) -> DeviceLimits {
        match self {
            HostDisk::File(file) => file.limits(),
            HostDisk::Other(other) => other.limits(),
        }
    }
    fn shape(&self) -> DeviceShape {
        match self {
            HostDisk::File(file) => file.shape(),
            HostDisk::Other(other) => other.shape(),
        }
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        match self {
            HostDisk::File(file) => file.read(at, into).await,
            HostDisk::Other(other) => other.read(at, into).await,
        }
    }
    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        match self {
            HostDisk::File(file) => file.read_into(range, place).await,
            HostDisk::Other(other) => other.read_into(range, place).await,
        }
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        match self {
            HostDisk::File(file) => file.write(at, from, durability).await,
            HostDisk::Other(other) => other.write(at, from, durability).await,
        }
    }
    async fn flush(&self) -> IoResult {
        match self {
            HostDisk::File(file) => file.flush().await,
            HostDisk::Other(other) => other.flush().await,
        }
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        match self {
            HostDisk::File(file) => file.discard(range).await,
            HostDisk::Other(other) => other.discard(range).await,
        }
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        match self {
            HostDisk::File(file) => file.write_zeroes(range).await,
            HostDisk::Other(other) => other.write_zeroes(range).await,
        }
    }
    async fn write_holes(&self, range: SectorRange) -> IoResult {
        match self {
            HostDisk::File(file) => file.write_holes(range).await,
            HostDisk::Other(other) => other.write_holes(range).await,
        }
    }
    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        match self {
            HostDisk::File(file) => file.holes(range, most).await,
            HostDisk::Other(other) => other.holes(range, most).await,
        }
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        match self {
            HostDisk::File(file) => file.allocate(range).await,
            HostDisk::Other(other) => other.allocate(range).await,
        }
    }
    async fn refresh_size(&self) -> IoResult<u64> {
        match self {
            HostDisk::File(file) => file.refresh_size().await,
            HostDisk::Other(other) => other.refresh_size().await,
        }
    }
    async fn witness(&self) -> IoResult<Witness> {
        match self {
            HostDisk::File(file) => file.witness().await,
            HostDisk::Other(other) => other.witness().await,
        }
    }
    async fn seal(&self) -> IoResult {
        match self {
            HostDisk::File(file) => file.seal().await,
            HostDisk::Other(other) => other.seal().await,
        }
    }
}
