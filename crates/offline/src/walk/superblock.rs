//! The superblock of a device: reading it, and comparing it with the size of the device.

use ubcache_env::Device;
use ubcache_format::{
    FormatError, Problem, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock,
};

use crate::io::read::read;
use crate::set::{Finding, FindingKind, Location, Site};

/// The field that is larger on machines with larger pages.
const BLOCK_SIZE: &str = "block size in sectors";

/// Reads a superblock; the finding describes its fault.
pub(crate) async fn read_superblock<D: Device>(
    device: &D,
    site: Site,
) -> Result<Superblock, Finding> {
    let place = Location { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Location::on(site) };
    let bytes = read(device, SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES)
        .await
        .map_err(|error| {
            Finding::new(FindingKind::Unreadable, place, format_args!("superblock: {error}"))
        })?;
    let limits = device.limits();
    let damaged = |error: FormatError| {
        let kind = match &error.problem {
            _ if !Superblock::is_there(bytes.as_slice()) => FindingKind::SuperblockMissing,
            Problem::Value { field: BLOCK_SIZE, .. } => FindingKind::LargerPages,
            _ => FindingKind::SuperblockDamaged,
        };
        Finding::new(kind, place.plus(error.at), error)
    };
    let superblock =
        Superblock::read_cut_off(bytes.as_slice(), limits.sectors, limits.logical_block_bytes)
            .map_err(damaged)?;
    if missing(device, &superblock) > limits.sectors.saturating_mul(MISSING_MAX) {
        return Err(short(device, &superblock));
    }
    Ok(superblock)
}

/// Largest missing part of a cache device, as a multiple of the part that is there: memory is
/// allocated by the number of buckets, and the superblock alone is no proof of that number.
const MISSING_MAX: u64 = 15;

/// The sectors of a cache device that its superblock names, and that are beyond its end.
pub(crate) fn missing<D: Device>(device: &D, superblock: &Superblock) -> u64 {
    superblock.missing_sectors(device.limits().sectors)
}

pub(super) fn short<D: Device>(device: &D, superblock: &Superblock) -> Finding {
    let found = device.limits().sectors;
    let detail = format!(
        "the device has {found} sectors, and the buckets of the set take {}: {} bytes are missing \
         at its end",
        found + missing(device, superblock),
        missing(device, superblock) * SECTOR_BYTES
    );
    Finding::new(
        FindingKind::DeviceShort,
        Location { byte: Some(found * SECTOR_BYTES), ..Location::on(Site::Cache) },
        detail,
    )
}

/// Kind of a device, by its superblock.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A cache device.
    Cache,
    /// A backing device.
    Backing,
    /// Its superblock does not say.
    Unknown,
    /// There is no room for a superblock.
    TooShort {
        /// Its size in bytes.
        bytes: u64,
        /// The least size in bytes.
        needed: u64,
    },
}

/// Reads the kind of a device, whatever else is wrong with it.
pub async fn kind_of<D: Device>(device: &D) -> DeviceKind {
    let bytes = device.limits().sectors * SECTOR_BYTES;
    let needed = SUPERBLOCK_SECTOR.bytes() + SUPERBLOCK_BYTES as u64;
    if bytes < needed {
        return DeviceKind::TooShort { bytes, needed };
    }
    match read(device, SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES).await {
        Ok(bytes) => match Superblock::parse(bytes.as_slice()) {
            Ok(superblock) if superblock.is_cache() => DeviceKind::Cache,
            Ok(_) => DeviceKind::Backing,
            Err(_) => DeviceKind::Unknown,
        },
        Err(_) => DeviceKind::Unknown,
    }
}
