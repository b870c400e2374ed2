//! Copies of headers on a cache device, where the format leaves room.

use std::rc::Weak;

use ubcache_format::{
    HEADER_BYTES, HEADER_SECTORS, HeaderRecord, Sector, Superblock, Uuid, header_copy_places,
};

use crate::buf::{Buf, IoVec};
use crate::device::{Device, Durability, IoResult};

/// The copy of a header: a place on a cache device.
#[derive(Clone, Debug)]
pub struct HeaderCopy<D> {
    /// The cache device, for as long as it is that of the disk.
    pub device: Weak<D>,
    /// Its first sector there.
    pub at: Sector,
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
    let copies = read_copies(cache, superblock).await?;
    if let Some((at, ..)) = copies.iter().find(|(_, record, _)| record.uuid == uuid) {
        return Ok(Some(*at));
    }
    let taken = |place: &Sector| copies.iter().any(|(at, ..)| at == place);
    Ok(header_copy_places(superblock).find(|place| !taken(place)))
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
