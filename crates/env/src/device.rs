//! Block devices: the requests of the engine, and their results.

use std::rc::Rc;

use ubcache_format::{Sector, SectorRange};

use crate::buf::{Buf, IoVec};

/// Size and capabilities of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DeviceLimits {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes; a power of two, at least 512.
    pub logical_block_bytes: u32,
    /// Largest sensible single transfer in bytes.
    pub max_transfer_bytes: u32,
    /// True if a power failure may lose completed writes until the next flush.
    pub volatile_cache: bool,
    /// True if `discard` has an effect.
    pub discard: bool,
}

/// Cost of a request to a device, beside that of its bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Distance {
    /// A device of this machine: many small requests cost hardly more than a large one.
    #[default]
    Local,
    /// Behind a network: every request may take a round trip of milliseconds.
    Remote,
}

/// Requests that suit a device. What it may lose is in [`DeviceLimits::volatile_cache`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DeviceShape {
    /// Size in bytes of the requests that the device is best at, which begin at multiples of it: a
    /// power of two.
    pub optimal_bytes: u32,
    /// Cost of a request.
    pub distance: Distance,
}

impl Default for DeviceShape {
    fn default() -> DeviceShape {
        DeviceShape { optimal_bytes: 1 << 20, distance: Distance::Local }
    }
}

/// Memory of somebody else, to which a device can read and this process can't: the world knows it
/// by a number. Somebody else may look at it, and change it, at any moment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The number.
    pub number: u32,
    /// The first byte.
    pub at: u32,
}

impl Place {
    /// The place so many bytes behind this one.
    pub fn behind(self, bytes: u64) -> Place {
        Place { at: self.at + bytes as u32, ..self }
    }
}

/// Durability of a write when it completes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Durability {
    /// A later flush makes it durable.
    Volatile,
    /// Durable: on stable storage when the write completes. No effect on earlier writes.
    Fua,
}

/// Reasons for the failure of an I/O.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IoError {
    /// The operating system or the device reported an error (an errno value).
    #[error("I/O error: {}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// The range is not within the device.
    #[error("range {range} is outside the device of {sectors} sectors")]
    OutOfRange {
        /// The requested range.
        range: SectorRange,
        /// The size of the device.
        sectors: u64,
    },
    /// The device is gone for good.
    #[error("the device is gone")]
    Gone,
    /// No memory for the data. No request reached the device; a later one may succeed.
    #[error("out of memory for the data of an I/O")]
    NoMemory,
    /// The device has no such operation.
    #[error("operation not supported by the device")]
    NotSupported,
    /// The file that stands in for the device (a pack) does not contain this part.
    #[error("not in the pack, which contains no user data")]
    Absent,
}

impl IoError {
    /// Returns true if there is no space for the write (ENOSPC, EDQUOT). The device itself works.
    pub fn is_no_space(&self) -> bool {
        matches!(self, IoError::Os(28 | 122))
    }

    /// The corresponding errno.
    pub fn errno(&self) -> i32 {
        match self {
            IoError::Os(errno) => *errno,
            IoError::OutOfRange { .. } => 22,
            IoError::Gone => 19,
            IoError::NoMemory => 12,
            IoError::NotSupported => 95,
            IoError::Absent => 61,
        }
    }
}

/// Knowledge of a device of writes to it by others since it was used last (rule A9).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Witness {
    /// Its superblock is on it, and says so.
    #[default]
    Unneeded,
    /// It is as the last run left it, and that run ended with a clean stop or wrote nothing.
    Same,
    /// It was being written when the last run ended. What that run had not written is as it was.
    Unknown,
    /// Somebody else wrote to it, or it is another one.
    Different {
        /// The first thing that differs, as it is.
        found: String,
        /// The same as it was.
        expected: String,
    },
    /// It has another size, in sectors, and is as it was in all other respects.
    Resized {
        /// The size that it has.
        found: u64,
        /// The size that it had.
        expected: u64,
    },
}

/// The outcome of an I/O.
pub type IoResult<T = ()> = Result<T, IoError>;

/// A block device. Short transfers, `EINTR` and `EAGAIN` are its own business.
///
/// I/O owns its memory until it completes: dropping a future of this trait never frees memory
/// that the device may still use, and the I/O may still take effect.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Device: 'static {
    /// Size, block, abilities.
    fn limits(&self) -> DeviceLimits;

    /// Requests that suit it.
    fn shape(&self) -> DeviceShape {
        DeviceShape::default()
    }

    /// Reads `into.len()` bytes (whole sectors) from `at`. The buffer comes back also on error,
    /// then with unspecified content.
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult);

    /// Reads the range to a place, without memory of this process. An error says nothing about the
    /// device: the place may be what the device can't read to. It has unspecified content then, and
    /// [`Device::read`] gives the data, or tells what is wrong.
    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        let _ = (range, place);
        Err(IoError::NotSupported)
    }

    /// Writes all of `from` (whole sectors) at `at`.
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult;

    /// Makes every write that completed before this call durable.
    async fn flush(&self) -> IoResult;

    /// Discards the range. Its content is unspecified afterwards.
    async fn discard(&self, range: SectorRange) -> IoResult;

    /// Makes the range read as zeroes, as durable as a [`Durability::Volatile`] write.
    async fn write_zeroes(&self, range: SectorRange) -> IoResult;

    /// Makes the range read as zeroes like [`Device::write_zeroes`], and gives its room back where
    /// that can be done.
    async fn write_holes(&self, range: SectorRange) -> IoResult {
        self.write_zeroes(range).await
    }

    /// The parts of the range from its start, no more than `most`, that take no space and read as
    /// zeroes (true), or may take some; may stop early. Devices that can't say at little cost name
    /// no hole.
    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        let _ = most;
        Ok(vec![(range, false)])
    }

    /// Allocates room below the device for writes to the range, where it may be missing: in a
    /// sparse file. The content stays. Devices that can't say do nothing.
    async fn allocate(&self, range: SectorRange) -> IoResult {
        let _ = range;
        Ok(())
    }

    /// Looks at the size again, in sectors: if it is another one, the device has that from now on.
    async fn refresh_size(&self) -> IoResult<u64> {
        Ok(self.limits().sectors)
    }

    /// Compares the content with what [`Device::seal`] left.
    async fn witness(&self) -> IoResult<Witness> {
        Ok(Witness::Unneeded)
    }

    /// Ends a run in order: nothing is written any more, and everything is durable. A device whose
    /// superblock is elsewhere notes there what it contains.
    async fn seal(&self) -> IoResult {
        Ok(())
    }
}

impl<D: Device> Device for Rc<D> {
    fn limits(&self) -> DeviceLimits {
        (**self).limits()
    }
    fn shape(&self) -> DeviceShape {
        (**self).shape()
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        (**self).read(at, into).await
    }
    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        (**self).read_into(range, place).await
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        (**self).write(at, from, durability).await
    }
    async fn flush(&self) -> IoResult {
        (**self).flush().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        (**self).discard(range).await
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        (**self).write_zeroes(range).await
    }
    async fn write_holes(&self, range: SectorRange) -> IoResult {
        (**self).write_holes(range).await
    }
    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        (**self).holes(range, most).await
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        (**self).allocate(range).await
    }
    async fn refresh_size(&self) -> IoResult<u64> {
        (**self).refresh_size().await
    }
    async fn witness(&self) -> IoResult<Witness> {
        (**self).witness().await
    }
    async fn seal(&self) -> IoResult {
        (**self).seal().await
    }
}
