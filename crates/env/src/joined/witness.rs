//! A disk as it was: hashes of places of it (rule A9).

use ubcache_format::{HeaderRecord, PLACES_MAX, Sector, SectorRange, crc64_we, witness_places};

use crate::buf::Buf;
use crate::device::{Device, IoResult, Witness};

/// The hashes of the places of a disk of that size, one after the other.
///
/// # Errors
/// A place can't be read.
pub async fn hash_places<D: Device>(disk: &D, sectors: u64) -> IoResult<[u64; PLACES_MAX]> {
    let mut hashes = [0; PLACES_MAX];
    for (hash, place) in hashes.iter_mut().zip(witness_places(sectors)) {
        *hash = hash_place(disk, place).await?;
    }
    Ok(hashes)
}

async fn hash_place<D: Device>(disk: &D, place: SectorRange) -> IoResult<u64> {
    let (bytes, read) = disk.read(place.start, Buf::zeroed(place.bytes() as usize)).await;
    read.map(|()| crc64_we(bytes.as_slice()))
}

/// Compares a disk with what a record says of it. `identity`: the words by which the machine knows
/// the disk now; empty if it has none.
///
/// # Errors
/// The disk can't be read.
pub async fn compare<D: Device>(
    disk: &D,
    record: &HeaderRecord,
    identity: &str,
) -> IoResult<Witness> {
    let sectors = disk.limits().sectors;
    if sectors != record.sectors {
        return Ok(Witness::Resized { found: sectors, expected: record.sectors });
    }
    if let Some((place, found, expected)) = first_difference(disk, record).await? {
        return Ok(Witness::Different {
            found: format!(
                "{} bytes from byte {} on: hash {found:016x}",
                place.bytes(),
                place.start.bytes()
            ),
            expected: format!("hash {expected:016x}, as it was left"),
        });
    }
    if record.sealed {
        return Ok(Witness::Same);
    }
    let named = !identity.is_empty() && !record.identity.is_empty();
    if named && identity != record.identity {
        return Ok(Witness::Different {
            found: identity.to_owned(),
            expected: format!("{}, and no clean stop vouches for a copy", record.identity),
        });
    }
    Ok(Witness::Unknown)
}

/// The first place that was left alone, and is not what it was.
async fn first_difference<D: Device>(
    disk: &D,
    record: &HeaderRecord,
) -> IoResult<Option<(SectorRange, u64, u64)>> {
    let end = Sector(disk.limits().sectors);
    for (index, place) in witness_places(record.sectors).into_iter().enumerate() {
        if record.written >> index & 1 != 0 || place.end > end {
            continue;
        }
        let (found, expected) = (hash_place(disk, place).await?, record.hashes[index]);
        if found != expected {
            return Ok(Some((place, found, expected)));
        }
    }
    Ok(None)
}
