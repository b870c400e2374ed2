//! Devices and files before they are served: opening them alone, their size, their superblock.
//!
//! Blocking calls only: this is for commands and for the checks before the reactor starts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ubcache_format::SECTOR_BYTES;
use ubcache_host::{OpenError, PlainFile};

use crate::backing::Purpose;
use crate::backing::blocking::BlockingRemote;
use crate::failure::Failure;
use crate::size::show_size;

/// Offset of the superblock, in bytes.
pub const SUPERBLOCK_AT: u64 = 4096;
/// Bytes in a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// Intended use of a target.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Looking only; others may use it at the same time.
    Look,
    /// Changing it; no other program may have it open.
    Change,
}

/// An open device or file.
#[derive(Debug)]
pub struct Target {
    /// The path it was opened by.
    pub path: PathBuf,
    /// True for a block device.
    pub is_block_device: bool,
    /// Size in bytes.
    pub bytes: u64,
    /// Smallest unit of I/O in bytes.
    pub logical_block_bytes: u32,
    opened: Opened,
}

/// The way to the device.
#[derive(Debug)]
enum Opened {
    Here(PlainFile),
    Remote(BlockingRemote),
}

impl Target {
    /// Opens a device or file.
    pub fn open(path: &Path, access: Access) -> Result<Target, Failure> {
        let change = access == Access::Change;
        let purpose = if change { Purpose::Change } else { Purpose::Look };
        if let Some(remote) = BlockingRemote::open(path, purpose)? {
            let limits = remote.limits();
            return Ok(Target {
                path: path.to_owned(),
                is_block_device: false,
                bytes: limits.sectors * SECTOR_BYTES,
                logical_block_bytes: limits.logical_block_bytes,
                opened: Opened::Remote(remote),
            });
        }
        let plain =
            PlainFile::open(path, change).map_err(|error| host_open_failure(path, error))?;
        let bytes = size_of(&plain.file).map_err(|error| {
            Failure::could_not_run(path, format_args!("can't find out its size: {error}"))
        })?;
        Ok(Target {
            path: path.to_owned(),
            is_block_device: plain.is_block_device,
            bytes,
            logical_block_bytes: plain.limits.logical_block_bytes,
            opened: Opened::Here(plain),
        })
    }

    /// Drops the superblock from the page cache: the kernel's bcache writes it past that.
    pub fn forget_superblock(&self) {
        if let Opened::Here(plain) = &self.opened {
            plain.forget(SUPERBLOCK_AT, SUPERBLOCK_BYTES as u64);
        }
    }

    /// Kind of the device in words.
    pub fn kind(&self) -> &'static str {
        match &self.opened {
            Opened::Remote(_) => "remote",
            Opened::Here(_) if self.is_block_device => "block device",
            Opened::Here(_) => "file",
        }
    }

    /// The device, if it is behind a network.
    pub(crate) fn remote(&self) -> Option<&BlockingRemote> {
        match &self.opened {
            Opened::Remote(remote) => Some(remote),
            Opened::Here(_) => None,
        }
    }

    /// Size in whole sectors.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR_BYTES
    }

    /// Reads up to `into.len()` bytes; fewer only at the end of the device.
    pub fn read_some(&self, at: u64, into: &mut [u8]) -> Result<usize, Failure> {
        let file = match &self.opened {
            Opened::Here(plain) => &plain.file,
            Opened::Remote(remote) => {
                return remote.read(at, into).map_err(|error| {
                    Failure::refused(&self.path, format_args!("can't read byte {at}: {error}"))
                });
            }
        };
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let at = at + done as u64;
                    return Err(Failure::refused(
                        &self.path,
                        format_args!("can't read byte {at}: {error}"),
                    ));
                }
            }
        }
        Ok(done)
    }

    /// The 4096 bytes where a superblock would be.
    pub fn read_superblock_bytes(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let count = self.read_some(SUPERBLOCK_AT, &mut bytes)?;
        if count < SUPERBLOCK_BYTES {
            return Err(Failure::refused(&self.path, "too short for a bcache superblock")
                .found(format_args!("{} bytes", self.bytes))
                .expected(format_args!(
                    "at least {} bytes",
                    SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64
                ))
                .advice("check the path, and that the copy was not truncated"));
        }
        Ok(bytes)
    }

    /// Writes all of `bytes`.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::refused(&self.path, format_args!("can't write byte {at}: {error}"))
        };
        match &self.opened {
            Opened::Here(plain) => {
                plain.file.write_all_at(bytes, at).map_err(|error| failed(&error))
            }
            Opened::Remote(remote) => remote.write(at, bytes).map_err(|error| failed(&error)),
        }
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(&self, mut at: u64, mut bytes: u64) -> Result<(), Failure> {
        let zeroes = vec![0; 1 << 20];
        while bytes > 0 {
            let step = bytes.min(zeroes.len() as u64);
            self.write(at, &zeroes[..step as usize])?;
            at += step;
            bytes -= step;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let what = format_args!("can't make the writes durable: {error}");
            Failure::refused(&self.path, what)
        };
        match &self.opened {
            Opened::Here(plain) => plain.file.sync_all().map_err(|error| failed(&error)),
            Opened::Remote(remote) => remote.flush().map_err(|error| failed(&error)),
        }
    }
}

/// True if there is something of that name, beside an empty file, which is what a command leaves
/// that is killed when it has just created one.
pub fn is_there(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|it| !it.is_file() || it.len() > 0)
}

/// Makes a file of `bytes` bytes, sparse or with room for all of them. A file that is there already
/// and not empty is not touched: `Ok(false)`.
pub fn create_file(path: &Path, bytes: u64, sparse: bool) -> Result<bool, Failure> {
    create_marked(path, &[], bytes, sparse)
}

/// The same, of a file that begins with `mark`, and is otherwise zero: it has that before it has
/// its size, so that what a killed command leaves is empty or has the mark.
pub fn create_marked(path: &Path, mark: &[u8], bytes: u64, sparse: bool) -> Result<bool, Failure> {
    if is_there(path) {
        return Ok(false);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(!path.exists());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => {
            return Err(Failure::could_not_run(path, format_args!("can't create it: {error}")));
        }
    };
    let marked = match mark {
        [] => Ok(()),
        _ => file.write_all_at(mark, 0).and_then(|()| file.sync_all()),
    };
    let sized = marked.and_then(|()| file.set_len(bytes)).map_err(|error| {
        Failure::refused(path, format_args!("can't give it a size of {bytes} bytes: {error}"))
    });
    let made = sized.and_then(|()| if sparse { Ok(()) } else { allocate(path, &file, bytes) });
    let made = made.and_then(|()| {
        file.sync_all()
            .map_err(|error| Failure::refused(path, format_args!("can't make it durable: {error}")))
    });
    if let Err(failure) = made {
        // Remove the useless new file, and report the first failure.
        let _ = std::fs::remove_file(path);
        return Err(failure);
    }
    Ok(true)
}

/// Gives a new file its room. Where the file system can't, it stays sparse; `serve` reports that.
fn allocate(path: &Path, file: &File, bytes: u64) -> Result<(), Failure> {
    let error = match ubcache_host::memory::allocate(file, bytes) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let free = ubcache_host::memory::free_bytes(file).map_or("not known".to_owned(), |bytes| {
        format!("{} are free on its file system", show_size(bytes))
    });
    Err(Failure::refused(path, format_args!("no room for it: {error}"))
        .found(free)
        .expected(show_size(bytes))
        .advice(
            "free space, or choose a smaller size; --sparse makes a file that grows as it is \
             filled",
        ))
}

/// Number of bytes of a file that have no room yet, if it is sparse, and number of free bytes on
/// its file system.
pub fn missing_room(path: &Path) -> Option<(u64, u64)> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok().filter(|metadata| metadata.file_type().is_file())?;
    let missing = metadata.len().saturating_sub(metadata.blocks() * SECTOR_BYTES);
    (missing > 0).then_some((missing, ubcache_host::memory::free_bytes(&file)?))
}

/// The failure for a device that is in use.
fn in_use(path: &Path) -> Failure {
    let found = match (ubcache_host::loop_in_use(path), ubcache_host::under_loop_in_use(path)) {
        (Some(device), _) => format!("{} is over it, and in use", device.display()),
        (None, Some(under)) => format!("a loop device, and {} is in use", under.display()),
        (None, None) => "another process or the kernel has it open for itself".to_owned(),
    };
    Failure::refused(path, "in use")
        .found(found)
        .expected("a device that is not in use")
        .advice("stop its user: `ubcache stop`, umount, or `echo 1 > /sys/block/…/bcache/stop`")
}

/// The failure for a device that the host can't open.
pub fn host_open_failure(path: &Path, error: OpenError) -> Failure {
    match error {
        OpenError::InUse { .. } => in_use(path),
        OpenError::NotFound { .. } => Failure::could_not_run(path, "can't open it: not found")
            .advice("check the path; `ubcache make --size SIZE` creates a file"),
        OpenError::Permission { mode, .. } => Failure::could_not_run(
            path,
            format_args!("can't open it for {mode}: permission denied"),
        )
        .advice("run as a user who may do this, or change owner or mode of the file"),
        OpenError::NoDirectIo { .. } => Failure::refused(path, "its file system has no direct I/O")
            .found("no direct I/O (O_DIRECT)")
            .expected(
                "a file system with direct I/O, as ext4, XFS and btrfs have, or a block \
                device",
            )
            .advice(
                "move it to one. Or add --page-cache: then a failed flush of this device ends all \
             writes to it until the next start, because the page cache drops data that it could \
             not write",
            ),
        OpenError::ReadOnly { .. } => Failure::could_not_run(path, "the device is read-only")
            .expected("a device that can be written")
            .advice("is it write-protected? `blockdev --setrw` changes that; or work on a copy"),
        OpenError::WrongKind { found, .. } => Failure::could_not_run(path, "unusable as a device")
            .found(found)
            .expected("a regular file or a block device"),
        OpenError::Os { doing, source, .. } => {
            Failure::could_not_run(path, format_args!("{doing} failed: {source}"))
        }
    }
}

fn size_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}
