//! The header of a disk: two records and a superblock in a file, and a copy of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_format::{
    HEADER_BYTES, HeaderRecord, RECORD_BYTES, RECORDS_BYTES, SECTOR_BYTES, Sector, SectorRange,
    witness_places,
};

use super::copies::HeaderCopy;
use super::witness::{compare, hash_places};
use crate::buf::{Buf, IoVec};
use crate::device::{Device, Durability, IoError, IoResult, Witness};
use crate::local::Lock;

/// A header that can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// It can't be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It has no whole record.
    #[error("no record of a header in its first 4096 bytes")]
    NoRecord,
}

/// The first record of a header: the disk as it is now.
///
/// # Errors
/// The disk can't be read.
pub async fn first_record<D: Device>(
    disk: &D,
    uuid: ubcache_format::Uuid,
    identity: &str,
) -> IoResult<HeaderRecord> {
    let sectors = disk.limits().sectors;
    let hashes = hash_places(disk, sectors).await?;
    let identity = identity.to_owned();
    Ok(HeaderRecord { seq: 1, uuid, sectors, written: 0, sealed: true, identity, hashes })
}

type CopyFailed = Rc<dyn Fn(&IoError)>;

/// Rules that a test has switched off, to see that the simulator finds out.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderRules {
    /// A9: the header says that the disk is written when that has ended.
    pub marked_late: bool,
    /// A9: the header says so, and a power cut takes it back.
    pub marked_not_durably: bool,
    /// A9: the first write of a run counts, and not the first one to each place.
    pub places_not_marked: bool,
}

/// An open header.
pub struct Header<D: Device> {
    file: D,
    copy: RefCell<Option<HeaderCopy<D>>>,
    /// The copy has all that the file has.
    copy_is_whole: Cell<bool>,
    when_copy_fails: RefCell<Option<CopyFailed>>,
    record: RefCell<HeaderRecord>,
    /// The places of the record.
    places: RefCell<Vec<SectorRange>>,
    /// The half of the records that the next one goes to.
    half: Cell<usize>,
    /// The disk was not what the record says, and was accepted all the same.
    outdated: Cell<bool>,
    /// Records are written one after the other.
    writing: Lock,
    /// Orders writes: each goes to the file and to the copy before the next one, so that a copy
    /// that is made as a whole lacks none.
    one_write: Lock,
    identity: String,
    rules: HeaderRules,
}

impl<D: Device> Header<D> {
    /// Opens a header. `identity`: the words by which the machine knows the disk.
    ///
    /// # Errors
    /// It can't be read, or is none.
    pub async fn open(
        file: D,
        copy: Option<HeaderCopy<D>>,
        identity: &str,
    ) -> Result<Header<D>, HeaderError> {
        let (bytes, read) = file.read(Sector(0), Buf::zeroed(RECORDS_BYTES)).await;
        read?;
        let (record, half) = HeaderRecord::read(bytes.as_slice()).ok_or(HeaderError::NoRecord)?;
        Ok(Header {
            file,
            copy: RefCell::new(copy),
            copy_is_whole: Cell::new(false),
            when_copy_fails: RefCell::default(),
            places: RefCell::new(witness_places(record.sectors)),
            record: RefCell::new(record),
            half: Cell::new(half),
            outdated: Cell::new(false),
            writing: Lock::default(),
            one_write: Lock::default(),
            identity: identity.to_owned(),
            rules: HeaderRules::default(),
        })
    }

    /// The same without some of its rules.
    #[must_use]
    pub fn with_rules(self, rules: HeaderRules) -> Header<D> {
        Header { rules, ..self }
    }

    /// The newest record.
    pub fn record(&self) -> HeaderRecord {
        self.record.borrow().clone()
    }

    /// Has somebody told that the copy on the cache device can't be written. It is not written any
    /// more then.
    pub fn when_copy_fails(&self, tell: impl Fn(&IoError) + 'static) {
        *self.when_copy_fails.borrow_mut() = Some(Rc::new(tell));
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.file.limits().logical_block_bytes
    }

    pub(super) async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        self.file.read(at, into).await
    }

    /// Writes a part of the header, and of its copy, durably. The copy comes last: if both are
    /// there, the file is never the older one.
    pub(super) async fn write(&self, at: Sector, from: IoVec) -> IoResult {
        self.write_as(Durability::Fua, (at, from)).await
    }

    async fn write_as(&self, durability: Durability, (at, from): (Sector, IoVec)) -> IoResult {
        let _one = self.one_write.lock().await;
        self.file.write(at, from.clone(), durability).await?;
        let Some(copy) = self.copy.borrow().clone() else { return Ok(()) };
        let written = match self.copy_is_whole.get() {
            true => copy.device.write(copy.at + at.0, from, Durability::Fua).await,
            false => self.write_whole_copy(&copy).await,
        };
        self.copy_was_written(written);
        Ok(())
    }

    /// Has the copy somewhere else from now on, and there it is durable when this returns; or
    /// nowhere, if it can't be written there or there is no place.
    pub async fn move_copy(&self, to: Option<HeaderCopy<D>>) {
        let _one = self.one_write.lock().await;
        self.copy.borrow_mut().clone_from(&to);
        self.copy_is_whole.set(false);
        if let Some(copy) = to {
            let written = self.write_whole_copy(&copy).await;
            self.copy_was_written(written);
        }
    }

    fn copy_was_written(&self, written: IoResult) {
        if let Err(error) = written {
            // The file is what counts. An older copy is known by its record and its run number.
            self.copy.borrow_mut().take();
            let tell = self.when_copy_fails.borrow().clone();
            tell.into_iter().for_each(|tell| tell(&error));
        }
    }

    async fn write_whole_copy(&self, copy: &HeaderCopy<D>) -> IoResult {
        let (bytes, read) = self.file.read(Sector(0), Buf::zeroed(HEADER_BYTES)).await;
        read?;
        copy.device.write(copy.at, bytes.into(), Durability::Fua).await?;
        self.copy_is_whole.set(true);
        Ok(())
    }

    /// The range of the disk, which has so many sectors, is about to be written: the header says so
    /// before, durably, of the first write of a run and of the first one to each place (A9).
    pub(super) async fn before_write(&self, range: SectorRange, sectors: u64) -> IoResult {
        match self.rules.marked_late {
            true => Ok(()),
            false => self.mark_write(range, sectors).await,
        }
    }

    /// The range was written.
    pub(super) async fn after_write(&self, range: SectorRange, sectors: u64) -> IoResult {
        match self.rules.marked_late {
            true => self.mark_write(range, sectors).await,
            false => Ok(()),
        }
    }

    async fn mark_write(&self, range: SectorRange, sectors: u64) -> IoResult {
        if self.knows_of_write(range, sectors) {
            return Ok(());
        }
        let _one = self.writing.lock().await;
        if self.knows_of_write(range, sectors) {
            return Ok(());
        }
        let mut record = self.record();
        record.sealed = false;
        record.written |= self.places_of(range);
        if record.sectors != sectors || self.outdated.get() {
            // The disk was accepted as it is: nothing is known of its places.
            record.sectors = sectors;
            record.written = u64::MAX;
        }
        record.identity.clone_from(&self.identity);
        self.save(record).await?;
        self.outdated.set(false);
        Ok(())
    }

    /// The disk has this size now, and whoever changed it told of it: the next start takes it.
    pub(super) async fn note_size(&self, sectors: u64) -> IoResult {
        let _one = self.writing.lock().await;
        let known = self.record();
        if known.sectors == sectors {
            return Ok(());
        }
        self.save(HeaderRecord { sectors, sealed: false, written: u64::MAX, ..known }).await
    }

    fn knows_of_write(&self, range: SectorRange, sectors: u64) -> bool {
        let record = self.record.borrow();
        let written = self.places_of(range);
        let is_of_it = record.sectors == sectors && !self.outdated.get();
        !record.sealed && is_of_it && record.written & written == written
    }

    /// The places that a range of the disk overlaps, a bit for each.
    fn places_of(&self, range: SectorRange) -> u64 {
        if self.rules.places_not_marked {
            return 0;
        }
        let places = self.places.borrow();
        let first = places.partition_point(|place| place.end <= range.start);
        let overlapping = places[first..].iter().take_while(|place| place.start < range.end);
        overlapping.zip(first..).fold(0, |bits, (_, index)| bits | 1 << index)
    }

    /// Makes a record the newest one, durably.
    async fn save(&self, mut record: HeaderRecord) -> IoResult {
        record.seq += 1;
        let half = self.half.get();
        let (mut at, mut bytes) = (half * RECORD_BYTES, record.encode());
        if self.block_bytes() as usize > RECORD_BYTES {
            let mut both = vec![0; RECORDS_BYTES];
            let other = self.record.borrow().encode();
            both[at..at + RECORD_BYTES].copy_from_slice(&bytes);
            let aside = RECORD_BYTES - at;
            both[aside..aside + RECORD_BYTES].copy_from_slice(&other);
            (at, bytes) = (0, both);
        }
        let durability = match self.rules.marked_not_durably && !record.sealed {
            true => Durability::Volatile,
            false => Durability::Fua,
        };
        let at = Sector(at as u64 / SECTOR_BYTES);
        self.write_as(durability, (at, Buf::from_bytes(&bytes).into())).await?;
        self.half.set(1 - half);
        *self.places.borrow_mut() = witness_places(record.sectors);
        *self.record.borrow_mut() = record;
        Ok(())
    }

    /// Compares the disk with the newest record.
    pub(super) async fn examine(&self, disk: &D) -> IoResult<Witness> {
        let record = self.record();
        let witness = compare(disk, &record, &self.identity).await?;
        let differs = matches!(witness, Witness::Different { .. } | Witness::Resized { .. });
        self.outdated.set(differs);
        Ok(witness)
    }

    /// Takes a witness of the disk, which is not written meanwhile, and has the header say so.
    pub(super) async fn seal(&self, disk: &D) -> IoResult {
        let _one = self.writing.lock().await;
        let sectors = disk.limits().sectors;
        let known = self.record();
        let is_of_it = known.sectors == sectors && known.identity == self.identity;
        if known.sealed && is_of_it && !self.outdated.get() {
            return Ok(());
        }
        disk.flush().await?;
        let hashes = hash_places(disk, sectors).await?;
        let identity = self.identity.clone();
        let sealed = HeaderRecord { sectors, written: 0, sealed: true, identity, hashes, ..known };
        self.save(sealed).await?;
        self.outdated.set(false);
        Ok(())
    }
}
