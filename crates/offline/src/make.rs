//! Formatting a device: the writes of `ubcache make`, in an order that any power failure may cut
//! off.
//!
//! Until the last step the device has no bcache superblock at all, neither the old nor the new one;
//! so a set is found whole or not at all, and never an old journal under a new superblock.

use std::ops::Range;

use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{SECTOR_BYTES, SUPERBLOCK_SECTOR, Sector, SectorRange, Superblock};

use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::write::flush;

const DOING: &str = "writing the superblock";
const ERASING: &str = "erasing the journal";
/// Zeroes that are written at a time, in sectors.
const AT_ONCE: u64 = 2048;

/// Writes a superblock onto a device, and zeroes before it. `wipe`: byte ranges where something
/// else has its magic numbers. `erase_journal`: the journal buckets are zeroed, which is needed
/// where an older cache device of the same set was.
///
/// # Errors
/// A read or a write fails; the device may be neither what it was nor what it was to become.
pub async fn make_device<D: Device>(
    device: &D,
    superblock: &Superblock,
    wipe: &[Range<u64>],
    erase_journal: bool,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let head = SectorRange::new(
        Sector(0),
        SUPERBLOCK_SECTOR.0 + superblock.encode().len() as u64 / SECTOR_BYTES,
    );
    // The head of an older superblock goes first: its tail has the run numbers, and one without the
    // other is an older copy.
    let block = u64::from(device.limits().logical_block_bytes).max(SECTOR_BYTES);
    zero(device, SectorRange::new(SUPERBLOCK_SECTOR, block / SECTOR_BYTES), DOING).await?;
    flush(device, On::Cache, DOING).await?;
    zero(device, head, DOING).await?;
    for range in wipe {
        wipe_bytes(device, range).await?;
    }
    flush(device, On::Cache, DOING).await?;
    if erase_journal {
        let geometry = superblock.geometry();
        let first = geometry.bucket_start(geometry.journal_bucket(0));
        let sectors = u64::from(geometry.journal_buckets) * u64::from(geometry.bucket_sectors);
        let phase = Phase::new(watcher, ERASING, sectors * SECTOR_BYTES);
        let mut done = 0;
        while done < sectors {
            let piece = SectorRange::new(first + done, AT_ONCE.min(sectors - done));
            zero(device, piece, ERASING).await?;
            done += piece.sectors();
            phase.add(piece.bytes());
        }
        flush(device, On::Cache, ERASING).await?;
    }
    let bytes = Buf::from_bytes(&superblock.encode());
    let written = device.write(SUPERBLOCK_SECTOR, bytes.into(), Durability::Volatile).await;
    written.map_err(|error| OfflineError::Io {
        on: On::Cache,
        doing: DOING,
        error: error.to_string(),
    })?;
    flush(device, On::Cache, DOING).await
}

async fn zero<D: Device>(
    device: &D,
    range: SectorRange,
    doing: &'static str,
) -> Result<(), OfflineError> {
    let data = Buf::zeroed(range.bytes() as usize).into();
    let written = device.write(range.start, data, Durability::Volatile).await;
    written.map_err(|error| OfflineError::Io { on: On::Cache, doing, error: error.to_string() })
}

/// Zeroes bytes; what else is in their blocks stays.
async fn wipe_bytes<D: Device>(device: &D, range: &Range<u64>) -> Result<(), OfflineError> {
    let block = u64::from(device.limits().logical_block_bytes).max(SECTOR_BYTES);
    let (start, end) = (range.start / block * block, range.end.next_multiple_of(block));
    let at = Sector(start / SECTOR_BYTES);
    let io = |error| OfflineError::Io { on: On::Cache, doing: "erasing former content", error };
    let mut bytes = read(device, at, (end - start) / SECTOR_BYTES).await.map_err(io)?;
    bytes.as_mut_slice()[(range.start - start) as usize..(range.end - start) as usize].fill(0);
    let written = device.write(at, bytes.into(), Durability::Volatile).await;
    written.map_err(|error| io(error.to_string()))
}
