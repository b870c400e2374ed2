//! Properties of a file or block device, as far as the kernel tells.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use ubcache_env::DeviceLimits;
use ubcache_format::SECTOR_BYTES;

use crate::sys;

/// Largest single transfer that makes sense for a file.
const FILE_TRANSFER_BYTES: u32 = 1 << 20;
const TRANSFER_BYTES_MIN: u32 = 64 << 10;
const TRANSFER_BYTES_MAX: u32 = 4 << 20;

/// Demands of direct I/O, in bytes; all powers of two.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Alignment {
    /// Offsets and lengths.
    pub(crate) offset: u64,
    /// Addresses of memory.
    pub(crate) memory: usize,
}

/// Geometry and alignment of an open file or block device.
pub(crate) fn survey(
    fd: &OwnedFd,
    direct: bool,
    write: bool,
) -> io::Result<(DeviceLimits, Alignment)> {
    let metadata = File::from(fd.try_clone()?).metadata()?;
    let stated = if direct { sys::direct_io_alignment(fd) } else { None };
    let is_block_device = metadata.file_type().is_block_device();
    let logical_block_bytes = if is_block_device {
        sys::block_device_logical_block(fd)?
    } else {
        stated.map_or(SECTOR_BYTES as u32, |(_, offset)| offset)
    };
    let logical_block_bytes = logical_block_bytes.max(SECTOR_BYTES as u32).next_power_of_two();
    let bytes = size_bytes(fd, is_block_device)?;
    let queue = Queue::of(&metadata);
    let limits = DeviceLimits {
        sectors: whole_sectors(bytes, logical_block_bytes),
        logical_block_bytes,
        max_transfer_bytes: if is_block_device {
            queue.max_transfer_bytes()
        } else {
            FILE_TRANSFER_BYTES
        },
        // The page cache is one, whatever the device says of its own.
        volatile_cache: !direct || !is_block_device || queue.volatile_cache(),
        discard: write
            && if is_block_device { queue.discards() } else { punches_holes(fd, metadata.len()) },
    };
    let alignment = if direct {
        let memory = stated.map_or(logical_block_bytes, |(memory, _)| memory);
        Alignment { offset: u64::from(logical_block_bytes), memory: memory as usize }
    } else {
        Alignment { offset: 1, memory: 1 }
    };
    Ok((limits, alignment))
}

/// Size in bytes at this moment.
pub(crate) fn size_bytes(fd: &OwnedFd, is_block_device: bool) -> io::Result<u64> {
    if is_block_device {
        return sys::block_device_bytes(fd);
    }
    Ok(File::from(fd.try_clone()?).metadata()?.len())
}

/// The sectors of the whole blocks in so many bytes.
pub(crate) fn whole_sectors(bytes: u64, logical_block_bytes: u32) -> u64 {
    let block = u64::from(logical_block_bytes);
    bytes / block * (block / SECTOR_BYTES)
}

/// Returns true if discarded sectors are known to read the same every time until they are written:
/// holes in files do, which a loop device makes of discards as well. Of other block devices the
/// kernel does not say.
pub(crate) fn discards_are_determined(fd: &OwnedFd) -> bool {
    let Ok(metadata) = fd.try_clone().and_then(|fd| File::from(fd).metadata()) else {
        return false;
    };
    if !metadata.file_type().is_block_device() {
        return true;
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // `loop/` of a partition is in the directory of the whole device.
    [device.join("loop/backing_file"), device.join("../loop/backing_file")]
        .iter()
        .any(|file| file.exists())
}

/// Returns true if the file system can punch holes: tried behind the end, where there is nothing.
fn punches_holes(fd: &OwnedFd, bytes: u64) -> bool {
    use std::os::fd::AsRawFd;
    let behind = bytes.next_multiple_of(4096);
    sys::fallocate(
        fd.as_raw_fd(),
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        behind,
        4096,
    ) == 0
}

/// The queue directory of a block device in sysfs.
struct Queue {
    directory: PathBuf,
}

impl Queue {
    fn of(metadata: &Metadata) -> Queue {
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let whole = device.join("queue");
        // A partition uses the queue of its disk.
        Queue { directory: if whole.exists() { whole } else { device.join("../queue") } }
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.join(name)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Unknown counts as volatile: a flush too many is only slow.
    fn volatile_cache(&self) -> bool {
        self.text("write_cache").is_none_or(|text| text != "write through")
    }

    fn discards(&self) -> bool {
        self.number("discard_granularity").unwrap_or(0) > 0
            && self.number("discard_max_bytes").unwrap_or(0) > 0
    }

    fn max_transfer_bytes(&self) -> u32 {
        let kilobytes = self.number("max_sectors_kb").unwrap_or(1024);
        let bytes = u32::try_from(kilobytes.saturating_mul(1024)).unwrap_or(u32::MAX);
        bytes.clamp(TRANSFER_BYTES_MIN, TRANSFER_BYTES_MAX)
    }
}
