//! Regular files and block devices as [`Device`]s.
//!
//! With O_DIRECT: the engine does the caching, and a write that has completed has reached the
//! device. Through the page cache only if that is asked for, because of its failed flushes: see
//! [`PageCache`](crate::PageCache). What direct I/O asks for in alignment is met here: reads of a
//! part of a logical block read the whole block aside, and writes from memory that is not aligned
//! are copied to memory that is. A *write* of a part of a logical block is refused, because reading
//! and writing back the rest of the block would not be atomic.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, Env, IoError, IoResult, IoVec, Nanos, Place, Sector,
    SectorRange,
};
use ubcache_format::SECTOR_BYTES;

use crate::limits::{Alignment, discards_are_determined, size_bytes, whole_sectors};
use crate::op::{IoRequest, Outcome};
use crate::open::{OpenError, OpenOptions, Opened, open};
use crate::reactor::HostEnv;
use crate::sys;

/// Bytes written at once where zeroes have to be written out.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// An open file or block device.
pub struct HostFile {
    env: HostEnv,
    fd: Rc<OwnedFd>,
    path: PathBuf,
    is_block_device: bool,
    limits: DeviceLimits,
    /// The size, which may change.
    sectors: Rc<Cell<u64>>,
    alignment: Alignment,
    /// Reads may be answered by the page cache.
    reads_now: Cell<bool>,
    /// Cleared when the kernel says that it can't.
    reads_into: Cell<bool>,
    discards: Cell<bool>,
    zeroes: Cell<bool>,
    unmaps: Cell<bool>,
    finds_holes: Cell<bool>,
    writes_durably: Cell<bool>,
    allocates: Cell<bool>,
    /// Past the page cache.
    direct: bool,
    /// I/O is mostly copying, from and to memory.
    copied: bool,
    /// F7: a durable write failed, and no flush has failed for it yet.
    untold: Rc<Cell<bool>>,
    /// A flush failed that the page cache was to be written by.
    lost: Rc<Cell<bool>>,
    /// Least time of a read.
    read_time_min: Cell<Nanos>,
}

/// An open file on its way to another thread, which reads it.
#[derive(Debug)]
pub struct FileToRead {
    path: PathBuf,
    opened: Opened,
    read_time_min: Nanos,
}

impl FileToRead {
    /// The same file, for one more thread.
    pub fn try_clone(&self) -> std::io::Result<FileToRead> {
        let Opened { fd, is_block_device, direct, limits, alignment } = &self.opened;
        Ok(FileToRead {
            path: self.path.clone(),
            opened: Opened {
                fd: fd.try_clone()?,
                is_block_device: *is_block_device,
                direct: *direct,
                limits: *limits,
                alignment: *alignment,
            },
            read_time_min: self.read_time_min,
        })
    }
}

impl HostFile {
    /// Opens `path`. Blocks for as long as the kernel takes.
    pub fn open(
        env: &HostEnv,
        path: impl AsRef<Path>,
        options: OpenOptions,
    ) -> Result<HostFile, OpenError> {
        let path = path.as_ref();
        Ok(HostFile::new(env, path.to_owned(), open(path, options)?))
    }

    /// [`HostFile::open`] on a worker thread, so that a device that takes its time (a network file
    /// system, a disk that spins up) keeps nobody else from being served.
    pub async fn open_aside(
        env: &HostEnv,
        path: &Path,
        options: OpenOptions,
    ) -> Result<HostFile, OpenError> {
        let opened = env.blocking({
            let path = path.to_owned();
            move || open(&path, options)
        });
        match opened.await {
            Some(opened) => Ok(HostFile::new(env, path.to_owned(), opened?)),
            None => Err(OpenError::Os {
                path: path.to_owned(),
                doing: "opening it",
                source: std::io::Error::from_raw_os_error(libc::ESHUTDOWN),
            }),
        }
    }

    fn new(env: &HostEnv, path: PathBuf, opened: Opened) -> HostFile {
        let Opened { fd, is_block_device, direct, limits, alignment } = opened;
        // The node of a block device is in memory: that says nothing about the device.
        let copied = !direct || !is_block_device && sys::is_in_memory(&fd);
        HostFile {
            env: env.clone(),
            fd: Rc::new(fd),
            path,
            is_block_device,
            limits,
            sectors: Rc::new(Cell::new(limits.sectors)),
            alignment,
            reads_now: Cell::new(!direct),
            reads_into: Cell::new(true),
            discards: Cell::new(limits.discard),
            zeroes: Cell::new(true),
            unmaps: Cell::new(true),
            finds_holes: Cell::new(!is_block_device),
            writes_durably: Cell::new(direct),
            allocates: Cell::new(!is_block_device),
            direct,
            copied,
            untold: Rc::default(),
            lost: Rc::default(),
            read_time_min: Cell::default(),
        }
    }

    /// Another handle to the open file, which shares what is known of failed flushes (F6, F7).
    pub fn share(&self) -> HostFile {
        HostFile {
            env: self.env.clone(),
            fd: self.fd.clone(),
            path: self.path.clone(),
            is_block_device: self.is_block_device,
            limits: self.limits,
            sectors: self.sectors.clone(),
            alignment: self.alignment,
            reads_now: self.reads_now.clone(),
            reads_into: self.reads_into.clone(),
            discards: self.discards.clone(),
            zeroes: self.zeroes.clone(),
            unmaps: self.unmaps.clone(),
            finds_holes: self.finds_holes.clone(),
            writes_durably: self.writes_durably.clone(),
            allocates: self.allocates.clone(),
            direct: self.direct,
            copied: self.copied,
            untold: self.untold.clone(),
            lost: self.lost.clone(),
            read_time_min: self.read_time_min.clone(),
        }
    }

    /// A handle for another thread, which reads the file.
    pub fn to_read(&self) -> std::io::Result<FileToRead> {
        Ok(FileToRead {
            path: self.path.clone(),
            opened: Opened {
                fd: self.fd.try_clone()?,
                is_block_device: self.is_block_device,
                direct: self.direct,
                limits: DeviceLimits { sectors: self.sectors.get(), ..self.limits },
                alignment: self.alignment,
            },
            read_time_min: self.read_time_min.get(),
        })
    }

    /// A file that another thread has opened. It is for reading: what that thread knows of failed
    /// flushes is not known here.
    pub fn reading(env: &HostEnv, file: FileToRead) -> HostFile {
        let FileToRead { path, opened, read_time_min } = file;
        let file = HostFile::new(env, path, opened);
        file.slow_down_reads(read_time_min);
        file
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Returns true if it can discard, but may return something else for a discarded sector at
    /// every read (rule D2).
    pub fn discards_are_vague(&self) -> bool {
        self.discards.get() && !discards_are_determined(&self.fd)
    }

    /// Becomes true when a flush has failed of what is used through the page cache; then all writes
    /// fail.
    pub fn lost(&self) -> Rc<Cell<bool>> {
        self.lost.clone()
    }

    /// Makes the device report that it can't discard.
    pub fn never_discard(&self) {
        self.discards.set(false);
    }

    /// Lets every read take so long at least: for a demonstration with a disk that is none.
    pub fn slow_down_reads(&self, time_min: Nanos) {
        self.read_time_min.set(time_min);
    }

    /// F6: the kernel may have thrown away what it could not write, and reports that once.
    fn check_not_lost(&self) -> IoResult {
        if self.lost.get() { Err(IoError::Gone) } else { Ok(()) }
    }

    fn flush_failed(&self, error: &IoError) {
        if self.direct || self.lost.replace(true) {
            return;
        }
        tracing::error!(
            device = %self.path.display(),
            found = %error,
            "a flush failed, and the device is used through the page cache: data that the kernel \
             could not write may be lost, although it can still be read. Writes to the device are \
             refused from now on. To do: find the cause (`dmesg`, `df`), mend it, and start \
             again; a file system with O_DIRECT, or a block device, needs no page cache"
        );
    }

    fn check(&self, at: Sector, bytes: usize) -> IoResult {
        if !(bytes as u64).is_multiple_of(SECTOR_BYTES) {
            return Err(IoError::Os(libc::EINVAL));
        }
        self.check_range(SectorRange::new(at, bytes as u64 / SECTOR_BYTES))
    }

    fn check_range(&self, range: SectorRange) -> IoResult {
        let sectors = self.sectors.get();
        if range.start.0 > sectors || range.end.0 > sectors {
            return Err(IoError::OutOfRange { range, sectors });
        }
        Ok(())
    }

    /// Writes change whole logical blocks only.
    fn check_blocks(&self, at: u64, bytes: u64) -> IoResult {
        let block = u64::from(self.limits.logical_block_bytes);
        if at.is_multiple_of(block) && bytes.is_multiple_of(block) {
            Ok(())
        } else {
            Err(IoError::Os(libc::EINVAL))
        }
    }

    async fn submit(&self, request: IoRequest) -> (IoRequest, IoResult) {
        let (request, outcome) = self.env.core().submit(request).await;
        (request, result_of(outcome))
    }

    async fn read_at(&self, at: u64, mut buf: Buf) -> (Buf, IoResult) {
        let mut cached = self.reads_now.get();
        if cached && self.env.core().may_copy_now(buf.len()) {
            // Data in memory needs no waiting, which costs more than the copying.
            cached = false;
            match sys::read_now(self.fd.as_raw_fd(), buf.as_mut_slice(), at) {
                read if read as usize == buf.len() => return (buf, Ok(())),
                code if code == -libc::EOPNOTSUPP => self.reads_now.set(false),
                _ => {}
            }
        }
        let request = IoRequest::Read { fd: self.fd.clone(), at, buf, copied: self.copied, cached };
        let (IoRequest::Read { buf, .. }, result) = self.submit(request).await else {
            unreachable!("an operation gives its own request back")
        };
        (buf, result)
    }

    /// Reads the blocks around a range that is not made of whole blocks.
    async fn read_around(&self, at: u64, mut into: Buf) -> (Buf, IoResult) {
        let block = self.alignment.offset;
        let start = at / block * block;
        let end = (at + into.len() as u64).next_multiple_of(block);
        let (around, result) = self.read_at(start, Buf::zeroed((end - start) as usize)).await;
        if result.is_ok() {
            let skip = (at - start) as usize;
            let len = into.len();
            into.as_mut_slice().copy_from_slice(&around.as_slice()[skip..skip + len]);
        }
        (into, result)
    }

    async fn write_at(&self, at: u64, data: IoVec, dsync: bool) -> (IoVec, IoResult) {
        let (fd, copied) = (self.fd.clone(), self.copied);
        let request = IoRequest::Write { fd, at, data, dsync, copied };
        let (IoRequest::Write { data, .. }, result) = self.submit(request).await else {
            unreachable!("an operation gives its own request back")
        };
        (data, result)
    }

    /// Returns true if direct I/O can write from these slices.
    fn is_aligned(&self, data: &IoVec) -> bool {
        let Alignment { offset, memory } = self.alignment;
        data.parts().iter().all(|part| {
            let bytes = part.as_slice();
            bytes.as_ptr().addr().is_multiple_of(memory)
                && (bytes.len() as u64).is_multiple_of(offset)
        })
    }

    async fn fallocate(&self, mode: i32, range: SectorRange) -> IoResult {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        let (at, len) = (range.start.bytes(), range.bytes());
        self.submit(IoRequest::Fallocate { fd: self.fd.clone(), mode, at, len }).await.1
    }

    /// Runs a request of the block layer on a worker, with a descriptor of its own.
    async fn block_request(
        &self,
        request: fn(RawFd, u64, u64) -> i32,
        range: SectorRange,
    ) -> IoResult {
        let fd = self
            .fd
            .try_clone()
            .map_err(|error| IoError::Os(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let (at, len) = (range.start.bytes(), range.bytes());
        result_of(self.env.run_blocking(move || request(fd.as_raw_fd(), at, len)).await)
    }

    async fn write_out_zeroes(&self, range: SectorRange) -> IoResult {
        let zeroes = IoVec::zeroes(ZERO_CHUNK_BYTES.min(range.bytes()) as usize);
        let (mut at, end) = (range.start.bytes(), range.end.bytes());
        while at < end {
            let len = (end - at).min(ZERO_CHUNK_BYTES);
            self.write_at(at, zeroes.cut(0, len as usize), false).await.1?;
            at += len;
        }
        Ok(())
    }
}

impl Device for HostFile {
    fn limits(&self) -> DeviceLimits {
        let (sectors, discard) = (self.sectors.get(), self.discards.get());
        DeviceLimits { sectors, discard, ..self.limits }
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        if let Err(error) = self.check(at, into.len()) {
            return (into, Err(error));
        }
        let time = self.read_time_min.get();
        if time > Nanos(0) {
            Box::pin(self.env.sleep(time)).await;
        }
        let (at, len, block) = (at.bytes(), into.len() as u64, self.alignment.offset);
        if len == 0 {
            (into, Ok(()))
        } else if at.is_multiple_of(block) && len.is_multiple_of(block) {
            self.read_at(at, into).await
        } else {
            self.read_around(at, into).await
        }
    }

    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        let (at, len, block) = (range.start.bytes(), range.bytes(), self.alignment.offset);
        let whole = at.is_multiple_of(block) && len.is_multiple_of(block);
        // Threads that copy from the page cache can't copy to a place.
        if self.copied || !whole || !self.reads_into.get() || self.read_time_min.get() > Nanos(0) {
            return Err(IoError::NotSupported);
        }
        self.check_range(range)?;
        let len = u32::try_from(len).map_err(|_| IoError::NotSupported)?;
        let request = IoRequest::ReadInto { fd: self.fd.clone(), at, len, place };
        let result = self.submit(request).await.1;
        if result == Err(IoError::NotSupported) {
            self.reads_into.set(false);
        }
        result
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.check_not_lost()?;
        self.check(at, from.len())?;
        let at = at.bytes();
        self.check_blocks(at, from.len() as u64)?;
        if from.is_empty() {
            return Ok(());
        }
        let data = if self.is_aligned(&from) { from } else { from.to_buf().into() };
        let durable = durability == Durability::Fua;
        let dsync = durable && self.writes_durably.get();
        let (data, mut result) = self.write_at(at, data, dsync).await;
        if dsync && result == Err(IoError::NotSupported) {
            self.writes_durably.set(false);
            result = self.write_at(at, data, false).await.1;
        } else if dsync && result.as_ref().is_err_and(|error| !error.is_no_space()) {
            // F7: on many devices it is a write and a flush, and the error does not name the part,
            // so the next flush fails.
            self.untold.set(true);
        }
        result?;
        if durable && !self.writes_durably.get() { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> IoResult {
        self.check_not_lost()?;
        let result = self.submit(IoRequest::Sync { fd: self.fd.clone() }).await.1;
        // F7: for the durable write that failed.
        let untold = self.untold.replace(false);
        match result {
            Ok(()) if untold => Err(IoError::Os(libc::EIO)),
            Ok(()) => Ok(()),
            Err(error) => {
                self.flush_failed(&error);
                Err(error)
            }
        }
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        self.check_not_lost()?;
        self.check_range(range)?;
        if !self.discards.get() {
            return Err(IoError::NotSupported);
        }
        // Parts of blocks at the ends stay.
        let block = u64::from(self.limits.logical_block_bytes) / SECTOR_BYTES;
        let whole = SectorRange::from_bounds(
            Sector(range.start.0.next_multiple_of(block)),
            Sector(range.end.0 / block * block),
        );
        if whole.is_empty() {
            return Ok(());
        }
        let result = if self.is_block_device {
            self.block_request(sys::block_device_discard, whole).await
        } else {
            self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, whole).await
        };
        if result == Err(IoError::NotSupported) {
            self.discards.set(false);
        }
        result
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.check_not_lost()?;
        self.check_range(range)?;
        self.check_blocks(range.start.bytes(), range.bytes())?;
        if range.is_empty() {
            return Ok(());
        }
        if self.zeroes.get() {
            let result = if self.is_block_device {
                self.block_request(sys::block_device_zero, range).await
            } else {
                self.fallocate(libc::FALLOC_FL_ZERO_RANGE, range).await
            };
            if result != Err(IoError::NotSupported) {
                return result;
            }
            self.zeroes.set(false);
        }
        self.write_out_zeroes(range).await
    }

    async fn write_holes(&self, range: SectorRange) -> IoResult {
        self.check_not_lost()?;
        self.check_range(range)?;
        self.check_blocks(range.start.bytes(), range.bytes())?;
        if range.is_empty() || !self.unmaps.get() {
            return self.write_zeroes(range).await;
        }
        // Of a block device as well, this is a write of zeroes, unlike a discard.
        match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, range).await {
            Err(IoError::NotSupported) => {
                self.unmaps.set(false);
                self.write_zeroes(range).await
            }
            result => result,
        }
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        self.check_range(range)?;
        if !self.finds_holes.get() {
            return Ok(vec![(range, false)]);
        }
        // Seeking may read from the file system's own disk.
        let fd = self
            .fd
            .try_clone()
            .map_err(|error| IoError::Os(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let found = Arc::new(Mutex::new(Vec::new()));
        let parts = found.clone();
        let seek = move || match holes_of(&fd, range, most) {
            Ok(holes) => {
                *parts.lock().unwrap_or_else(PoisonError::into_inner) = holes;
                0
            }
            Err(errno) => -errno,
        };
        match result_of(self.env.run_blocking(seek).await) {
            Ok(()) => {
                Ok(std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner)))
            }
            Err(IoError::Gone) => Err(IoError::Gone),
            // A file system that can't seek that way.
            Err(_) => {
                self.finds_holes.set(false);
                Ok(vec![(range, false)])
            }
        }
    }

    async fn allocate(&self, range: SectorRange) -> IoResult {
        self.check_range(range)?;
        if range.is_empty() || !self.allocates.get() {
            return Ok(());
        }
        match self.fallocate(0, range).await {
            Err(IoError::NotSupported) => {
                self.allocates.set(false);
                Ok(())
            }
            result => result,
        }
    }

    async fn refresh_size(&self) -> IoResult<u64> {
        let bytes = size_bytes(&self.fd, self.is_block_device);
        let bytes =
            bytes.map_err(|error| IoError::Os(error.raw_os_error().unwrap_or(libc::EIO)))?;
        self.sectors.set(whole_sectors(bytes, self.limits.logical_block_bytes));
        Ok(self.sectors.get())
    }
}

impl std::fmt::Debug for HostFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostFile")
            .field("path", &self.path)
            .field("limits", &self.limits)
            .field("alignment", &self.alignment)
            .finish_non_exhaustive()
    }
}

/// Parts of a file that are holes (true) or data, by whole sectors: a sector with data is data.
fn holes_of(
    fd: &OwnedFd,
    range: SectorRange,
    most: usize,
) -> Result<Vec<(SectorRange, bool)>, i32> {
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end && parts.len() < most {
        let data = match sys::seek(fd, at.bytes(), libc::SEEK_DATA) {
            Ok(data) => Sector(data / SECTOR_BYTES).min(range.end),
            // There is none behind it.
            Err(libc::ENXIO) => range.end,
            Err(errno) => return Err(errno),
        };
        if data > at {
            parts.push((SectorRange::from_bounds(at, data), true));
            at = data;
            continue;
        }
        let hole = sys::seek(fd, at.bytes(), libc::SEEK_HOLE)?;
        let hole = Sector(hole.div_ceil(SECTOR_BYTES)).min(range.end);
        // Another one may have cut the file short meanwhile.
        let end = if hole > at { hole } else { range.end };
        parts.push((SectorRange::from_bounds(at, end), false));
        at = end;
    }
    Ok(parts)
}

fn result_of(outcome: Outcome) -> IoResult {
    match outcome {
        Ok(_) => Ok(()),
        Err(libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN) => Err(IoError::Gone),
        Err(libc::EOPNOTSUPP) => Err(IoError::NotSupported),
        Err(errno) => Err(IoError::Os(errno)),
    }
}
