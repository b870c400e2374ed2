//! Copies of headers on a cache device, where the format leaves room.

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_format::{
    HEADER_BYTES, HEADER_SECTORS, HeaderRecord, Sector, Superblock, Uuid, header_copy_places,
};

use crate::buf::{Buf, IoVec};
use crate::device::{Device, Durability, IoResult};

/// The copy of a header: a place on a cache device.
#[derive(Debug)]
pub struct HeaderCopy<D> {
    /// The cache device.
    pub device: Rc<D>,
    /// Its first sector there.
    pub at: Sector,
}

impl<D> Clone for HeaderCopy<D> {
    fn clone(&self) -> HeaderCopy<D> {
        HeaderCopy { device: self.device.clone(), at: self.at }
    }
}

/// All copies on a cache device: their places, their records, and their 8192 bytes.
///
/// # Errors
/// The device can't be read.
pub async fn read_copies<D: Device>(
    cache: &D,
    superblock: &Superblock,
) -> IoResult<Vec<(Sector, HeaderRecord, Buf)>> {
    let places: Vec<Sector> = header_copy_places(superblock).collect();
    let (Some(first), count) = (places.first(), places.len()) else { return Ok(Vec::new()) };
    let (area, read) = cache.read(*first, Buf::zeroed(count * HEADER_BYTES)).await;
    read?;
    let mut copies = Vec::new();
    for (at, bytes) in places.into_iter().zip(area.as_slice().chunks_exact(HEADER_BYTES)) {
        if let Some((record, _)) = HeaderRecord::read(bytes) {
            copies.push((at, record, Buf::from_bytes(bytes)));
        }
    }
    Ok(copies)
}

/// The copy of the header of a backing device.
///
/// # Errors
/// The device can't be read.
pub async fn copy_of<D: Device>(
    cache: &D,
    superblock: &Superblock,
    uuid: Uuid,
) -> IoResult<Option<(Sector, HeaderRecord, Buf)>> {
    let copies = read_copies(cache, superblock).await?;
    Ok(copies.into_iter().find(|(_, record, _)| record.uuid == uuid))
}

/// The place of the copy of the header of a backing device, or one for it. None: there is no room.
///
/// # Errors
/// The device can't be read.
pub async fn place_for_copy<D: Device>(
    cache: &D,
    superblock: &Superblock,
    uuid: Uuid,
) -> IoResult<Option<Sector>> {
    CopyPlaces::default().place(cache, superblock, uuid).await
}

/// Places that headers were given on one cache device, before there is anything in them.
#[derive(Default, Debug)]
pub struct CopyPlaces {
    given: RefCell<Vec<(Sector, Uuid)>>,
}

impl CopyPlaces {
    /// See [`place_for_copy`]; a place that was given to another header is not free.
    ///
    /// # Errors
    /// The device can't be read.
    pub async fn place<D: Device>(
        &self,
        cache: &D,
        superblock: &Superblock,
        uuid: Uuid,
    ) -> IoResult<Option<Sector>> {
        let copies = read_copies(cache, superblock).await?;
        let mut taken = self.given.borrow_mut();
        let given = taken.iter().copied();
        let used = given.chain(copies.iter().map(|(at, record, _)| (*at, record.uuid)));
        let used: Vec<(Sector, Uuid)> = used.collect();
        if let Some((at, _)) = used.iter().find(|(_, of)| *of == uuid) {
            return Ok(Some(*at));
        }
        let is_free = |place: &Sector| used.iter().all(|(at, _)| at != place);
        let place = header_copy_places(superblock).find(is_free);
        taken.extend(place.map(|at| (at, uuid)));
        Ok(place)
    }
}

/// Erases the copy of the header of a backing device, durably. False: there is none.
///
/// # Errors
/// The device can't be read or written.
pub async fn erase_copy<D: Device>(
    cache: &D,
    superblock: &Superblock,
    uuid: Uuid,
) -> IoResult<bool> {
    let Some((at, ..)) = copy_of(cache, superblock, uuid).await? else { return Ok(false) };
    let zeroes = IoVec::zeroes((HEADER_SECTORS * ubcache_format::SECTOR_BYTES) as usize);
    cache.write(at, zeroes, Durability::Fua).await?;
    Ok(true)
}
