//! A backing device whose superblock is not on its disk: a header and a disk, joined to one device.
//!
//! ```text
//!   sector 0        8             16
//!          │ records │ superblock │ the disk, from its sector 0 on
//!          └───── header ────────┘
//! ```
//!
//! The driver gets the same from a dm-linear table. The header is a file of 8 KiB, with a copy on
//! the cache device (docs/reference/format.md §16).
//!
//! No other program leaves a note on such a disk when it writes to it, so the header has a witness
//! of the disk's content (rule A9): [`Device::seal`] takes it when nothing is written any more,
//! the first write of a run ends it durably, and [`Device::witness`] compares.
//!
//! | module | holds |
//! |---|---|
//! | here | [`Joined`]: requests, cut at the end of the header |
//! | `header` | the header: records and superblock, their copy |
//! | `witness` | hashes of a disk, taken and compared |
//! | `copies` | the places of copies on a cache device |

mod copies;
mod header;
mod witness;

use std::rc::Rc;

use ubcache_format::{HEADER_SECTORS, SECTOR_BYTES, Sector, SectorRange};

use crate::buf::{Buf, IoVec};
use crate::device::{
    Device, DeviceLimits, DeviceShape, Durability, IoError, IoResult, Place, Witness,
};

pub use copies::{CopyPlaces, HeaderCopy, copy_of, erase_copy, place_for_copy, read_copies};
pub use header::{Header, HeaderError, HeaderRules, first_record};
pub use witness::{compare, hash_places};

const END: Sector = Sector(HEADER_SECTORS);

/// A device as it is, or a disk behind a header.
pub struct Joined<D: Device> {
    disk: D,
    header: Option<Rc<Header<D>>>,
}

impl<D: Device> From<D> for Joined<D> {
    fn from(disk: D) -> Joined<D> {
        Joined { disk, header: None }
    }
}

impl<D: Device> Joined<D> {
    /// A disk behind a header.
    pub fn new(disk: D, header: impl Into<Rc<Header<D>>>) -> Joined<D> {
        Joined { disk, header: Some(header.into()) }
    }

    /// The disk, or the device as it is.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The header, if the disk is behind one.
    pub fn header(&self) -> Option<&Rc<Header<D>>> {
        self.header.as_ref()
    }

    /// The parts of a range in the header and on the disk.
    fn cut(range: SectorRange) -> (SectorRange, SectorRange) {
        let (head, disk) = range.split_at(END);
        (head, disk.shift(-(HEADER_SECTORS as i64)))
    }

    /// The request would go on beyond the end: its error names the range as it was asked for.
    fn check(&self, range: SectorRange) -> IoResult {
        let sectors = self.limits().sectors;
        match range.end.0 > sectors || range.start.0 > sectors {
            true => Err(IoError::OutOfRange { range, sectors }),
            false => Ok(()),
        }
    }

    async fn read_both(
        &self,
        header: &Header<D>,
        range: SectorRange,
        mut into: Buf,
    ) -> (Buf, IoResult) {
        if let Err(error) = self.check(range) {
            return (into, Err(error));
        }
        let (head, disk) = Self::cut(range);
        if disk.is_empty() {
            return header.read(head.start, into).await;
        }
        if head.is_empty() {
            return self.disk.read(disk.start, into).await;
        }
        let middle = head.bytes() as usize;
        let (first, result) = header.read(head.start, Buf::zeroed(middle)).await;
        if let Err(error) = result {
            return (into, Err(error));
        }
        let (rest, result) = self.disk.read(disk.start, Buf::zeroed(disk.bytes() as usize)).await;
        into.as_mut_slice()[..middle].copy_from_slice(first.as_slice());
        into.as_mut_slice()[middle..].copy_from_slice(rest.as_slice());
        (into, result)
    }

    async fn write_both(
        &self,
        header: &Header<D>,
        (range, from): (SectorRange, IoVec),
        durability: Durability,
    ) -> IoResult {
        self.check(range)?;
        let (head, disk) = Self::cut(range);
        if !head.is_empty() {
            header.write(head.start, from.cut_sectors(0, head.sectors())).await?;
        }
        if disk.is_empty() {
            return Ok(());
        }
        header.before_write(disk, self.disk.limits().sectors).await?;
        let from = from.cut_sectors(head.sectors(), disk.sectors());
        self.disk.write(disk.start, from, durability).await?;
        header.after_write(disk, self.disk.limits().sectors).await
    }

    /// The part of a range on the disk, which is about to be written; that in the header becomes
    /// zeroes.
    async fn before_zeroes(&self, header: &Header<D>, range: SectorRange) -> IoResult<SectorRange> {
        self.check(range)?;
        let (head, disk) = Self::cut(range);
        if !head.is_empty() {
            header.write(head.start, IoVec::zeroes(head.bytes() as usize)).await?;
        }
        if !disk.is_empty() {
            header.before_write(disk, self.disk.limits().sectors).await?;
        }
        Ok(disk)
    }
}

impl<D: Device> Device for Joined<D> {
    fn shape(&self) -> DeviceShape {
        self.disk.shape()
    }
    fn limits(&self) -> DeviceLimits {
        let limits = self.disk.limits();
        match &self.header {
            None => limits,
            Some(header) => DeviceLimits {
                sectors: limits.sectors.saturating_add(HEADER_SECTORS),
                logical_block_bytes: limits.logical_block_bytes.max(header.block_bytes()),
                ..limits
            },
        }
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        match &self.header {
            None => self.disk.read(at, into).await,
            Some(header) => {
                let range = SectorRange::new(at, into.len() as u64 / SECTOR_BYTES);
                self.read_both(header, range, into).await
            }
        }
    }

    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        match &self.header {
            None => self.disk.read_into(range, place).await,
            Some(_) if range.start < END => Err(IoError::NotSupported),
            Some(_) => {
                self.check(range)?;
                self.disk.read_into(Self::cut(range).1, place).await
            }
        }
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        match &self.header {
            None => self.disk.write(at, from, durability).await,
            Some(header) => {
                let range = SectorRange::new(at, from.sectors());
                self.write_both(header, (range, from), durability).await
            }
        }
    }

    /// The header is durable when its write completes, and needs no flush.
    async fn flush(&self) -> IoResult {
        self.disk.flush().await
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        let Some(header) = &self.header else { return self.disk.discard(range).await };
        self.check(range)?;
        let (_, disk) = Self::cut(range);
        if disk.is_empty() {
            return Ok(());
        }
        header.before_write(disk, self.disk.limits().sectors).await?;
        self.disk.discard(disk).await
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        let Some(header) = &self.header else { return self.disk.write_zeroes(range).await };
        let disk = self.before_zeroes(header, range).await?;
        if disk.is_empty() { Ok(()) } else { self.disk.write_zeroes(disk).await }
    }

    async fn write_holes(&self, range: SectorRange) -> IoResult {
        let Some(header) = &self.header else { return self.disk.write_holes(range).await };
        let disk = self.before_zeroes(header, range).await?;
        if disk.is_empty() { Ok(()) } else { self.disk.write_holes(disk).await }
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        if self.header.is_none() {
            return self.disk.holes(range, most).await;
        }
        self.check(range)?;
        let (head, disk) = Self::cut(range);
        if !head.is_empty() || most == 0 {
            return Ok(vec![(head, false)]);
        }
        let found = self.disk.holes(disk, most).await?;
        Ok(found
            .into_iter()
            .map(|(part, hole)| (part.shift(HEADER_SECTORS as i64), hole))
            .collect())
    }

    async fn allocate(&self, range: SectorRange) -> IoResult {
        let Some(_) = &self.header else { return self.disk.allocate(range).await };
        let (_, disk) = Self::cut(range);
        if disk.is_empty() { Ok(()) } else { self.disk.allocate(disk).await }
    }

    async fn refresh_size(&self) -> IoResult<u64> {
        let sectors = self.disk.refresh_size().await?;
        if let Some(header) = &self.header {
            header.note_size(sectors).await?;
        }
        Ok(self.limits().sectors)
    }

    async fn witness(&self) -> IoResult<Witness> {
        match &self.header {
            None => self.disk.witness().await,
            Some(header) => header.examine(&self.disk).await,
        }
    }

    async fn seal(&self) -> IoResult {
        match &self.header {
            None => self.disk.seal().await,
            Some(header) => header.seal(&self.disk).await,
        }
    }
}

impl<D: Device + std::fmt::Debug> std::fmt::Debug for Joined<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined = self.header.is_some();
        f.debug_struct("Joined").field("disk", &self.disk).field("header", &joined).finish()
    }
}
